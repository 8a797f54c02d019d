"""What takes what a hook point shows."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Sink(Protocol):
    """What takes the activations and gradients of a hook point, batch by batch."""

    def begin(
        self,
        activations: Tensor,
        mask: Tensor | None = None,
        n_tokens: int | None = None,
        *,
        gradients_to_come: int = 0,
    ) -> None:
        """The activations [batch, pos, …] of a new batch, of which `mask` counts `n_tokens` positions."""

    def gradient(self, gradients: Tensor, objective: str = "", scale: float = 1.0) -> None:
        """One gradient of that batch; `scale` is 1 over the objective's number of samples."""

    def check(self) -> list[Tensor]:
        """Scalars that are finite exactly when the batch is."""

    def commit(self) -> None:
        """The batch is whole: keep it."""

    def discard(self) -> None:
        """The batch failed: forget it."""


def counted_sum(x: Tensor, mask: Tensor | None) -> Tensor:
    """Σ of the entries [batch, pos, …] that count; in float32, as many finite float16 ones overflow."""
    x = x if mask is None else x.flatten(2).masked_fill(~mask[..., None], 0.0)
    return x.sum(dtype=torch.promote_types(x.dtype, torch.float32))
