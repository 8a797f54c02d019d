"""Pictures. Each function returns a matplotlib figure, to restyle or save as you like."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tl_weighted_pca.curves import AblationCurves

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""A second sign beside the colour."""


class Picture(Figure):
    """A figure that a notebook shows by itself, whether or not pyplot was ever imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each name, the same whatever else is drawn."""
    return {
        name: {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }


def plot_ablation_curves(
    curves: AblationCurves,
    *,
    excess: bool = True,
    names: Mapping[str, str] | None = None,
    level: float = 0.95,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Score by rank for each basis, with bootstrap bands.

    Args:
        curves: from `ablation_curves`.
        excess: draw score − baseline on a logarithmic axis, where the middle ranks can be told apart;
            otherwise the scores themselves, with the unablated baseline.
        names: which curves, and what to call them; all by default.
        level: of the bands.
        title: above the axes; the hook point by default.
        ax: to draw into; a new figure by default.
    """
    figure, ax = _axes(ax, (7.0, 4.5))
    labels = dict(names) if names is not None else {name: name for name in curves.per_sequence}
    for name, style in styles(list(labels)).items():
        estimates = curves.excess(name, level=level)
        offset = 0.0 if excess else curves.baseline
        # A logarithm has no place for what is zero to rounding, as at full rank.
        shown = [
            (k, e) for k, e in zip(curves.ranks, estimates, strict=True) if not excess or e > 1e-4
        ]
        ranks = [k for k, _ in shown]
        values = [e + offset for _, e in shown]
        low, high = ([getattr(e, end) + offset for _, e in shown] for end in ("low", "high"))
        ax.plot(ranks, values, label=labels[name], linewidth=1.6, markersize=5, **style)
        if excess:
            low = [max(value, 1e-4) for value in low]
        ax.fill_between(ranks, low, high, color=style["color"], alpha=0.15, linewidth=0)
    unit = curves.unit
    if excess:
        ax.set_yscale("log")
        ax.set_ylabel(f"excess {unit}")
    else:
        ax.axhline(curves.baseline, color="0.4", linestyle="--", linewidth=1, label="unablated")
        ax.set_ylabel(unit)
    ax.set_xlabel(f"components kept (of {curves.width})")
    ax.set_xticks(curves.ranks)
    ax.set_title(title if title is not None else f"Node ablation at {curves.hook_point}")
    ax.legend(frameon=False)
    return figure


def _axes(ax: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    if ax is not None:
        figure = ax.figure
        assert isinstance(figure, Figure)
        return figure, ax
    # Without pyplot: no global state, no figure kept alive behind the user's back.
    figure = Picture(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
