"""What reads the tensors that pass hook points, and where a graph must start to hold all of it.

The gradient at a hook point is ∂L/∂x, x the tensor that the hook receives, over all readers of x. A graph
that starts in place at the hook point holds them all unless something read x before: on a bridge, modules
read one tensor in turn, and each has a hook point of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from tl_weighted_pca.models.frozen import parameters_of, run_model
from tl_weighted_pca.models.hook_points import hooked, passing
from tl_weighted_pca.support.interrupts import uninterrupted

_Edge = tuple[Any, int]
"""A tensor of a graph: the node that made it, and which of the node's outputs it is."""

_POSITIONS = 8
"""Positions of one sequence that a language model is asked with."""


@dataclass(frozen=True)
class Readers:
    """What a pass that watches every hook point has found about some of them."""

    starts: frozenset[str]
    """Where else a graph must start, so that it holds all readers of what passes these hook points."""
    outermost: frozenset[str]
    """Those that fire, once at least, downstream of no other: a backward pass to these reaches all."""
    recounted: frozenset[str]
    """Those where a graph that starts in place, at the hook point, lacks readers."""


@dataclass(frozen=True)
class _Firing:
    name: str
    tensor: int
    """The number of what passes."""
    made: _Edge
    handed_on: _Edge
    time: int


class _Trace:
    """The graph of one pass: tensors at hook points, numbered, and when they passed and were read."""

    def __init__(self) -> None:
        self.firings: list[_Firing] = []
        self.number: dict[_Edge, int] = {}
        self.parent: dict[_Edge, _Edge] = {}
        self.leaves: list[Tensor] = []

    def see(self, name: str, tensor: Any, handing_on: bool) -> Tensor | None:
        """A tensor passes; gives the view, counted as the same tensor, that is to be handed on."""
        is_float = isinstance(tensor, Tensor) and tensor.is_floating_point()
        if not is_float or not torch.is_grad_enabled():  # shown, and read by nothing
            return None
        if not tensor.requires_grad:
            self.leaves.append(tensor.requires_grad_())
        view = tensor.view_as(tensor)
        edge, new = _edge(tensor), _edge(view)
        number = self.number.setdefault(edge, len(self.number))
        self.firings.append(_Firing(name, number, edge, new, new[0]._sequence_nr()))
        if not handing_on:
            return None
        self.number[new], self.parent[new] = number, edge
        return view

    def readers(self, roots: Iterable[_Edge]) -> dict[int, list[tuple[int, _Edge]]]:
        """By number of a tensor: when it was read, and as which view, by what leads to the roots."""
        found: dict[int, list[tuple[int, _Edge]]] = {}

        def note(node: Any, edge: _Edge) -> bool:
            if edge in self.number and self.parent.get((node, 0)) != edge:
                found.setdefault(self.number[edge], []).append((node._sequence_nr(), edge))
            return True

        _walk([node for node, _ in roots], note)
        return found

    def upstream(self, edge: _Edge, stops: Callable[[int, int], bool]) -> dict[int, int]:
        """Tensors nearest upstream that `stops(number, time of reading)`, and when they were read."""
        own = self.number[edge]
        found: dict[int, int] = {}

        def note(node: Any, before: _Edge) -> bool:
            number = self.number.get(before, own)
            if number == own or not stops(number, node._sequence_nr()):
                return True
            found[number] = max(node._sequence_nr(), found.get(number, 0))
            return False

        _walk([edge[0]], note)
        return found

    def latest(self, number: int, before: int) -> _Firing | None:
        """The latest firing with a tensor before a time."""
        past = [f for f in self.firings if f.tensor == number and f.time < before]
        return past[-1] if past else None

    def start(self, firing: _Firing, read: int) -> _Firing | None:
        """Where a graph can start that holds all readers of what fires, the first of them at `read`.

        At a hook point that saw the same tensor before that, or else upstream, so that it is made inside.
        """
        if (earlier := self.latest(firing.tensor, read)) is not None:
            return earlier
        above = self.upstream(
            firing.made, lambda number, time: self.latest(number, time) is not None
        )
        starts = [self.latest(number, time) for number, time in above.items()]
        return max((f for f in starts if f is not None), key=lambda f: f.time, default=None)

    def goes_past(self, edge: _Edge, firing: _Firing) -> bool:
        """Whether who reads that view of a tensor reads it past the hook point."""
        while edge != firing.handed_on and edge in self.parent:
            edge = self.parent[edge]
        return edge != firing.handed_on


def _walk(nodes: list[Any], past: Callable[[Any, _Edge], bool]) -> None:
    """Go up a graph, each node once: `past(node, edge)` says whether to go on along an edge."""
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            nodes += [
                edge[0] for edge in node.next_functions if edge[0] is not None and past(node, edge)
            ]


