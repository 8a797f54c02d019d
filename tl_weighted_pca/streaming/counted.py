"""Which positions of a batch count: those chosen, without padding and without outliers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.data.positions import (
    NOTED,
    Outliers,
    Positions,
    checked_positions,
    selected,
)


class CountedPositions:
    """Cuts what passes a hook point to the positions that count, and counts the outliers left out.

    Args:
        positions: which positions count.
        outliers: which do not count for their norm, and where those found are counted.
        note: without `outliers`, warn where the first batch shows some.
    """

    def __init__(self, positions: Positions, outliers: Outliers | None, note: bool) -> None:
        self._positions = checked_positions(positions)
        self._outliers = outliers
        self.notes = note and outliers is None
        self._left_out: dict[str, Tensor] = {}
        self._masks: dict[Any, tuple[Tensor | None, int | None]] = {}

    def cut(
        self, name: str, tensor: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None, int | None]:
        """The tensor as [batch, pos, …] with the positions that count, their mask, and how many it has."""
        tensor = tensor.detach()
        if tensor.ndim == 2:
            return tensor[:, None], None, None
        positions = self._positions
        if self.notes:
            self._see_outliers(name, tensor, batch, Outliers(NOTED))
        if self._outliers is not None:
            self._see_outliers(name, tensor, batch, self._outliers)
        elif batch.mask is None and isinstance(positions, slice) and (positions.step or 1) > 0:
            return tensor[:, positions], None, None
        # Made and counted once a batch: a GPU is waited for when it is asked for a number.
        key = (tensor.shape[:2], tensor.device) if self._outliers is None else name
        if key not in self._masks:
            mask = selected(positions, batch.mask, (tensor.shape[0], tensor.shape[1]))
            if name in self._left_out and self._outliers is not None:
                kept = ~self._left_out[name]
                mask = kept if mask is None else kept & mask.to(kept.device)
            count = None if mask is None else int(mask.sum())
            self._masks[key] = None if mask is None else mask.to(tensor.device), count
        return tensor, *self._masks[key]

    def _see_outliers(self, name: str, tensor: Tensor, batch: Batch, outliers: Outliers) -> None:
        """Which positions that count are outlying, by the norms of the activations, which come first."""
        if name not in self._left_out:
            found = outliers.among(tensor, batch.mask)
            mask = selected(self._positions, batch.mask, (tensor.shape[0], tensor.shape[1]))
            self._left_out[name] = found if mask is None else found & mask.to(found.device)

    def commit(self, batch: Batch) -> None:
        """The batch is whole: count what it left out, or tell of it, once."""
        seen = self._outliers or Outliers(NOTED)
        for name, left_out in self._left_out.items():
            seen.see(name, left_out, batch.mask)
        if self.notes:
            seen.note()
            self.notes = False

    def forget(self) -> None:
        """The batch is over."""
        self._left_out, self._masks = {}, {}
