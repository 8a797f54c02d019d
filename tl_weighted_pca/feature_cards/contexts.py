"""Where a component is strongest: the k highest and lowest contexts of a stream, in one pass."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_weighted_pca.data.batches import Batch

_SAME = 1e-5
"""Coordinates closer than this are one number, rounded differently in batches of other shapes."""


@dataclass(frozen=True)
class Window:
    """A token of a sequence, with the tokens around it and the coordinate at each."""

    sequence: int
    """The place of the sequence in the data."""
    position: int
    """The token's position, from the sequence's first real token."""
    token_ids: list[int]
    """What is shown."""
    coordinates: list[float]
    """z at each of them; NaN at positions that do not count."""
    focus: int
    """Which of them is the token."""

    @property
    def coordinate(self) -> float:
        """z at the token."""
        return self.coordinates[self.focus]


class Extremes:
    """The k strongest windows of each component, in memory that does not grow with the stream.

    Each sequence offers its one strongest position, the earlier one if two are equal. Sequences that
    read the same from their start to that token count once: a causal model cannot tell them apart.

    Args:
        n: components.
        k: windows to keep of each.
        window: how many tokens to keep before the token, and after it.
        sign: 1 for the highest coordinates, −1 for the lowest.
    """

    def __init__(self, n: int, k: int, window: tuple[int, int], sign: int) -> None:
        self._k, self._window, self._sign = k, window, sign
        self._kept: list[dict[bytes, Window]] = [{} for _ in range(n)]
        """By a digest of all that a causal model has read at the token, however long."""
        self._bar = torch.full((n,), -math.inf, device="cpu")
        """What a window must reach."""

    def add(
        self, batch: Batch, z: Float[Tensor, "batch pos n"], counted: Bool[Tensor, "batch pos"]
    ) -> None:
        """See a batch, with the coordinates and which positions count."""
        strength = (self._sign * z).masked_fill(~counted[..., None], -math.inf)
        best, at = strength.max(1)
        for row, i in (best >= self._bar.to(best)).nonzero().tolist():
            if best[row, i] > -math.inf:
                self._offer(i, *self._cut(batch, z[row, :, i], counted[row], row, int(at[row, i])))

    def result(self) -> list[list[Window]]:
        """The windows of each component, strongest first."""
        return [sorted(kept.values(), key=self._order, reverse=True) for kept in self._kept]

    def _offer(self, i: int, read: bytes, window: Window) -> None:
        kept = self._kept[i]
        same = kept.get(read)
        if same is not None and not self._better(window, same):
            return
        kept[read] = window
        if len(kept) > self._k:
            del kept[min(kept, key=lambda each: self._order(kept[each]))]
        if len(kept) == self._k:
            lowest = min(self._sign * each.coordinate for each in kept.values())
            self._bar[i] = lowest - _SAME * abs(lowest)

    def _better(self, new: Window, old: Window) -> bool:
        a, b = self._sign * new.coordinate, self._sign * old.coordinate
        if abs(a - b) <= _SAME * max(abs(a), abs(b)):
            return new.sequence < old.sequence
        return a > b

    def _order(self, window: Window) -> tuple[float, int]:
        return self._sign * window.coordinate, -window.sequence

    def _cut(
        self, batch: Batch, z: Tensor, counted: Tensor, row: int, at: int
    ) -> tuple[bytes, Window]:
        """The window around a token, and a digest of the tokens up to it."""
        real = range(batch.inputs.shape[1])
        if batch.mask is not None:
            places = batch.mask[row].nonzero().flatten()
            real = range(int(places[0]), int(places[-1]) + 1)
        before, after = self._window
        start, stop = max(real.start, at - before), min(real.stop, at + after + 1)
        coordinates = z[start:stop].double().masked_fill(~counted[start:stop], math.nan)
        read = batch.inputs[row, real.start : at + 1].long().cpu().numpy()
        window = Window(
            sequence=int(batch.sequence_index[row]),
            position=at - real.start,
            token_ids=batch.inputs[row, start:stop].tolist(),
            coordinates=coordinates.tolist(),
            focus=at - start,
        )
        return hashlib.blake2b(read.tobytes(), digest_size=16).digest(), window
