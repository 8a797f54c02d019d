"""The picture of how alike bases are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.bases.names import display_name
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
) -> Figure:
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

    Raises:
        ValueError: for bases of different widths or heads, or k outside 1..n_components.
    """
    right = left if right is None else right
    if isinstance(left, Basis) and isinstance(right, Basis):
        return _pair(left, right, k, side, title, ax)
    return _grid(_by_name(left), _by_name(right), k, side, title, ax)


def _grid(
    rows: Mapping[str, Basis],
    columns: Mapping[str, Basis],
    k: int | None,
    side: Side,
    title: str | None,
    ax: Axes | None,
) -> Figure:
    bases = [*rows.values(), *columns.values()]
    k = max(1, min(basis.n_components for basis in bases) // 4) if k is None else k
    grid = torch.tensor(
        [
            [float(subspace_overlap(a, b, k, side=side)[..., -1].mean()) for b in columns.values()]
            for a in rows.values()
        ]
    )
    width = bases[0].width
    size = max(4.2, 2.6 + 0.55 * len(columns)), max(3.0, 1.6 + 0.45 * len(rows))
    figure, ax = canvas(ax, size)
    _heat(ax, grid, f"overlap φ of the top {k} of {width}", chance=k / width)
    ax.set_xticks(
        range(len(columns)),
        [*map(display_name, columns)],
        rotation=40,
        ha="right",
        rotation_mode="anchor",
    )
    ax.set_yticks(range(len(rows)), [*map(display_name, rows)])
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
    a: Basis, b: Basis, k: int | None, side: Side, title: str | None, ax: Axes | None
) -> Figure:
    overlap = subspace_overlap(a, b, k, side=side)
    k, width = overlap.shape[-1], a.width
    alone = ax is not None
    if ax is None:
        figure: Figure = new_figure((9.0, 4.0))
        ax, curve = figure.subplots(1, 2, width_ratios=(1.15, 1))
        plain(curve)
    else:
        figure = figure_of(ax)
    names = [_name(a, "left"), _name(b, "right")]
    if names[0] == names[1]:
        names = [f"{names[0]}, left", f"{names[1]}, right"]
    if a.per_head:
        _heat(ax, overlap, "overlap φ of the top j", chance=None, x_from=1)
        ax.set_xlabel("j, components of each")
        ax.set_ylabel("head")
    else:
        cosines = component_cosines(a, b, min(k, _SINGLE), side=side)
        _heat(ax, cosines, "|cosine| of single components", chance=None, x_from=1, y_from=1)
        ax.set_xlabel(f"component of {names[1]}")
        ax.set_ylabel(f"component of {names[0]}")
    if alone:
        if title is not None:
            ax.set_title(title)
        return figure
    if title is not None:
        figure.suptitle(title, fontsize=11)
    j = range(1, k + 1)
    mean = overlap.reshape(-1, k).mean(0).tolist()
    label = "mean over heads" if a.per_head else "the two bases"
    curve.plot(
        j, mean, color=PALETTE[0], marker=MARKERS[0], markersize=4, markevery=max(1, k // 10),
        label=label,
    )  # fmt: skip
    curve.plot(j, [i / width for i in j], color="0.4", linestyle="--", label="by chance, j / d")
    curve.set_xlabel(f"j, components of each (of {width})")
    curve.set_ylabel("overlap φ of the top j")
    curve.set_ylim(0, 1.03)
    curve.legend(frameon=False, loc="lower right")
    return figure


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
    words = [basis.method, basis.provenance.hook_point]
    return " at ".join(word for word in words if word) or otherwise
