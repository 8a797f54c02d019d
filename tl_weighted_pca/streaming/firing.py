"""What one hook point shows of one batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Site:
    """What one hook point shows of one batch: the tensors that passed, and the gradient so far.

    A hook point may fire several times in one pass, with one value (`ln1.hook_normalized` of
    HookedTransformer does, for Q, K and V): the activation counts once, the gradients add up. A tensor
    that passes twice is one tensor.

    Args:
        conversion: of TransformerLens's, from what the model has there to what a hook gets; or None.
    """

    def __init__(self, conversion: Any) -> None:
        self.passed: list[Tensor] = []
        self.missing = 0
        self._conversion = conversion
        self._gradient: Tensor | None = None
        self._version = 0

    def see(self, tensor: Tensor) -> None:
        """A tensor passes."""
        if not self.passed:
            self._version = tensor._version
            self.activations = self.shown(tensor)
        self.passed.append(tensor)

    def shown(self, tensor: Tensor) -> Tensor:
        """As a hook gets it."""
        converted: Tensor = tensor if self._conversion is None else self._conversion.convert(tensor)
        return converted

    @property
    def was_edited(self) -> bool:
        """Whether what passed first is not any more what it was."""
        return self.passed[0]._version != self._version

    def expect(self) -> None:
        """A backward pass begins."""
        self.missing, self._gradient = len(self.passed), None

    def arrive(self, gradient: Tensor) -> bool:
        """Take the gradient of one firing; whether it was the last."""
        self._gradient = gradient if self._gradient is None else self._gradient + gradient
        self.missing -= 1
        return self.missing == 0

    def taken(self) -> Tensor | None:
        """The gradient as a hook gets it, given away; None where none has arrived."""
        gradient, self._gradient = self._gradient, None
        return None if gradient is None else self.shown(gradient)


def edited_in_place(name: str) -> str:
    """What to say where activations are gone before the pass is over."""
    return (
        f"What follows hook point {name!r} changes its activations in place, so that they are lost: let it "
        "make a new tensor."
    )
