"""What one hook point shows of one batch."""

from __future__ import annotations

from torch import Tensor


class Site:
    """What one hook point shows of one batch: the tensors that passed, and the gradient so far.

    A hook point may fire several times in one pass, with one value (`ln1.hook_normalized` of
    HookedTransformer does, for Q, K and V): the activation counts once, the gradients add up.
    """

    def __init__(self) -> None:
        self.passed: list[Tensor] = []
        self.handed_on: list[Tensor] = []
        self.missing = 0
        self.gradient: Tensor | None = None
        self._version = 0

    def see(self, tensor: Tensor) -> None:
        """A tensor passes."""
        if not self.passed:
            self._version = tensor._version
        self.passed.append(tensor)

    @property
    def was_edited(self) -> bool:
        """Whether what passed first is not any more what it was."""
        return self.passed[0]._version != self._version

    def expect(self) -> None:
        self.missing, self.gradient = len(self.passed), None

    def arrive(self, gradient: Tensor) -> bool:
        """Take the gradient of one firing; whether it was the last."""
        self.gradient = gradient if self.gradient is None else self.gradient + gradient
        self.missing -= 1
        return self.missing == 0
