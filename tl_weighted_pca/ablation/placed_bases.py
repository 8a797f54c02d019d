"""What is ablated together: bases by name and hook point, and how many components each keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.models.fingerprint import made_at
from tl_weighted_pca.models.hook_points import resolve, resolve_one
from tl_weighted_pca.support.whole_numbers import checked_count

Bases = Basis | Sequence[Basis] | Mapping[str, Basis | Mapping[str, Basis]]
"""A basis; several, named by their methods; or by name, each of one hook point or by hook point."""

Rank = int | float | Mapping[str, int | float]
"""Components (int), a share of the width (float), or either by hook point."""

_EXPECTED = (
    "expected a Basis, a list of them, or a dict from names to Basis, such as "
    "{'pca': wpca.pca(moments)}, or to dicts of them by hook point"
)


def placed_bases(
    model: Any, bases: Any, hook_point: str | None, anywhere: bool
) -> dict[str, dict[str, Basis]]:
    """Bases by name and hook point, checked against the model.

    Raises:
        TypeError: for anything but bases.
        ValueError: for no bases, hook points that differ by name, are names of one and the same, or
            are not known, and for bases of other hook points or models, unless `anywhere`.
    """
    if hook_point is not None:
        hook_point = resolve_one(model, hook_point)
    named = {
        name: dict(value) if isinstance(value, Mapping) else _at_one(name, value, hook_point)
        for name, value in _by_name(bases).items()
    }
    if not named:
        raise ValueError("No bases were given; pass a dict such as {'pca': wpca.pca(moments)}.")
    if hook_point is not None and any(isinstance(v, Mapping) for v in _by_name(bases).values()):
        raise ValueError(
            f"hook_point is {hook_point!r}, but the bases are by hook point already: leave it out."
        )
    places = list(next(iter(named.values())))
    resolve(model, places)
    for name, at in named.items():
        if set(at) != set(places):
            raise ValueError(
                f"{name!r} is at {', '.join(at)}, another at {', '.join(places)}: bases that are compared "
                "need the same hook points; call once for each, or pass hook_point and anywhere=True."
            )
        named[name] = {place: at[place] for place in places}
    check_apart(model, places)
    if not anywhere:
        here = made_at(model, "")
        for at in named.values():
            for place, basis in at.items():
                basis.check_place(replace(here, hook_point=place), "pass anywhere=True")
    return named


def _by_name(bases: Any) -> dict[str, Any]:
    if isinstance(bases, Basis):
        bases = [bases]
    if isinstance(bases, (list, tuple)):
        _check_bases(bases)
        named = {basis.method or "basis": basis for basis in bases}
        if len(named) < len(bases):
            raise ValueError(
                f"The bases are of the methods {', '.join(b.method or 'basis' for b in bases)}, which do "
                "not tell them apart: pass a dict of bases by name."
            )
        return named
    if not isinstance(bases, Mapping):
        raise TypeError(f"bases is a {type(bases).__name__}; {_EXPECTED}.")
    for value in bases.values():
        _check_bases(value.values() if isinstance(value, Mapping) else [value])
        if isinstance(value, Mapping) and not value:
            raise ValueError("A dict of bases by hook point is empty: pass at least one basis.")
    return dict(bases)


def _check_bases(bases: Any) -> None:
    kinds = {type(basis).__name__ for basis in bases if not isinstance(basis, Basis)}
    if kinds:
        raise TypeError(f"bases holds a {', '.join(sorted(kinds))}; {_EXPECTED}.")


def _at_one(name: str, basis: Basis, hook_point: str | None) -> dict[str, Basis]:
    place = basis.provenance.hook_point if hook_point is None else hook_point
    if not place:
        raise ValueError(f"The basis {name!r} does not know where it was made: pass hook_point.")
    return {place: basis}


def check_apart(model: Any, places: Sequence[str]) -> None:
    """Raise ValueError where two names are of one hook point, which would be ablated twice."""
    first: dict[int, str] = {}
    for place in places:
        other = first.setdefault(id(model.hook_dict[place]), place)
        if other != place:
            raise ValueError(
                f"{other!r} and {place!r} are two names of one hook point: ablate at one of them."
            )


def kept_components(
    ranks: Sequence[Rank] | None, named: Mapping[str, Mapping[str, Basis]]
) -> list[dict[str, int]]:
    """The components to keep at each hook point, by ascending total.

    Raises:
        ValueError: for ranks that are neither whole numbers nor shares, outside 0..d, unknown hook points, or
            several ranks that keep as many components in all.
    """
    most = {
        place: min(at[place].n_components for at in named.values())
        for place in next(iter(named.values()))
    }
    if ranks is None:
        steps = [{place: round(i * n / 8) for place, n in most.items()} for i in range(9)]
    elif isinstance(ranks, (str, bytes, Mapping)) or not hasattr(ranks, "__iter__"):
        raise ValueError(f"ranks is {ranks!r}; expected a list of whole numbers or shares.")
    else:
        widths = {place: {at[place].width for at in named.values()} for place in most}
        steps = [_at_each(rank, most, widths) for rank in ranks]
    _check_bounds(steps, most)
    unique = {tuple(step.items()): step for step in steps}
    kept = sorted(unique.values(), key=lambda step: sum(step.values()))
    totals = [sum(step.values()) for step in kept]
    if len(set(totals)) < len(totals):
        raise ValueError(
            f"Several of the ranks keep as many components in all ({totals}), so that one curve cannot "
            "hold them: call once for each."
        )
    return kept


def components_at(rank: Rank, widths: Mapping[str, int]) -> dict[str, int]:
    """One rank as components by hook point, of complete bases of these widths.

    Raises:
        ValueError: as for `kept_components`.
    """
    kept = _at_each(rank, widths, {place: {width} for place, width in widths.items()})
    _check_bounds([kept], widths)
    return kept


def _check_bounds(steps: Sequence[Mapping[str, int]], most: Mapping[str, int]) -> None:
    wrong = [step for step in steps if any(k > most[place] for place, k in step.items())]
    if wrong or not steps:
        shown = [next(iter(s.values())) if len(most) == 1 else s for s in wrong]
        bounds = "/".join(map(str, dict.fromkeys(most.values())))
        raise ValueError(
            f"ranks {shown} are outside 0..{bounds}, the components that every basis has."
        )


def _at_each(rank: Any, most: Mapping[str, int], widths: Mapping[str, set[int]]) -> dict[str, int]:
    """One rank as components by hook point."""
    by_place = rank if isinstance(rank, Mapping) else dict.fromkeys(most, rank)
    if set(by_place) != set(most):
        raise ValueError(
            f"A rank is given at {', '.join(map(str, by_place))}, but the bases are at "
            f"{', '.join(most)}: give one at each."
        )
    found = {}
    for place in most:
        value = by_place[place]
        if not isinstance(value, Real) or hasattr(value, "__index__"):
            found[place] = checked_count("One of ranks", value, 0)
            continue
        share = float(value)
        if not 0 <= share <= 1:
            raise ValueError(
                f"One of ranks is {value!r}; expected a whole number of components, or a share of the "
                "width between 0.0 and 1.0."
            )
        if len(widths[place]) > 1:
            raise ValueError(
                f"The share {value!r} means different ranks for bases of widths "
                f"{', '.join(map(str, sorted(widths[place])))}: give whole numbers."
            )
        (width,) = widths[place]
        found[place] = round(share * width)
    return found
