"""What lies downstream of hook points, run again with the activations there edited."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.data.positions import (
    Outliers,
    Positions,
    checked_positions,
    selected,
)
from tl_weighted_pca.models.feeds import check_feeds, finite
from tl_weighted_pca.models.frozen import check_tokens, device_of, run_model
from tl_weighted_pca.models.hook_points import (
    check_activation,
    first_seen,
    has_hooks,
    hooked,
    never_fired,
)
from tl_weighted_pca.models.run import Run

Edit = Callable[[Tensor], Tensor]


class _Entry(NamedTuple):
    """Where a pass can start again."""

    residual: str
    """The hook point of what it starts from."""
    layer: int
    direct: bool
    """Whether that residual is the activation to edit."""


class Started(NamedTuple):
    """A batch that `resume` works on."""

    run: Run
    """Its unedited run."""
    residuals: dict[str, Tensor]
    """The activations where a pass can start again."""
    left_out: dict[str, Tensor]
    """Its outlying positions, by hook point."""


def edited_at(edit: Edit, tensor: Tensor, positions: Positions, mask: Tensor | None) -> Tensor:
    """A batch's activations [batch, pos, ...] with an edit at some positions, the others as they are."""
    edited = edit(tensor)
    if positions is None or tensor.ndim == 2:
        return edited
    where = selected(positions, mask, (tensor.shape[0], tensor.shape[1]))
    assert where is not None
    where = where.to(tensor.device).view(*where.shape, *[1] * (tensor.ndim - 2))
    return torch.where(where, edited, tensor)


