"""What takes what a hook point shows."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Sink(Protocol):
    """What takes the activations and gradients of a hook point, batch by batch."""

    def begin(
        self, activations: Tensor, mask: Tensor | None = None, *, gradients_to_come: int = 0
    ) -> None:
        """The activations [batch, pos, …] of a new batch; where `mask` is False they do not count."""

    def gradient(self, gradients: Tensor, objective: str = "", scale: float = 1.0) -> None:
        """One gradient of that batch; `scale` is 1 over the objective's number of samples."""

    def check(self) -> list[Tensor]:
        """Tensors that are finite exactly when the batch is."""

    def commit(self) -> None:
        """The batch is whole: keep it."""

    def discard(self) -> None:
        """The batch failed: forget it."""
