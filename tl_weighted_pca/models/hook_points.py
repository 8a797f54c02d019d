"""Hook points of a model: finding them by name, and telling what kind of thing they carry."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor

from tl_weighted_pca.support.interrupts import uninterrupted

NamesFilter = str | Sequence[str] | Callable[[str], bool]
"""A hook point's name or a glob, several, or a predicate on names: TransformerLens's `names_filter`."""


def resolve(model: Any, hook_points: NamesFilter) -> list[str]:
    """The hook points' names, each once, in the order in which they were given.

    A name stays as the user gave it; a predicate or a glob such as `blocks.*.hook_resid_post` that matches
    several aliases of one hook point (TransformerBridge has many) takes the first of them.

    Raises:
        TypeError: if the model has no hook points, or an encoder and a decoder, or a name is not a string.
        ValueError: for a name that the model does not have, or a glob that matches none, with the nearest
            names that it has.
    """
    known = getattr(model, "hook_dict", None)
    if known is None or not hasattr(model, "hooks"):
        raise TypeError(
            f"The model is a {type(model).__name__}, which has no hook points; expected a "
            "HookedTransformer, a TransformerBridge or another HookedRootModule."
        )
    config = getattr(getattr(model, "original_model", None), "config", None)
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if getattr(config, "is_encoder_decoder", False) or "HookedEncoderDecoder" in kinds:
        # TransformerLens's bridge feeds both the same tokens, where it runs such a model at all.
        raise TypeError(
            "The model has an encoder and a decoder, and data of one sequence a row do not say what the "
            "decoder is fed; expected a model of one stack of blocks."
        )
    if callable(hook_points):
        names = _selected(known, hook_points)
        if not names:
            raise ValueError(
                f"The predicate matches none of the model's {len(known)} hook points: "
                f"{', '.join(list(known)[:5])}, …"
            )
        return names
    if not isinstance(hook_points, Iterable):
        raise TypeError(
            f"hook_points is {hook_points!r}; expected a name, several, or a predicate on names."
        )
    found: dict[str, None] = {}
    for name in [hook_points] if isinstance(hook_points, str) else hook_points:
        if not isinstance(name, str):
            raise TypeError(f"A hook point is {name!r}; expected its name, a string.")
        matches = _selected(known, partial(fnmatchcase, pat=name)) if is_glob(name) else [name]
        if not matches or matches[0] not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            nearest = (
                f"the nearest are {', '.join(close)}" if close else f"it has {len(known)} others"
            )
            if is_glob(name):
                raise ValueError(f"No hook point of the model matches {name!r}: {nearest}.")
            raise ValueError(f"The model has no hook point {name!r}: {nearest}.")
        found |= dict.fromkeys(matches)
    if not found:
        raise ValueError("No hook points were given; name at least one.")
    return list(found)


def resolve_one(model: Any, hook_point: str) -> str:
    """The one hook point of that name, or that a glob matches; raises ValueError if it matches several."""
    names = resolve(model, [hook_point])
    if len(names) > 1:
        raise ValueError(
            f"{hook_point!r} matches {len(names)} hook points, and one is expected: {names[0]}, …"
        )
    return names[0]


def is_glob(name: str) -> bool:
    """Whether this is a pattern such as `blocks.*.hook_resid_post`, and no name."""
    return any(sign in name for sign in "*?[")


def _selected(known: Mapping[str, Any], chosen: Callable[[str], bool]) -> list[str]:
    """The chosen names; of several aliases of one hook point the first."""
    first = {id(point): name for name, point in reversed(list(known.items())) if chosen(name)}
    return [name for name, point in known.items() if first.get(id(point)) == name]


def has_hooks(model: Any) -> bool:
    """Whether somebody has added forward hooks to the model's hook points."""
    return any(getattr(point, "fwd_hooks", None) for point in model.hook_dict.values())