def find_readers(
    model: Any,
    names: Sequence[str],
    inputs: Tensor,
    mask: Tensor | None,
    *,
    also: Sequence[str] = (),
    with_hooks: bool = False,
) -> Readers:
    """Run the model once, and see where the tensors at hook points come from and what reads them.

    A language model is asked with the first tokens of one sequence. The graph keeps no activations.

    Args:
        model: frozen, as `quiet` leaves it.
        names: hook points.
        inputs: a batch of what the model is fed, on its device.
        mask: its padding.
        also: other hook points that the objective looks at.
        with_hooks: the model has hooks of the user's, which may depend on the whole batch: it is asked
            with that.

    Raises:
        ValueError: where no graph can hold all readers, or a hook that changes nothing changes the model.
    """
    if not with_hooks:
        inputs, mask = inputs[:1], None if mask is None else mask[:1]
        if hasattr(getattr(model, "cfg", None), "n_ctx") and not inputs.is_floating_point():
            inputs, mask = inputs[:, :_POSITIONS], None if mask is None else mask[:, :_POSITIONS]
    trace, points, inputs = _Trace(), model.hook_dict, inputs.clone()
    first = {id(point): name for name, point in reversed(points.items())}
    known = {name: first[id(points[name])] for name in names}

    def seeing(name: str) -> Callable[[Any], Tensor | None]:
        return lambda tensor: trace.see(name, tensor, name in known.values())

    with (
        torch.enable_grad(),
        saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing),
        _flags_kept(parameters_of(model), trace.leaves),
        hooked(model, [(name, lambda tensor, hook: None) for name in names]),
        passing(points, {name: seeing(name) for name in first.values()}),
    ):
        trace.see("", inputs, handing_on=False)
        output = run_model(model, inputs, mask)
    if not with_hooks:  # which may be random
        with torch.no_grad():
            _check_unchanged(names, run_model(model, inputs.detach(), mask), output)
    roots = [_edge(tensor) for tensor in _tensors(output) if tensor.requires_grad]
    shown = {*known.values(), *(first[id(points[name])] for name in also)}
    roots += [firing.made for firing in trace.firings if firing.name in shown]
    converted = {first[i] for i in first if getattr(points[first[i]], "hook_conversion", None)}
    return _answers(trace, known, roots, converted)


def _check_unchanged(names: Sequence[str], alone: Any, watched: Any) -> None:
    """Raise ValueError if the model computes something else while hook points are looked at."""
    for one, other in zip(_tensors(alone), _tensors(watched), strict=True):
        if not one.is_floating_point():
            continue
        error = (one - other.detach()).nan_to_num(0.0, 0.0, 0.0).float().abs().max()
        if float(error) > 0.01 * float(one.nan_to_num(0.0, 0.0, 0.0).float().abs().max()):
            raise ValueError(
                f"The model computes something else while a hook looks at {', '.join(names)}: choose "
                "other hook points, such as a norm's hook_out for its hook_normalized."
            )


def _answers(
    trace: _Trace, known: Mapping[str, str], roots: Sequence[_Edge], converted: Set[str]
) -> Readers:
    readers = trace.readers(roots)
    firings = [firing for firing in trace.firings if firing.name in known.values()]
    wanted = {firing.tensor for firing in firings}
    starts, outer, recounted = set(), set(), set()
    for firing in firings:
        # One firing that leads to no other hook point is enough: nothing else would reach its gradient.
        if not trace.upstream(firing.made, lambda number, time: number in wanted):
            outer.add(firing.name)
        read = min((time for time, _ in readers.get(firing.tensor, ())), default=firing.time)
        if read < firing.time:
            recounted.add(firing.name)
            start = trace.start(firing, read)
            if start is None:
                raise ValueError(
                    f"What passes hook point {firing.name!r} is read before any hook point at which a graph "
                    "could start, so that its whole gradient cannot be had: choose a hook point upstream."
                )
            starts.add(start.name)
        elif firing.name in converted and any(
            trace.goes_past(edge, firing) for _, edge in readers.get(firing.tensor, ())
        ):
            recounted.add(firing.name)

    def named(firsts: set[str]) -> frozenset[str]:
        return frozenset(name for name, first in known.items() if first in firsts)

    return Readers(frozenset(starts), named(outer), named(recounted))


def _edge(tensor: Tensor) -> _Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in what a model gives."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for part in output:
            yield from _tensors(part)


@contextmanager
def _flags_kept(parameters: Sequence[Tensor], leaves: Sequence[Tensor]) -> Iterator[None]:
    """Begin graphs at frozen parameters, and at leaves such as buffers; afterwards none needs gradients."""
    frozen = [p for p in parameters if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        with uninterrupted():
            for tensor in (*frozen, *leaves):
                tensor.requires_grad_(False)
