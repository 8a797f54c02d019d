"""The hooks: activations and gradients of one batch, to their sinks as they arrive.

The only place in the package that runs hooks for gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.data.positions import Positions, checked_positions, selected
from tl_weighted_pca.models.frozen import check_tokens, device_of, run_model
from tl_weighted_pca.models.hook_points import check_activation, has_hooks, resolve
from tl_weighted_pca.models.recompute import SecondRun
from tl_weighted_pca.models.run import Run
from tl_weighted_pca.moments.accumulator import NonFiniteError
from tl_weighted_pca.objectives.losses import Objective, objective_name
from tl_weighted_pca.streaming.firing import Site
from tl_weighted_pca.support.interrupts import uninterrupted


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


class _AllSeen(Exception):
    """Ends a forward pass whose last hook point has fired."""


class Recorder:
    """Runs batches through a hooked model and hands what the hook points see to sinks.

    Args:
        sinks: what takes the activations and gradients, by hook point name.
        objectives: by key; none for activations alone, with no graph.
        positions: which positions count.
    """

    def __init__(
        self,
        sinks: Mapping[str, Sink],
        objectives: Mapping[str, Objective],
        positions: Positions,
    ) -> None:
        self._sinks = dict(sinks)
        self._objectives = dict(objectives)
        self._positions = checked_positions(positions)
        self._sites: dict[str, Site] = {}
        self._leaves: list[Tensor] = []
        self._batch: Batch | None = None
        self._number = -1
        self._now: tuple[str, float] = ("", 1.0)
        # A hook of the user's may edit in place what it gets: it then gets a copy.
        self._copies = False
        self.again = SecondRun()
        """While part of the model is computed again, its hooks show nothing new."""

    def hooks(self, model: Any) -> list[tuple[str, Callable[..., Any]]]:
        """Forward hooks for the sinks' hook points, and for those that objectives look at."""
        looked_at = [p for o in self._objectives.values() for p in getattr(o, "hook_points", ())]
        names = dict.fromkeys([*self._sinks, *(resolve(model, looked_at) if looked_at else ())])
        self._copies = has_hooks(model)
        return [(name, self._hook(name)) for name in names]

    def skip(self) -> None:
        """Count a batch that an earlier run has recorded."""
        self._number += 1

    def run(self, model: Any, batch: Batch) -> int:
        """Run one batch and commit it; how many tokens it had.

        A batch that fails is left out whole.
        """
        self._number += 1
        try:
            self._record(model, batch)
            self._check_finite()
            with uninterrupted():
                for sink in self._sinks.values():
                    sink.commit()
        except BaseException:
            for sink in self._sinks.values():
                sink.discard()
            raise
        finally:
            for leaf in filter(lambda tensor: tensor.is_leaf, self._leaves):
                leaf.requires_grad_(False)  # it may be a buffer of the model's
            self._sites, self._leaves, self._batch = {}, [], None
        return batch.n_tokens

    def _record(self, model: Any, batch: Batch) -> None:
        check_tokens(model, batch)
        device = device_of(model)
        # Tensors of our own: the graph may start on the very inputs, and keep the others.
        inputs = _kept(batch.inputs.detach().to(device))
        mask = None if batch.mask is None else _kept(batch.mask.to(device))
        index = _kept(batch.sequence_index)
        self._batch = Batch(inputs, mask, index)
        self._sites = {}
        try:
            output = run_model(model, inputs, mask)
        except _AllSeen:
            output = None
        for name in self._sinks:
            if name not in self._sites:
                raise ValueError(
                    f"Hook point {name!r} never fired in a forward pass of this model: it exists, but "
                    "nothing goes through it; choose another (model.hook_dict lists them)."
                )
        if not self._objectives:
            return
        for name in self._sinks:
            if self._sites[name].was_edited:
                raise ValueError(
                    f"What follows hook point {name!r} changes its activations in place, so that they are "
                    "lost: let it make a new tensor."
                )
        activations = {name: site.passed[0] for name, site in self._sites.items()}
        run = Run(output, inputs, mask, index, activations)
        values = {
            key: self._values(key, self._asked(objective, run))
            for key, objective in self._objectives.items()
        }
        del output, run, activations
        left = sum(len(samples) for samples in values.values())
        for name, sink in self._sinks.items():
            sink.begin(*self._cut(self._sites[name].passed[0]), gradients_to_come=left)
        for key, samples in values.items():
            for sample in samples:
                left -= 1
                self._backward(key, sample.sum(), 1.0 / len(samples), last=left == 0)

    def _asked(self, objective: Objective, run: Run) -> Any:
        """The objective's values; runs of the model of its own are not recorded."""
        batch, self._batch = self._batch, None
        try:
            return objective(run)
        finally:
            self._batch = batch

    def _values(self, key: str, values: Any) -> Tensor:
        """An objective's values [samples, batch], checked."""
        objective = self._objectives[key]
        assert self._batch is not None
        n = len(self._batch.inputs)
        if not isinstance(values, Tensor) or values.ndim not in (1, 2) or values.shape[-1] != n:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"The objective {objective_name(objective)} gave {got}; expected one scalar per sequence, "
                f"shape ({n},), or (samples, {n})."
            )
        if not values.requires_grad:
            raise ValueError(
                f"The objective {objective_name(objective)} carries no gradient to "
                f"{', '.join(self._sinks)}: they do not influence it, or it was detached."
            )
        if not bool(values.detach().isfinite().all()):
            self._name_first_non_finite()
            raise NonFiniteError(
                f"The objective {objective_name(objective)} is NaN or infinite in batch {self._number}, "
                "though all activations are finite: look at its inputs."
            )
        return values if values.ndim == 2 else values[None]

    def _backward(self, key: str, value: Tensor, scale: float, last: bool) -> None:
        self._now = (key, scale)
        for site in self._sites.values():
            site.expect()
        torch.autograd.grad(value, self._leaves, retain_graph=not last, allow_unused=True)
        for name, sink in self._sinks.items():
            site = self._sites[name]
            if site.gradient is None and site.missing == len(site.passed):
                if self._number == 0:
                    raise ValueError(
                        f"Hook point {name!r} carries no gradient: the objective "
                        f"{objective_name(self._objectives[key])} does not depend on it."
                    )
                sink.gradient(*self._cut(torch.zeros_like(site.passed[0]))[:1], key, scale)
            elif site.missing:  # some firings lead nowhere
                self._deliver(name)

    def _hook(self, name: str) -> Callable[..., Any]:
        recorded = name in self._sinks

        def see(tensor: Tensor, hook: Any) -> Tensor | None:
            batch = self._batch
            if batch is None:
                return None
            if self.again.now:  # what follows must be what followed the first time
                return self._handed_on(tensor) if recorded else None
            site = self._sites.setdefault(name, Site())
            if any(tensor is ours for ours in site.handed_on):
                return None  # one firing, told under several names
            again = bool(site.passed)
            site.see(tensor)
            if not recorded:
                return None
            if not again:
                is_tokens = batch.inputs.ndim == 2 and not batch.inputs.is_floating_point()
                n_positions = batch.inputs.shape[1] if is_tokens else None
                check_activation(name, tensor, len(batch.inputs), n_positions)
            elif self._number == 0:
                self._check_same(name, site, tensor)
            if not self._objectives:
                if not again:
                    self._sinks[name].begin(*self._cut(tensor.clone() if self._copies else tensor))
                if all(known in self._sites for known in self._sinks):
                    raise _AllSeen
                return None
            # The graph starts in place, on the tensor itself: where a skip path reads it too, as at
            # the bridge's hook_resid_mid, a detached copy would lose that path's gradient. And a view
            # is handed on: where the hook point converts shapes, the model goes on with what it gets.
            if not tensor.requires_grad:
                tensor.requires_grad_()
                self._leaves.append(tensor)
            tensor.register_hook(lambda gradient: self._arrive(name, gradient))
            site.handed_on.append(self._handed_on(tensor))
            return site.handed_on[-1]

        return see

    def _handed_on(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if self._copies else tensor.view_as(tensor)

    def _arrive(self, name: str, gradient: Tensor) -> None:
        if self._sites[name].arrive(gradient):
            self._deliver(name)

    def _deliver(self, name: str) -> None:
        site, (key, scale) = self._sites[name], self._now
        assert site.gradient is not None
        self._sinks[name].gradient(self._cut(site.gradient)[0], key, scale)
        site.gradient = None

    def _cut(self, tensor: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tensor as [batch, pos, …] with the positions that count, and the mask of the rest."""
        assert self._batch is not None
        tensor = tensor.detach()
        if tensor.ndim == 2:
            return tensor[:, None], None
        mask, positions = self._batch.mask, self._positions
        if mask is None and isinstance(positions, slice) and (positions.step or 1) > 0:
            return tensor[:, positions], None
        mask = selected(positions, mask, (tensor.shape[0], tensor.shape[1]))
        return tensor, None if mask is None else mask.to(tensor.device)

    def _check_same(self, name: str, site: Site, tensor: Tensor) -> None:
        first = site.passed[0]
        if tensor.shape != first.shape or not torch.equal(tensor.detach(), first.detach()):
            raise ValueError(
                f"Hook point {name!r} fires several times in one pass with different values, so it has "
                "no single activation: choose a hook point inside or around that module."
            )

    def _check_finite(self) -> None:
        flags = {name: sink.check() for name, sink in self._sinks.items()}
        for name, scalars in flags.items():
            if scalars and not bool(torch.isfinite(torch.stack([s.sum() for s in scalars])).all()):
                self._name_first_non_finite()
                raise NonFiniteError(
                    f"The gradients at hook point {name!r} hold NaN or infinity in batch "
                    f"{self._number}; the batches before it are kept."
                )

    def _name_first_non_finite(self) -> None:
        """Raise for the first hook point, in the order of the pass, with a non-finite activation."""
        for name, site in self._sites.items():
            if name not in self._sinks:
                continue
            values, mask = self._cut(site.passed[0])
            values = values if mask is None else values[mask]
            if not bool(torch.isfinite(values).all()):
                raise NonFiniteError(
                    f"The activations at hook point {name!r} hold NaN or infinity in batch "
                    f"{self._number}; the batches before it are kept."
                )


def _kept(tensor: Tensor) -> Tensor:
    """The tensor, as one that a graph may hold on to."""
    return tensor.clone() if tensor.is_inference() else tensor
