"""Which positions of a batch count: those chosen, without padding and without outliers."""

from __future__ import annotations

import torch
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

    def cut(self, name: str, tensor: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The tensor as [batch, pos, …] with the positions that count, and the mask of the rest."""
        tensor = tensor.detach()
        if tensor.ndim == 2:
            return tensor[:, None], None
        mask, positions = batch.mask, self._positions
        if self._outliers is not None:
            return tensor, self._without_outliers(name, tensor, batch, self._outliers)
        if self.notes:
            self._without_outliers(name, tensor, batch, Outliers(NOTED))
        if mask is None and isinstance(positions, slice) and (positions.step or 1) > 0:
            return tensor[:, positions], None
        mask = selected(positions, mask, (tensor.shape[0], tensor.shape[1]))
        return tensor, None if mask is None else mask.to(tensor.device)

    def _without_outliers(
        self, name: str, tensor: Tensor, batch: Batch, outliers: Outliers
    ) -> Tensor:
        """Which positions count, by the norms of the activations, for their gradients too."""
        shape = (tensor.shape[0], tensor.shape[1])
        mask = selected(self._positions, batch.mask, shape)
        counted = torch.ones(shape, dtype=torch.bool, device="cpu") if mask is None else mask
        counted = counted.to(tensor.device)
        if name not in self._left_out:  # the activations come first
            self._left_out[name] = counted & outliers.among(tensor, batch.mask).to(counted.device)
        return counted & ~self._left_out[name]

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
        self._left_out = {}
