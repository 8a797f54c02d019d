"""The picture of how alike bases are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.bases.names import display_name, display_names
from tl_weighted_pca.bases.overlap import Side, component_cosines, subspace_overlap
from tl_weighted_pca.support.figure import (
    MARKERS,
    PALETTE,
    SEQUENCE,
    canvas,
    figure_of,
    new_figure,
    plain,
)
from tl_weighted_pca.support.interactive import explorable
from tl_weighted_pca.support.panel import Grid, Line, Panel

Bases = Mapping[str, Basis] | Basis

_WRITTEN = 14
"""Cells a side up to which their numbers are written into them."""

_SINGLE = 64
"""Single components whose cosines can still be told apart in one panel."""


def basis_overlap(
    left: Bases,
    right: Bases | None = None,
    k: int | None = None,
    *,
    side: Side = "decoder",
    title: str | None = None,
    ax: Axes | None = None,
    interactive: bool = False,
) -> Any:
    """φ = 1/k Σ_i cos² θ_i of the principal angles θ_i between the top k of any two bases.

    φ is 1 where two bases keep the same subspace, 0 where they keep orthogonal ones, and k/d on average
    by chance (`tl_weighted_pca.bases.overlap`, after Björck and Golub 1973). Two bases give two panels:
    |cosines| of their single components, and φ of their top j by j. Mappings give a grid of φ, one
    basis a row and one a column, such as all layers against all layers. Two bases per head have heads
    for rows in place of components; in a grid they count by the mean over heads.

    Args:
        left: a basis, or several by name.
        right: the same; `left` itself by default.
        k: components of each. By default all that two bases have (the first 64 for their cosines), and
            in a grid a quarter of what the smallest has: at k = d all subspaces are equal.
        side: "decoder" compares what bases keep, "encoder" what they look at.
        title: above the picture.
        ax: to draw the heat map alone into; a new figure by default.
        interactive: a plotly figure, in place of one of matplotlib.

    Raises:
        ImportError: if plotly is not installed, and asked for.
        ValueError: for bases of different widths or heads, or k outside 1..n_components.
    """
    right = left if right is None else right
    if isinstance(left, Basis) and isinstance(right, Basis):
        return _pair(left, right, k, side, title, ax, interactive)
    return _grid(_by_name(left), _by_name(right), k, side, title, ax, interactive)


def _grid(
    rows: Mapping[str, Basis],
    columns: Mapping[str, Basis],
    k: int | None,
    side: Side,
    title: str | None,
    ax: Axes | None,
    interactive: bool,
) -> Any:
    bases = [*rows.values(), *columns.values()]
    k = max(1, min(basis.n_components for basis in bases) // 4) if k is None else k
    grid = torch.tensor(
        [
            [float(subspace_overlap(a, b, k, side=side)[..., -1].mean()) for b in columns.values()]
            for a in rows.values()
        ]
    )
    width = bases[0].width
    name = f"overlap φ of the top {k} of {width}"
    names = [[*display_names(named).values()] for named in (rows, columns)]
    if interactive:
        shown = Grid(grid, names[0], names[1], f"{name} (chance {k / width:.2g})", 0, 1)
        return explorable([Panel("", "", grid=shown)], title=title or "")
    size = max(4.2, 2.6 + 0.55 * len(columns)), max(3.0, 1.6 + 0.45 * len(rows))
    figure, ax = canvas(ax, size)
    _heat(ax, grid, name, chance=k / width)
    ax.set_xticks(range(len(columns)), names[1], rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), names[0])
    if max(grid.shape) <= _WRITTEN:
        for i, row in enumerate(grid.tolist()):
            for j, value in enumerate(row):
                color = "white" if value < 0.6 else "black"
                ax.text(
                    j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color
                )  # fmt: skip
    if title is not None:
        ax.set_title(title)
    return figure


def _pair(
    a: Basis,
    b: Basis,
    k: int | None,
    side: Side,
    title: str | None,
    ax: Axes | None,
    interactive: bool,
) -> Any:
    heat, curve = _panels(a, b, k, side)
    if interactive:
        return explorable([heat, curve], title=title or "")
    alone = ax is not None
    if ax is None:
        figure = new_figure((9.0, 4.0))
        ax, beside = figure.subplots(1, 2, width_ratios=(1.15, 1))
    assert heat.grid is not None
    _heat(ax, heat.grid.values, heat.grid.name, chance=None, x_from=1, y_from=heat.grid.rows[0])
    ax.set_xlabel(heat.x.replace(" at ", "\nat "))  # in one line it would be wider than the axes
    ax.set_ylabel(heat.y.replace(" at ", "\nat "))
    if alone:
        if title is not None:
            ax.set_title(title)
        return figure_of(ax)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    plain(beside)
    for line in curve.lines:
        line.draw(beside)
    beside.set_xlabel(curve.x)
    beside.set_ylabel(curve.y)
    beside.set_ylim(curve.ends)
    beside.legend(frameon=False, loc="lower right")
    return figure


def _panels(a: Basis, b: Basis, k: int | None, side: Side) -> tuple[Panel, Panel]:
    """Single components or heads, and φ of the top j by j."""
    overlap = subspace_overlap(a, b, k, side=side)
    k, width = overlap.shape[-1], a.width
    names = [_name(a, "left"), _name(b, "right")]
    if names[0] == names[1]:
        names = [f"{names[0]}, left", f"{names[1]}, right"]
    j = range(1, k + 1)
    if a.per_head:
        grid = Grid(overlap, range(len(overlap)), j, "overlap φ of the top j", 0, 1)
        heat = Panel("j, components of each", "head", grid=grid)
    else:
        cosines = component_cosines(a, b, min(k, _SINGLE), side=side)
        i = range(1, len(cosines) + 1)
        grid = Grid(cosines, i, i, "|cosine| of single components", 0, 1)
        heat = Panel(f"component of {names[1]}", f"component of {names[0]}", grid=grid)
    look = {
        "color": PALETTE[0],
        "marker": MARKERS[0],
        "markersize": 4,
        "markevery": max(1, k // 10),
    }
    mean = overlap.reshape(-1, k).mean(0).tolist()
    lines = [
        Line(j, mean, "mean over heads" if a.per_head else "the two bases", look),
        Line(
            j, [i / width for i in j], "by chance, j / d", {"color": "#666666", "linestyle": "--"}
        ),
    ]
    x = f"j, components of each (of {width})"
    return heat, Panel(x, "overlap φ of the top j", lines, ends=(0, 1.03))


def _heat(
    ax: Axes,
    values: Float[Tensor, "row column"],
    label: str,
    *,
    chance: float | None,
    x_from: int = 0,
    y_from: int = 0,
) -> None:
    rows, columns = values.shape
    image = ax.imshow(
        values.numpy(), cmap=SEQUENCE, vmin=0, vmax=1, interpolation="nearest", aspect="auto",
        extent=(x_from - 0.5, x_from + columns - 0.5, y_from + rows - 0.5, y_from - 0.5),
    )  # fmt: skip
    ax.grid(False)
    if chance is not None:
        label = f"{label}\n(chance {chance:.2g})"
    bar = ax.figure.colorbar(image, ax=ax, label=label)
    if chance is not None:
        bar.ax.axhline(chance, color="white", linewidth=1.5)


def _by_name(bases: Bases) -> dict[str, Basis]:
    named = {bases.method or "basis": bases} if isinstance(bases, Basis) else dict(bases)
    if not named:
        raise ValueError("No bases were given; pass two, or a dict such as {'pca': wpca.pca(m)}.")
    return named


def _name(basis: Basis, otherwise: str) -> str:
    """What to call a basis that was given without a name."""
    words = [display_name(basis.method), basis.provenance.hook_point]
    return " at ".join(word for word in words if word) or otherwise