class Downstream:
    """What lies downstream of hook points: run it again with the activations there edited.

    Args:
        model: the model; frozen and in eval mode while this is in use.
        hook_points: where `resume` may edit: one name, or several.
        positions: where an edit applies.
        outliers: positions left as they are for their norm in the unedited run.
    """

    def __init__(
        self,
        model: Any,
        hook_points: str | Sequence[str],
        positions: Positions = None,
        outliers: Outliers | None = None,
    ) -> None:
        self._model = model
        self._names = [hook_points] if isinstance(hook_points, str) else list(hook_points)
        self._positions = checked_positions(positions)
        self._outliers = outliers
        self._left_out: dict[str, Tensor] = {}
        # Hooks of the user's an entry half-way would meet twice, or not at all.
        found = {} if has_hooks(model) else {name: _entry(model, name) for name in self._names}
        self._entries = {name: entry for name, entry in found.items() if entry is not None}
        self._restarts: dict[tuple[_Entry, bool], bool] = {}
        self._checked = False
        self._run: Run
        self._residuals: dict[str, Tensor] = {}
        self._order: list[str] = []
        self.widths: dict[str, int] = {}
        """Of the hook points, all heads together; known after `start`."""

    def start(self, batch: Batch) -> Run:
        """Run a batch unedited; `resume` then works on it."""
        check_tokens(self._model, batch)
        device = device_of(self._model)
        inputs = batch.inputs.detach().to(device)
        mask = None if batch.mask is None else batch.mask.to(device)
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(tensor: Tensor, hook: Any) -> None:
                seen.setdefault(name, tensor)

            return hook

        residuals = [entry.residual for entry in self._entries.values()]
        names = dict.fromkeys([*self._names, *residuals])
        with (
            hooked(self._model, [(name, keep(name)) for name in names]),
            first_seen(self._model, () if self._checked else self._names) as first,
        ):
            output = run_model(self._model, inputs, mask)
        is_tokens = inputs.ndim == 2 and not inputs.is_floating_point()
        n_positions = inputs.shape[1] if is_tokens else None
        for name in self._names:
            if name not in seen:
                raise ValueError(never_fired(self._model, name))
            check_activation(name, seen[name], len(inputs), n_positions)
            self.widths[name] = seen[name].shape[min(2, seen[name].ndim - 1) :].numel()
        self._run = Run(output, inputs, mask, batch.sequence_index)
        if self._outliers is not None:
            self._leave_out({name: seen[name] for name in self._names}, mask, self._outliers)
        self._order = list(seen)
        self._residuals = {name: seen[name] for name in residuals if name in seen}
        if not self._checked:
            for name in self._names:
                check_feeds(self._model, self._run, name, first[name])
            self._checked = True
        return self._run

    def resume(self, edit: Edit | Mapping[str, Edit]) -> Any:
        """The model's output on the batch, edited as the pass goes by.

        Args:
            edit: at the one hook point, or edits by hook point: a later one gets what the earlier
                ones have made of its activations.
        """
        edits = edit if isinstance(edit, Mapping) else dict.fromkeys(self._names, edit)
        first = min(edits, key=self._order.index)
        if (entry := self._entries.get(first)) and self._can_restart(first, entry):
            return self._from_layer(entry, first, edits)
        with hooked(self._model, self._hooks(edits)):
            return run_model(self._model, self._run.inputs, self._run.mask)

    @property
    def state(self) -> Started:
        """The batch that `resume` works on."""
        return Started(self._run, self._residuals, self._left_out)

    def restore(self, state: Started) -> None:
        """Let `resume` work on the batch of a state again."""
        self._run, self._residuals, self._left_out = state

    def counted(self, name: str, tensor: Tensor) -> Bool[Tensor, "batch pos"]:
        """Where the activations [batch, pos, …] at a hook point are real, selected and no outliers."""
        shape = (tensor.shape[0], tensor.shape[1])
        where = selected(self._positions, self._run.mask, shape)
        if where is None:
            where = torch.ones(shape, dtype=torch.bool, device=tensor.device)
        left = self._left_out.get(name)
        return where.to(tensor.device) & (True if left is None else ~left)

    def restarts(self, hook_point: str) -> bool:
        """Whether `resume` starts at the hook point's layer, and not where the model does."""
        entry = self._entries.get(hook_point)
        return entry is not None and self._can_restart(hook_point, entry)

    @property
    def order(self) -> list[str]:
        """The hook points as they fire; least is downstream of the last."""
        return sorted(self._names, key=self._order.index)

    def _from_layer(self, entry: _Entry, first: str, edits: Mapping[str, Edit]) -> Any:
        residual, start = self._residuals[entry.residual], {"start_at_layer": entry.layer}
        if entry.direct:
            residual = self._apply(first, edits[first], residual)
            edits = {name: edit for name, edit in edits.items() if name != first}
        with hooked(self._model, self._hooks(edits)):
            return run_model(self._model, residual, self._run.mask, **start)

    def _hooks(self, edits: Mapping[str, Edit]) -> list[tuple[str, Callable[..., Tensor]]]:
        def hook(name: str, edit: Edit) -> Callable[..., Tensor]:
            return lambda tensor, hook: self._apply(name, edit, tensor)

        return [(name, hook(name, edit)) for name, edit in edits.items()]

    def _apply(self, name: str, edit: Edit, tensor: Tensor) -> Tensor:
        edited = edited_at(edit, tensor, self._positions, self._run.mask)
        if (left := self._left_out.get(name)) is None:
            return edited
        return torch.where(left.view(*left.shape, *[1] * (tensor.ndim - 2)), tensor, edited)

    def _leave_out(
        self, seen: Mapping[str, Tensor], mask: Tensor | None, outliers: Outliers
    ) -> None:
        """Find the outlying positions of a batch by its unedited activations, and count them."""
        self._left_out = {}
        for name, tensor in seen.items():
            if tensor.ndim > 2:
                where = selected(self._positions, mask, (tensor.shape[0], tensor.shape[1]))
                left = outliers.among(tensor, mask)
                left = left if where is None else left & where.to(left.device)
                self._left_out[name] = left
                outliers.see(name, left, mask)

    def _can_restart(self, name: str, entry: _Entry) -> bool:
        """Whether the model can start again for this hook point: asked once, with and without padding."""
        if self._masks_itself():
            return False
        key = (entry, self._run.mask is not None)
        if key not in self._restarts:
            with torch.no_grad():
                self._restarts[key] = self._restarts_alike(name, entry)
        return self._restarts[key]

    def _masks_itself(self) -> bool:
        """Whether the model may leave out pads before a sequence that no mask tells of.

        HookedTransformer does, where its tokenizer pads on the left, but not in a pass from a layer on.
        """
        inputs, tokenizer = self._run.inputs, getattr(self._model, "tokenizer", None)
        if self._run.mask is not None or getattr(tokenizer, "padding_side", "right") != "left":
            return False
        pad = getattr(tokenizer, "pad_token_id", None)
        return pad is not None and inputs.ndim == 2 and bool((inputs[:, 0] == pad).any())

    def _restarts_alike(self, name: str, entry: _Entry) -> bool:
        """Whether starting at the layer, unedited, gives what the whole model gave: asked of the
        model itself, since classes and versions differ in it."""
        output = self._run.output
        if entry.residual not in self._residuals or not isinstance(output, Tensor):
            return False
        try:
            again = self._from_layer(entry, name, {name: lambda tensor: tensor})
        except (NotImplementedError, TypeError, ValueError, IndexError, RuntimeError):
            return False
        if not isinstance(again, Tensor) or again.shape != output.shape:
            return False
        # A logit may be -inf by design; infinity minus itself would hide what the others say.
        found, expected = finite(again, output)
        scale = float(expected.abs().max())
        alike = torch.equal(again.isfinite(), output.isfinite())
        return alike and torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


def _entry(model: Any, hook_point: str) -> _Entry | None:
    """Where a pass can start again for this hook point, if it is in a block."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_point)
    if match is None:
        return None
    layer, rest = int(match[1]), match[2]
    if rest == "hook_resid_post":
        return _Entry(hook_point, layer + 1, True)
    if rest == "hook_resid_pre":
        return _Entry(hook_point, layer, True)
    residual = f"blocks.{layer}.hook_resid_pre"
    return _Entry(residual, layer, False) if residual in model.hook_dict else None
