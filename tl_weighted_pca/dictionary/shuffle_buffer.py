"""Rows of a stream in random order, in flat memory, from any place in the stream."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.data.batches import EmptyDataError, is_one_shot
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.objectives.losses import Objective
from tl_weighted_pca.streaming.pairs import stream_pairs

Rows = tuple[Float[Tensor, "tokens d"], Float[Tensor, "tokens d"] | None]
"""Activations, and gradients where there are any."""


@dataclass(frozen=True)
class Place:
    """How much of a stream is used up: passes over the data, batches of this pass, rows of a batch."""

    epoch: int = 0
    batch: int = 0
    row: int = 0


@dataclass(frozen=True)
class PairStream:
    """(x, g) row by row from a model, over the data again and again, from any `Place` on.

    Where the objective has several samples, rows take them in turn.
    """

    model: Any
    data: Any
    hook_point: str
    objective: Objective | None
    positions: Positions
    batch_size: int

    def rows(self, place: Place) -> Iterator[tuple[Rows, Place]]:
        """Rows of one batch after another, each with its place; ends with what can be read only once.

        Raises:
            ValueError: if a whole pass over the data gives no row.
        """
        while True:
            found = place.row > 0 or place.batch > 0
            pairs = stream_pairs(
                self.model,
                self.data,
                self.hook_point,
                objective=self.objective,
                positions=self.positions,
                batch_size=self.batch_size,
                skip=place.batch,
            )
            try:
                for number, batch in enumerate(pairs, start=place.batch):
                    x, samples = batch[self.hook_point].rows()
                    g = None
                    if len(samples):
                        token = torch.arange(len(x), device=x.device)
                        g = samples[token % len(samples), token][place.row :]
                    x = x[place.row :]
                    found = found or len(x) > 0
                    yield (x, g), Place(place.epoch, number, place.row)
                    place = Place(place.epoch, number + 1)
            except EmptyDataError:
                if not place.epoch:
                    raise
                return  # a loader of what can be read only once
            if not found:
                raise ValueError(
                    f"positions={self.positions!r} selects no token of the data: choose others, or leave "
                    "positions out."
                )
            if is_one_shot(self.data):
                return
            place = Place(place.epoch + 1)


def shuffled_blocks(
    stream: PairStream, capacity: int, seed: int, place: Place
) -> Iterator[tuple[Rows, Place]]:
    """Blocks of `capacity` rows in random order, each with the place in the stream where it ends.

    The order within a block depends on the seed and on where the block ends, and nothing is carried
    from one block to the next but the place: whoever starts again there gets the same blocks. Where
    the stream ends, the last block is what is left.
    """
    x, g = torch.empty(0, device="cpu"), None
    filled, end = 0, place

    def shuffled() -> Rows:
        generator = torch.Generator().manual_seed(
            zlib.crc32(f"{seed} {end.epoch} {end.batch} {end.row}".encode())
        )
        order = torch.randperm(filled, generator=generator, device="cpu").to(x.device)
        return x[order], None if g is None else g[order]

    for (new_x, new_g), at in stream.rows(place):
        if not x.numel():
            x = new_x.new_empty((capacity, new_x.shape[1]))
            g = None if new_g is None else torch.empty_like(x)
        used = 0
        while used < len(new_x):
            n = min(capacity - filled, len(new_x) - used)
            x[filled : filled + n] = new_x[used : used + n]
            if g is not None and new_g is not None:
                g[filled : filled + n] = new_g[used : used + n]
            filled, used = filled + n, used + n
            end = Place(at.epoch, at.batch, at.row + used)
            if filled == capacity:
                yield shuffled(), end
                filled = 0
    if filled:
        yield shuffled(), end
