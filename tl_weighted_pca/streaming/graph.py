"""The graph of one batch: where it starts, and which tensors of ours the model goes on with."""

from __future__ import annotations

from torch import Tensor


class Graph:
    """The graph of one batch, started on the model's own tensors and handed on as views of them.

    It starts in place: where a skip path reads a tensor too, as at the bridge's `hook_resid_mid`, a
    detached copy would lose that path's gradient. And a view is handed on: to the bridge's norms, a hook
    that hands on nothing is one that only looks.

    Args:
        copies: hand on copies; a hook of the user's may edit in place what it gets.
    """

    def __init__(self, copies: bool) -> None:
        self._copies = copies
        self._leaves: list[Tensor] = []
        self._ours: dict[int, tuple[Tensor, int, Tensor]] = {}

    def start(self, tensor: Tensor) -> Tensor | None:
        """Start at a tensor that is not recorded; the copy to hand on may be edited, as no leaf may."""
        if tensor.requires_grad:
            return None
        self._begin(tensor)
        return self._handed_on(tensor.clone(), tensor)

    def view(self, tensor: Tensor) -> Tensor:
        """Start at a tensor that is recorded, if nothing upstream has; what to hand on for it."""
        if not tensor.requires_grad:
            self._begin(tensor)
        view = tensor.clone() if self._copies else tensor.view_as(tensor)
        return self._handed_on(view, self.original(tensor))

    def original(self, tensor: Tensor) -> Tensor:
        """The model's own tensor, of which this may be ours, unless somebody has edited it."""
        ours, version, original = self._ours.get(id(tensor), (None, 0, tensor))
        return original if ours is tensor and version == tensor._version else tensor

    def end(self) -> None:
        """Leave the model's tensors as they were: one may be a buffer."""
        for leaf in self._leaves:
            if leaf.is_leaf:
                leaf.requires_grad_(False)

    def _begin(self, tensor: Tensor) -> None:
        tensor.requires_grad_()
        self._leaves.append(tensor)

    def _handed_on(self, ours: Tensor, original: Tensor) -> Tensor:
        self._ours[id(ours)] = ours, ours._version, original
        return ours


def kept(tensor: Tensor) -> Tensor:
    """The tensor, as one that a graph may hold on to."""
    return tensor.clone() if tensor.is_inference() else tensor
