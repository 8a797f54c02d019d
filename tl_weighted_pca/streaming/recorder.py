"""The hooks: activations and gradients of one batch, to their sinks as they arrive.

The only place in the package that runs hooks for gradients.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.data.positions import Outliers, Positions
from tl_weighted_pca.models.frozen import check_tokens, device_of, run_model
from tl_weighted_pca.models.hook_points import (
    check_activation,
    has_hooks,
    hooked,
    never_fired,
    passing,
    resolve,
)
from tl_weighted_pca.models.readers import Readers, find_readers
from tl_weighted_pca.models.recompute import SecondRun
from tl_weighted_pca.models.run import Run
from tl_weighted_pca.moments.accumulator import NonFiniteError
from tl_weighted_pca.moments.running_sums import all_finite
from tl_weighted_pca.objectives.losses import Objective, checked_values, objective_name
from tl_weighted_pca.streaming.counted import CountedPositions
from tl_weighted_pca.streaming.firing import Site, edited_in_place
from tl_weighted_pca.streaming.graph import Graph, kept
from tl_weighted_pca.streaming.sink import Sink
from tl_weighted_pca.support.interrupts import uninterrupted


class _AllSeen(Exception):
    """Ends a forward pass whose last hook point has fired."""


class Recorder:
    """Runs batches through a hooked model and hands what the hook points see to sinks.

    Args:
        sinks: what takes the activations and gradients, by hook point name.
        objectives: by key; none for activations alone, with no graph.
        activations_only: sinks that take no gradients; nothing of theirs waits for the backward pass.
        positions, outliers, note: which positions count: see `CountedPositions`.
    """

    def __init__(
        self,
        sinks: Mapping[str, Sink],
        objectives: Mapping[str, Objective],
        positions: Positions,
        outliers: Outliers | None = None,
        *,
        activations_only: Container[str] = (),
        note: bool = False,
    ) -> None:
        self._sinks = dict(sinks)
        self._objectives = dict(objectives)
        self._graded = {n: s for n, s in sinks.items() if objectives and n not in activations_only}
        self._counted = CountedPositions(positions, outliers, note)
        self._sites: dict[str, Site] = {}
        self._batch: Batch | None = None
        self._number = -1
        self._now: tuple[str, float] = ("", 1.0)
        self._copies, self._graph = False, Graph(False)
        self._looked_at: list[str] = []
        self._readers: Readers | None = None
        self.recounted: frozenset[str] | None = frozenset()
        """Hook points whose gradients count readers that those of earlier versions did not; known after
        a batch. None: there must be none, since what is recorded is added to moments of such a version."""
        self.again = SecondRun()
        """While part of the model is computed again, its hooks show nothing new."""

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        """See what passes the sinks' hook points, and those that objectives look at."""
        looked_at = [p for o in self._objectives.values() for p in getattr(o, "hook_points", ())]
        self._looked_at = resolve(model, looked_at) if looked_at else []
        self._copies, points = has_hooks(model), model.hook_dict
        names = [*self._sinks, *self._looked_at]
        see = {name: partial(self._see, name, points[name]) for name in names}
        # Some modules of the bridge go another way where hooks of TransformerLens's are on.
        watch = [(name, lambda tensor, hook: None) for name in see]
        with hooked(model, watch), passing(points, see):
            yield

    def skip(self) -> None:
        """Count a batch that an earlier run has recorded, and has told of its outliers."""
        self._number += 1
        self._counted.notes = False

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
                self._counted.commit(batch)
        except BaseException:
            for sink in self._sinks.values():
                sink.discard()
            raise
        finally:
            self._graph.end()
            self._counted.forget()
            self._sites, self._batch, self._graph = {}, None, Graph(self._copies)
        return batch.n_tokens

    def _record(self, model: Any, batch: Batch) -> None:
        check_tokens(model, batch)
        device = device_of(model)
        # Tensors of our own: the graph may start on the very inputs, and keep the others.
        inputs = kept(batch.inputs.detach().to(device))
        mask = None if batch.mask is None else kept(batch.mask.to(device))
        index = kept(batch.sequence_index)
        starts = self._starts(model, inputs, mask)
        self._batch, self._graph = Batch(inputs, mask, index), Graph(self._copies)
        fed = self._start(inputs) if "" in starts else None
        try:
            with passing(model.hook_dict, {name: self._start for name in starts if name}):
                output = run_model(model, inputs if fed is None else fed, mask)
        except _AllSeen:
            output = None
        except RuntimeError as error:
            if "leaf Variable" in str(error):  # of ours, which the model writes over
                raise ValueError(edited_in_place(next(iter(self._sites), ""))) from error
            raise
        for name in self._sinks:
            if name not in self._sites:
                raise ValueError(never_fired(model, name))
        if not self._objectives:
            return
        for name in self._graded:
            if self._sites[name].was_edited:
                raise ValueError(edited_in_place(name))
        activations = {name: site.activations for name, site in self._sites.items()}
        run = Run(output, inputs, mask, index, activations)
        values = {
            key: self._values(key, self._asked(objective, run))
            for key, objective in self._objectives.items()
        }
        del output, run, activations
        left = sum(len(samples) for samples in values.values())
        for name, sink in self._graded.items():
            sink.begin(*self._cut(name, self._sites[name].activations), gradients_to_come=left)
        for key, samples in values.items():
            for sample in samples:
                left -= 1
                self._backward(key, sample.sum(), 1.0 / len(samples), last=left == 0)

    def _starts(self, model: Any, inputs: Tensor, mask: Tensor | None) -> frozenset[str]:
        """Where graphs start besides the hook points themselves; the first batch is asked."""
        if not self._objectives:
            return frozenset()
        if self._readers is None:
            names, also = list(self._graded), self._looked_at
            self._readers = find_readers(
                model, names, inputs, mask, also=also, with_hooks=self._copies
            )
            recounted = self._readers.recounted
            if self.recounted is None and recounted:
                raise ValueError(
                    f"The checkpoint is of an earlier version, whose gradients at {', '.join(recounted)} "
                    "count fewer readers: pass another path to start anew."
                )
            self.recounted = recounted
        return self._readers.starts

    def _start(self, tensor: Tensor) -> Tensor | None:
        return None if self._batch is None else self._graph.start(tensor)

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
        values = checked_values(objective, values, len(self._batch.inputs), list(self._graded))
        if not bool(values.detach().isfinite().all()):
            self._name_first_non_finite()
            raise NonFiniteError(
                f"The objective {objective_name(objective)} is NaN or infinite in batch {self._number}, "
                "though all activations are finite: look at its inputs."
            )
        return values

    def _backward(self, key: str, value: Tensor, scale: float, last: bool) -> None:
        self._now = (key, scale)
        for name in self._graded:
            self._sites[name].expect()
        assert self._readers is not None
        ends = [tensor for name in self._readers.outermost for tensor in self._sites[name].passed]
        torch.autograd.grad(value, ends, retain_graph=not last, allow_unused=True)
        for name, sink in self._graded.items():
            site = self._sites[name]
            if site.missing == len(site.passed):
                if self._number == 0:
                    raise ValueError(
                        f"Hook point {name!r} carries no gradient: the objective "
                        f"{objective_name(self._objectives[key])} does not depend on it."
                    )
                zeros = torch.zeros_like(site.activations)
                sink.gradient(self._cut(name, zeros)[0], key, scale)
            elif site.missing:  # some firings lead nowhere
                self._deliver(name)

    def _see(self, name: str, point: Any, tensor: Tensor) -> Tensor | None:
        batch, recorded = self._batch, name in self._sinks
        if batch is None:
            return None
        if self.again.now:  # what follows must be what followed the first time
            return self._graph.view(tensor) if name in self._graded else None
        site = self._sites.setdefault(name, Site(getattr(point, "hook_conversion", None)))
        original = self._graph.original(tensor)
        if any(original is known for known in site.passed):
            return None
        again = bool(site.passed)
        if recorded and not again:
            is_tokens = batch.inputs.ndim == 2 and not batch.inputs.is_floating_point()
            n_positions = batch.inputs.shape[1] if is_tokens else None
            check_activation(name, site.shown(original), len(batch.inputs), n_positions)
        elif recorded and self._number == 0:
            self._check_same(name, site, original)
        site.see(original)
        if not recorded:
            return None
        if name not in self._graded:
            if not again:
                seen = site.activations.clone() if self._copies else site.activations
                self._sinks[name].begin(*self._cut(name, seen))
            if not self._objectives and all(known in self._sites for known in self._sinks):
                raise _AllSeen
            return None
        view = self._graph.view(tensor)
        original.register_hook(lambda gradient: self._arrive(name, gradient))
        return view

    def _arrive(self, name: str, gradient: Tensor) -> None:
        if self._sites[name].arrive(gradient):
            self._deliver(name)

    def _deliver(self, name: str) -> None:
        (key, scale), gradient = self._now, self._sites[name].taken()
        assert gradient is not None
        self._sinks[name].gradient(self._cut(name, gradient)[0], key, scale)

    def _cut(self, name: str, tensor: Tensor) -> tuple[Tensor, Tensor | None, int | None]:
        """As `CountedPositions.cut`."""
        assert self._batch is not None
        return self._counted.cut(name, tensor, self._batch)

    def _check_same(self, name: str, site: Site, tensor: Tensor) -> None:
        first = site.passed[0]
        if tensor.shape != first.shape or not torch.equal(tensor.detach(), first.detach()):
            raise ValueError(
                f"Hook point {name!r} fires several times in one pass with different values, so it has "
                "no single activation: choose a hook point inside or around that module."
            )

    def _check_finite(self) -> None:
        scalars = {name: sink.check() for name, sink in self._sinks.items()}
        if all_finite([scalar for each in scalars.values() for scalar in each]):
            return
        self._name_first_non_finite()
        name = next(name for name, each in scalars.items() if not all_finite(each))
        raise self._non_finite("gradients", name)

    def _name_first_non_finite(self) -> None:
        """Raise for the first hook point, in the order of the pass, with a non-finite activation."""
        for name, site in self._sites.items():
            if name not in self._sinks:
                continue
            values, mask, _ = self._cut(name, site.activations)
            if not bool(torch.isfinite(values if mask is None else values[mask]).all()):
                raise self._non_finite("activations", name)

    def _non_finite(self, what: str, name: str) -> NonFiniteError:
        return NonFiniteError(
            f"The {what} at hook point {name!r} hold NaN or infinity in batch {self._number}; the batches "
            "before it are kept."
        )
