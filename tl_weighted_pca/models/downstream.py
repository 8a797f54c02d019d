"""What lies downstream of hook points, run again with the activations there edited."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.data.positions import (
    Outliers,
    Positions,
    checked_positions,
    outlying,
    selected,
)
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
        self._run = Run(output, inputs, mask, batch.sequence_index)
        if self._outliers is not None:
            self._leave_out({name: seen[name] for name in self._names}, mask, self._outliers)
        self._order = list(seen)
        self._residuals = {name: seen[name] for name in residuals if name in seen}
        if not self._checked:
            for name in self._names:
                self._check_feeds(name, first[name])
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
    def state(self) -> tuple[Run, dict[str, Tensor]]:
        """The batch that `resume` works on: its run, and the activations where a pass can start again."""
        return self._run, self._residuals

    def restore(self, state: tuple[Run, dict[str, Tensor]]) -> None:
        """Let `resume` work on the batch of a state again."""
        self._run, self._residuals = state

    def restarts(self, hook_point: str) -> bool:
        """Whether `resume` starts at the hook point's layer, and not where the model does."""
        entry = self._entries.get(hook_point)
        return entry is not None and self._can_restart(hook_point, entry)

    @property
    def last(self) -> str:
        """The hook point that fires last: least is downstream of it."""
        return max(self._names, key=self._order.index)

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
                left = outlying(tensor, mask, outliers.times)
                left = left if where is None else left & where.to(left.device)
                self._left_out[name] = left
                outliers.see(name, left, mask)

    def _can_restart(self, name: str, entry: _Entry) -> bool:
        """Whether the model can start again for this hook point: asked once, with and without padding."""
        key = (entry, self._run.mask is not None)
        if key not in self._restarts:
            with torch.no_grad():
                self._restarts[key] = self._restarts_alike(name, entry)
        return self._restarts[key]

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
        found, expected = _finite(again, output)
        scale = float(expected.abs().max())
        alike = torch.equal(again.isfinite(), output.isfinite())
        return alike and torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)

    def _check_feeds(self, name: str, first: str) -> None:
        """Raise unless what the hook hands on is what all the rest of the model reads.

        An edit is handed on as a copy, then made in place as well, where the same tensor is seen `first`.
        Where the two outputs differ, something reads the tensor past the hook: at the bridge's
        `hook_resid_mid`, the skip path; at its `attn.v.hook_in`, Q and K.
        """
        reference = self._run.output
        if not isinstance(reference, Tensor):
            return
        # Never write into the weights, nor into the caller's data.
        kept = [*self._model.parameters(), self._run.inputs]
        ours = {tensor.untyped_storage().data_ptr() for tensor in kept}

        def shaken(tensor: Tensor) -> Tensor:
            noise = torch.randn(
                tensor.shape, generator=torch.Generator().manual_seed(0), device="cpu"
            )
            scale = tensor.float().square().mean().sqrt().clamp(min=1e-6)
            return tensor + (noise.to(tensor.device) * scale).to(tensor.dtype)

        def copied(tensor: Tensor, hook: Any) -> Tensor:
            return shaken(tensor)

        def in_place(tensor: Tensor, hook: Any) -> Tensor:
            repeated = any(
                s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)
            )
            if repeated or tensor.untyped_storage().data_ptr() in ours:
                return shaken(tensor)
            return tensor.copy_(shaken(tensor)).view_as(
                tensor
            )  # the same would be no edit to a norm

        def output(name: str, hook: Callable[..., Tensor]) -> Any:
            with hooked(self._model, [(name, hook)]):
                return run_model(self._model, self._run.inputs, self._run.mask)

        everywhere = output(first, in_place)
        reference, by_copy, in_place_too = _finite(reference, output(name, copied), everywhere)
        if not reference.numel() or not bool(reference.any()):
            return  # nothing to compare; a model that gives nothing but NaN is for its score to say
        effect = float((in_place_too - reference).abs().max())
        scale = float(reference.abs().max())
        handed_on = float((by_copy - reference).abs().max())
        if handed_on <= 1e-6 * scale:
            raise ValueError(
                f"Hook point {name!r} does not feed the rest of the model: what a hook "
                f"hands on there changes nothing. Ablate at {_alternatives(self._model, name)}."
            )
        if float((by_copy - in_place_too).abs().max()) > 1e-2 * max(effect, handed_on):
            best, here = _alternatives(self._model, name), type(self._model).__name__
            past = "a skip path goes past it"
            if first != name:
                past = f"{first!r} sees it first, and others read it too"
                if torch.equal(output(first, copied), everywhere):
                    best = f"{first!r}, which feeds them all"
            raise ValueError(
                f"Hook point {name!r} feeds only a part of what reads that activation on this {here}: "
                f"{past}, so an ablation there would not ablate. Ablate at {best}."
            )


def _finite(*outputs: Tensor) -> list[Tensor]:
    """The outputs, zero wherever one of them is not finite."""
    finite = torch.stack([output.isfinite() for output in outputs]).all(0)
    return [output.masked_fill(~finite, 0.0) for output in outputs]


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


def _alternatives(model: Any, hook_point: str) -> str:
    block = re.match(r"blocks\.\d+\.", hook_point)
    known = model.hook_dict
    names = [f"{block[0]}{name}" for name in ("hook_resid_pre", "hook_resid_post")] if block else []
    names = [name for name in names if name in known and name != hook_point]
    return " or ".join(names) if names else "a hook point on the residual stream"
