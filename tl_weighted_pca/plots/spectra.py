"""Pictures of spectra: eigenvalues of bases, singular values by layer and head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.bases.names import display_name
from tl_weighted_pca.factored.thin_svd import svdvals
from tl_weighted_pca.support.figure import PALETTE, SEQUENCE, figure_of, new_figure, plain, styles
from tl_weighted_pca.support.interactive import explorable
from tl_weighted_pca.support.panel import Grid, Line, Panel

_UNITS = {
    "pca": "activation²",
    "random_basis": "activation²",
    "gradient_pca": "gradient²",
    "weighted_pca": "(activation · gradient)²",
    "metric_pca": "metric · activation²",
}
"""What an eigenvalue of each method is measured in, per token."""

_ROUNDING = torch.finfo(torch.float64).eps
"""Below d times this share of the largest, an eigenvalue is the eigensolver's own rounding."""

_NOTHING = torch.finfo(torch.float32).eps
"""Below this share of the largest, a singular value is rounding of the weights."""


def eigenvalue_spectra(
    bases: Mapping[str, Basis] | Basis,
    *,
    normalized: bool | None = None,
    title: str | None = None,
    axes: Sequence[Axes] | None = None,
    interactive: bool = False,
) -> Any:
    """λ_i by i on a logarithmic axis, and the cumulative share Σ_{j≤i} λ_j / Σ_j λ_j beside it.

    The legend gives each basis's participation ratio (Σλ)² / Σλ², the number of equal eigenvalues
    that would be as spread out, over the components that it keeps: shares are of all, also of those
    truncated away. A basis per head has one line a head, and the mean of their ratios. A thick stretch is
    a block of near-equal eigenvalues (`Basis.blocks`), whose single directions are arbitrary.

    Args:
        bases: one, or several by name. More than seven of one method, as of many layers, are coloured as
            a sequence.
        normalized: draw λ_i / Σ_j λ_j; by default where the bases' methods differ, and with them the
            units of their eigenvalues.
        title: above both panels, or above the first of the given axes; the hook point by default, if
            it is one.
        axes: two, to draw into; a new figure by default.
        interactive: a plotly figure, in place of one of matplotlib.

    Raises:
        ValueError: if there is no basis, or one that keeps no component.
        ImportError: if plotly is not installed, and asked for.
    """
    named = {bases.method or "basis": bases} if isinstance(bases, Basis) else dict(bases)
    if not named:
        raise ValueError("No bases were given; pass one, or a dict such as {'pca': wpca.pca(m)}.")
    for name, basis in named.items():
        if not basis.n_components:
            raise ValueError(
                f"The basis {name!r} keeps no component, so there is no spectrum to draw: leave it out."
            )
    methods = {basis.method for basis in named.values()}
    normalized = len(methods) > 1 if normalized is None else normalized
    spectra, shares, floors = list[Line](), list[Line](), list[float]()
    blocks = list[LineCollection]()
    for name, style in styles(list(named), ordered=len(methods) == 1).items():
        basis = named[name]
        ratio = basis.eigenvalues.sum(-1) ** 2 / basis.eigenvalues.square().sum(-1)
        label = f"{display_name(name)} ({float(ratio.mean()):.1f})"
        drawn = basis.explained_ratio if normalized else basis.eigenvalues
        floors.append(basis.width * _ROUNDING * float(drawn.max()))
        i = range(1, basis.n_components + 1)
        look = dict(
            style, markevery=max(1, basis.n_components // 10), markersize=4,
            linewidth=0.7 if basis.per_head else 1.5,
        )  # fmt: skip
        for lines, values in ((spectra, drawn), (shares, basis.explained_ratio.cumsum(-1))):
            for h, row in enumerate(values.reshape(-1, basis.n_components).tolist()):
                lines.append(Line(i, row, "" if h else label, look))
        blocks += _blocks(basis, drawn, style["color"])
    units = {_UNITS.get(method.partition("(")[0], "") for method in methods}
    unit = f" ({units.pop()} per token)" if len(units) == 1 and units != {""} else " per token"
    names = (
        "eigenvalue / sum of eigenvalues" if normalized else f"eigenvalue{unit}",
        "cumulative share of eigenvalues",
    )
    places = {basis.provenance.hook_point for basis in named.values()}
    place = places.pop() if len(places) == 1 else ""
    title = title or (f"Eigenvalues at {place}" if place else "")
    if interactive:
        panels = [Panel("component", names[0], [_above(line, min(floors)) for line in spectra], log=True),
                  Panel("component", names[1], shares, ends=(0, 1.03))]  # fmt: skip
        return explorable(panels, title=title)
    figure, (left, right) = _two(axes)
    for ax, lines, name in zip((left, right), (spectra, shares), names, strict=True):
        for line in lines:
            line.draw(ax)
        ax.set_ylabel(name)
        ax.set_xlabel("component")
    for block in blocks:
        left.add_collection(block)
    left.set_yscale("log", nonpositive="mask")
    left.set_ylim(bottom=max(left.get_ylim()[0], min(floors)))
    right.set_ylim(0, 1.03)
    right.legend(
        frameon=False, fontsize=8, title="basis (participation ratio)", title_fontsize=8,
        loc="lower right",
    )  # fmt: skip
    if title and axes is None:
        figure.suptitle(title, fontsize=11)
    elif title:
        left.set_title(title)
    return figure


def _blocks(basis: Basis, values: Float[Tensor, "*head k"], color: str) -> list[LineCollection]:
    """A thick pale stretch over each block of several components."""
    runs = basis.blocks() if basis.per_head else [basis.blocks()]
    return [
        LineCollection([[(i + 1, row[i]) for i in run]], colors=[color], linewidths=6, alpha=0.25)
        for row, of_head in zip(values.reshape(-1, basis.n_components).tolist(), runs, strict=True)
        for run in of_head
        if len(run) > 1
    ]


def _above(line: Line, floor: float) -> Line:
    """A line that breaks where it is rounding."""
    return replace(line, y=[y if y > floor else math.nan for y in line.y])


def singular_value_spectra(
    matrix: Any,
    *,
    columns: int = 4,
    normalized: bool = False,
    title: str | None = None,
    interactive: bool = False,
) -> Any:
    """σ_i by i for each head, one panel a layer.

    Up to seven heads are lines on a logarithmic axis; more are strips of one heat map, a row a head,
    where each can still be found.

    Args:
        matrix: a factored matrix [layer, head, l, r] such as `model.OV`, or its singular values S
            [layer, head, k]; without layers, or without both, there is one panel.
        columns: panels a row.
        normalized: draw σ_i / σ_1, to compare shapes and not sizes.
        title: above the picture.
        interactive: a plotly figure, in place of one of matplotlib.

    Raises:
        ImportError: if plotly is not installed, and asked for.
        ValueError: for a tensor of more than three dimensions, or of none.
    """
    values = _by_head(matrix)
    if normalized:
        values = values / values[..., :1].clamp(min=torch.finfo(values.dtype).tiny)
    top = float(values.max())
    if top <= 0:
        raise ValueError("All singular values are zero: a logarithmic picture of them is empty.")
    bottom = max(float(values[values > 0].min()), _NOTHING * top)
    panels = _panels(values, bottom, top, "σ / σ₁" if normalized else "singular value")
    columns = min(columns, len(panels))
    if interactive:
        return explorable(panels, title=title or "", columns=columns)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure((3.0 * columns + 1.2, 2.4 * rows + 0.7))
    every = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in every.flat[len(panels) :]:
        ax.set_visible(False)
    shown = list(every.flat[: len(panels)])
    image = None
    for panel, ax in zip(panels, shown, strict=True):
        ax.set_title(panel.title, fontsize=10)
        if panel.grid is None:
            plain(ax)
            for line in panel.lines:
                line.draw(ax)
            ax.set_yscale("log", nonpositive="mask")
            ax.set_ylim(panel.ends)
        else:
            heads, k = panel.grid.values.shape
            image = ax.imshow(
                panel.grid.values.clamp(min=bottom).numpy(), aspect="auto", cmap=SEQUENCE,
                interpolation="nearest", norm=LogNorm(bottom, top),
                extent=(0.5, k + 0.5, heads - 0.5, -0.5),
            )  # fmt: skip
            ax.set_yticks(range(0, heads, max(1, heads // 6)))
    for i, ax in enumerate(shown):
        if i + columns >= len(panels):
            ax.set_xlabel(panels[i].x)
            ax.xaxis.set_tick_params(labelbottom=True)
        if i % columns == 0:
            ax.set_ylabel(panels[i].y)
    if image is not None:
        assert panels[0].grid is not None
        figure.colorbar(image, ax=shown, label=panels[0].grid.name, shrink=0.9)
    elif values.shape[1] > 1:
        handles, labels = shown[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    return figure


def _panels(
    values: Float[Tensor, "layer head k"], bottom: float, top: float, name: str
) -> list[Panel]:
    """One a layer: a line a head, or a heat map of many heads."""
    layers, heads, k = values.shape
    looks = [
        dict(
            style, linewidth=1.3, markersize=3.5, markevery=(h * max(1, k // 40), max(1, k // 8)),
        )
        for h, style in enumerate(styles([f"head {h}" for h in range(heads)]).values())
    ]  # fmt: skip
    panels = []
    for layer, of_layer in enumerate(values):
        title = f"layer {layer}" if layers > 1 else ""
        if heads <= len(PALETTE):
            lines = [
                Line(range(1, k + 1), of_layer[h].tolist(), f"head {h}", looks[h])
                for h in range(heads)
            ]
            panels.append(
                Panel(
                    "component", name, lines, title=title, log=True, ends=(bottom / 1.15, top * 1.15),
                )
            )  # fmt: skip
        else:
            grid = Grid(of_layer, range(heads), range(1, k + 1), name, bottom, top, log=True)
            panels.append(Panel("component", "head", grid=grid, title=title))
    return panels


def _two(axes: Sequence[Axes] | None) -> tuple[Figure, Sequence[Axes]]:
    if axes is None:
        figure: Figure = new_figure((9.5, 3.8))
        return figure, [plain(ax) for ax in figure.subplots(1, 2)]
    if len(axes) != 2:
        raise ValueError(
            f"{len(axes)} axes were given; expected two: eigenvalues, and their share."
        )
    return figure_of(axes[0]), axes


def _by_head(matrix: Any) -> Float[Tensor, "layer head k"]:
    """Singular values, in float64 on the CPU, with missing leading dimensions put in."""
    values = matrix if isinstance(matrix, Tensor) else svdvals(matrix)
    if not 1 <= values.ndim <= 3:
        raise ValueError(
            f"Singular values of shape {tuple(values.shape)} were given; expected [layer, head, k], "
            "[head, k] or [k], or a factored matrix: for a dense matrix take torch.linalg.svdvals first."
        )
    values = values.detach().cpu().double()
    return values.reshape((1,) * (3 - values.ndim) + values.shape)