@contextmanager
def hooked(model: Any, hooks: Sequence[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    """Attach forward hooks, and take exactly those off again, also where Ctrl-C comes while that is done.

    Raises:
        ValueError: for a hook point that the model's configuration has switched off.
    """
    manager = model.hooks(fwd_hooks=list(hooks))
    attached = False
    try:
        with uninterrupted():
            manager.__enter__()
            attached = True
        yield
    except AssertionError as error:  # HookedTransformer's way to say that a hook point is off
        if attached:
            raise
        raise ValueError(f"The model has that hook point switched off: {error}.") from error
    finally:
        if attached:
            with uninterrupted():
                manager.__exit__(None, None, None)


def _what_passes(see: Callable[[Any], Any], point: Any, inputs: Any, output: Any) -> Any:
    return see(output)


@contextmanager
def passing(
    points: Mapping[str, Any], seeing: Mapping[str, Callable[[Any], Any]]
) -> Iterator[None]:
    """Show what passes hook points as the model has it, before a hook point converts it for hooks.

    What a callable gives, unless it is None, is what the model goes on with.
    """
    handles: list[Any] = []
    try:
        with uninterrupted():
            for name, see in seeing.items():
                hook = partial(_what_passes, see)
                handles.append(points[name].register_forward_hook(hook))
        yield
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()


@contextmanager
def first_seen(model: Any, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """While a model runs: by hook point, the first hook point that its very tensor passes."""
    points, found = model.hook_dict, dict(zip(names, names, strict=True))
    passed: list[tuple[str, ReferenceType[Any], int]] = []

    def see(name: str, tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            return
        now = 0 if tensor.is_inference() else tensor._version  # an edit makes it another
        passed.append((name, ref(tensor), now))
        for asked in names:
            if points[asked] is points[name]:
                earlier = (one for one, known, then in passed if known() is tensor and then == now)
                found[asked] = asked if (first := next(earlier)) == name else first

    watched = {id(point): name for name, point in reversed(points.items())} if names else {}
    with passing(points, {name: partial(see, name) for name in watched.values()}):
        yield found


_SWITCHES = {
    "hook_result": "use_attn_result", "hook_attn_in": "use_attn_in", "hook_mlp_in": "use_hook_mlp_in",
    "hook_q_input": "use_split_qkv_input", "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
}  # fmt: skip
"""What in a model's configuration turns a hook point on, by the end of its name."""


def never_fired(model: Any, name: str) -> str:
    """Why a hook point that there is never fires, and what to do."""
    # Compiled as a new module, or in place.
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        return (
            f"Hook point {name!r} never fired: the model is compiled, and torch.compile leaves its hooks "
            "out; pass the model as it was before (model._orig_mod, or loaded anew after model.compile())."
        )
    switch = _SWITCHES.get(name.rpartition(".")[2], "")
    if getattr(getattr(model, "cfg", None), switch, None) is False:
        return (
            f"Hook point {name!r} never fired: the model has {switch}=False; call "
            f"model.set_{switch}(True) first."
        )
    return (
        f"Hook point {name!r} never fired in a forward pass of this model: it exists, but "
        "nothing goes through it; choose another (model.hook_dict lists them)."
    )


def check_activation(name: str, tensor: Any, n_sequences: int, n_positions: int | None) -> None:
    """Refuse what is not a stream of vectors.

    Raises:
        ValueError: if the hook point carries no float tensor, an attention pattern, or a shape that
            is not [batch, d], [batch, pos, d] or [batch, pos, head, d_head].
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        what = str(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(
            f"Hook point {name!r} carries {what}, not floating-point activations: choose another."
        )
    shape = tuple(tensor.shape)
    pattern = name.endswith(("hook_pattern", "hook_attn_scores"))
    if pattern or (tensor.ndim == 4 and n_positions is not None and shape[1] != n_positions):
        raise ValueError(
            f"Hook point {name!r} carries an attention pattern or scores of shape {shape}, not one "
            "vector per position: choose a hook point such as attn.hook_z or hook_attn_out."
        )
    if tensor.ndim not in (2, 3, 4) or shape[0] != n_sequences:
        raise ValueError(
            f"Hook point {name!r} carries shape {shape} for a batch of {n_sequences}; expected "
            "[batch, d], [batch, pos, d] or [batch, pos, head, d_head]."
        )
