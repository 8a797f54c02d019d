"""The picture of a map of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tl_weighted_pca.bases.names import display_name
from tl_weighted_pca.model_map.dimensions import DimensionMap, layer_and_kind
from tl_weighted_pca.support.figure import SEQUENCE, new_figure
from tl_weighted_pca.support.interactive import explorable
from tl_weighted_pca.support.panel import Grid, Panel

_LINES = ("#ffffff", "#ff5d00", "#ff9ecb", "#00e5ff", "#ffe14d")
"""Of the contours: they must show on dark and on light."""


def plot_dimension_map(
    dimensions: DimensionMap,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    interactive: bool = False,
) -> Any:
    """Excess by hook point (down) and share of the width kept (across), with the tolerance's contour.

    Args:
        dimensions: from `dimension_map`.
        names: which bases, one panel each; all by default.
        title: above the panels.
        interactive: a plotly figure, in place of one of matplotlib.

    Raises:
        ImportError: if plotly is not installed, and asked for.
    """
    names = dimensions.names if names is None else list(names)
    rows = sorted(dimensions, key=lambda s: _order(dimensions).index(layer_and_kind(s)[1]))
    values = {name: _excess(dimensions, name, rows) for name in names}
    # No excess, and a tolerance of none, have no logarithm.
    highest = max(1e-6, *(float(v.max()) for v in values.values()))
    lowest = min(max(dimensions.tolerance, highest / 10) / 100, highest / 10)
    shares = _labels(dimensions.shares)
    unit = next(iter(dimensions.values())).unit
    if interactive:
        across = "share of the width kept"
        panels = [
            Panel(
                across, "hook point", title=display_name(name),
                grid=Grid(
                    torch.tensor(found), rows, shares, f"excess {unit}", lowest, highest, True, True,
                    [_crossing(row, dimensions.tolerance) - 0.5 for row in found],
                    f"excess of {dimensions.tolerance:g} nats",
                ),
            )
            for name, found in values.items()
        ]  # fmt: skip
        return explorable(panels, title=title or "", columns=1)
    norm = LogNorm(lowest, highest)
    size = (1.6 + 3.4 * len(names), 1.5 + max(0.17 * len(rows), 1.6))
    figure = new_figure(size)
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for ax, name in zip(axes, names, strict=True):
        mesh = ax.pcolormesh(values[name].clip(lowest), cmap=f"{SEQUENCE}_r", norm=norm)
        _contours(ax, values[name], rows, dimensions.tolerance)
        ax.set_title(display_name(name))
        ax.set_xticks(np.arange(len(shares)) + 0.5, shares, fontsize=8)
        ax.set_xlabel("share of the width kept")
    _label_rows(axes[0], rows)
    bar = figure.colorbar(mesh, ax=list(axes), label=f"excess {unit}", extend="min")
    bar.ax.axhline(dimensions.tolerance, color="black", linewidth=1)
    _legend(figure, rows, dimensions.tolerance)
    if title is not None:
        figure.suptitle(title)
    return figure


def _order(dimensions: DimensionMap) -> list[str]:
    """The kinds of hook point, in the order in which they appear."""
    return list(dict.fromkeys(layer_and_kind(s)[1] for s in dimensions))


def _excess(dimensions: DimensionMap, name: str, rows: Sequence[str]) -> np.ndarray:
    """[row, share]."""
    found = []
    for s in rows:
        curves = dimensions[s]
        ranks = [round(share * curves.width) for share in dimensions.shares]
        excess = dict(zip(curves.ranks, curves.scores[name], strict=True))
        # At the whole width there is but rounding.
        found.append([excess[k] - curves.baseline if k < curves.width else 0.0 for k in ranks])
    return np.array(found)


def _contours(ax: Axes, values: np.ndarray, rows: Sequence[str], tolerance: float) -> None:
    """Where each row falls to the tolerance, geometrically between columns; one line a kind."""
    first = 0
    for colour, (_, group) in zip(_LINES * len(rows), _groups(rows), strict=False):
        ys = [first + i for i in range(len(group))]
        xs = [_crossing(values[y], tolerance) for y in ys]
        for width, shade in ((3.4, "black"), (1.8, colour)):
            ax.plot(
                [x for x in xs for _ in (0, 1)], [y + e for y in ys for e in (0, 1)],
                color=shade, linewidth=width, solid_capstyle="butt",
            )  # fmt: skip
        first += len(group)
        ax.axhline(first, color="white", linewidth=2)


def _crossing(values: np.ndarray, tolerance: float) -> float:
    """The column, from 0.5 on, at which a row first falls to the tolerance."""
    below = np.flatnonzero(values <= tolerance)
    if not len(below):
        return len(values)
    i = int(below[0])
    if i == 0 or tolerance <= 0:
        return max(i, 0.5)
    high, low = math.log(values[i - 1]), math.log(max(values[i], tolerance * 1e-3))
    return i - 0.5 + (high - math.log(tolerance)) / (high - low)


def _groups(rows: Sequence[str]) -> list[tuple[str, list[str]]]:
    return [(kind, list(group)) for kind, group in groupby(rows, lambda s: layer_and_kind(s)[1])]


def _label_rows(ax: Axes, rows: Sequence[str]) -> None:
    labels = [layer_and_kind(s)[0] for s in rows]
    every = 1 if len(rows) <= 40 else 3
    shown = [i for i, n in enumerate(labels) if not n.isdigit() or int(n) % every == 0]
    ax.set_yticks([i + 0.5 for i in shown], [labels[i] for i in shown], fontsize=8)
    ax.set_ylabel("layer")
    ax.set_ylim(len(rows), 0)


def _legend(figure: Figure, rows: Sequence[str], tolerance: float) -> None:
    groups = _groups(rows)
    handles = [
        Line2D([], [], color=colour, linewidth=2.5, label=kind)
        for colour, (kind, _) in zip(_LINES * len(rows), groups, strict=False)
    ]
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), facecolor="0.45",
        labelcolor="white", framealpha=1, fontsize=8, title=f"excess of {tolerance:g} nats", title_fontsize=8,
    )  # fmt: skip
    legend.get_title().set_color("white")


def _labels(shares: Sequence[float]) -> list[str]:
    """Fractions where they are simple, else two digits, or as many as tell them apart."""
    for digits in range(2, 18):  # as many as a float has
        labels = [_share(share, digits) for share in shares]
        if len(set(labels)) == len(set(shares)):
            break
    return labels


def _share(share: float, digits: int) -> str:
    fraction = Fraction(share).limit_denominator(64)
    simple = abs(float(fraction) - share) < 1e-9
    return str(fraction) if simple else f"{share:.{digits}g}"
