"""The picture of ablation curves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tl_weighted_pca.ablation.bootstrap import Estimate
from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.bases.names import display_name, display_names
from tl_weighted_pca.support.figure import canvas, styles
from tl_weighted_pca.support.interactive import explorable
from tl_weighted_pca.support.panel import Line, Panel

_FLOOR = 1e-5
"""Share of the largest excess below which a logarithmic axis would show little but noise."""

_ROUNDING = 1e-6
"""Share of the baseline that is the rounding of float32 scores."""

_REFERENCE: dict[str, Any] = {"color": "#666666", "linestyle": "--", "linewidth": 1}
"""The look of what the curves are compared with."""

_FORMS = {"-": "½E(Σ g·δ)²", "--": "½ΣΛ"}
"""The two forms of the second-order loss, by the lines that they are drawn with."""


def plot_ablation_curves(
    curves: AblationCurves,
    *,
    excess: bool | None = None,
    names: Mapping[str, str] | None = None,
    level: float = 0.95,
    title: str | None = None,
    ax: Axes | None = None,
    interactive: bool = False,
) -> Any:
    """Score by rank for each basis, with bootstrap bands and the unablated baseline.

    Args:
        curves: from `ablation_curves`.
        excess: draw score − baseline on a logarithmic axis, where the middle ranks can be told apart,
            with the baseline's value in words; otherwise the scores themselves, and the baseline as a
            dashed line. By default the former, unless the scores fall rather than rise, as an accuracy
            does: a logarithm has no place for that.
        names: which curves, and what to call them; all by default, by their methods' names.
        level: of the bands.
        title: above the axes; the hook point by default.
        ax: to draw into; a new figure by default.
        interactive: a plotly figure, in place of one of matplotlib.

    Raises:
        ValueError: if the excess is asked for, and is nowhere above zero.
        ImportError: if plotly is not installed, and asked for.
    """
    labels = _labels(curves, names)
    estimates = {name: curves.excess(name, level=level) for name in labels}
    every = [e for mine in estimates.values() for e in mine]
    # A logarithm has no place for what is zero to rounding, as at full rank: the line breaks there.
    floor = max(_FLOOR * max(every), _ROUNDING * abs(curves.baseline))
    if excess is None:
        excess = max(every) > max(floor, -min(every))
    if excess and max(every) <= floor:
        raise ValueError(
            f"No {curves.unit} lies above the unablated {curves.baseline:.3f}, so a logarithmic axis of the "
            "excess would be empty: pass excess=False to draw the scores themselves."
        )
    floor = floor if excess else -math.inf
    lines = _lines(curves, labels, estimates, floor)
    title = title if title is not None else f"Node ablation at {curves.hook_point}"
    unit = f"excess {curves.unit}" if excess else curves.unit
    over = f"over the unablated {curves.baseline:.3f}"
    across = f"components kept (of {curves.width})"
    if excess:
        lines += _predicted(
            curves, {line.name: line.look["color"] for line in lines}, labels, floor
        )
    if interactive:
        if not excess:
            ends = [curves.ranks[0], curves.ranks[-1]]
            lines.append(Line(ends, [curves.baseline] * 2, "unablated", _REFERENCE))
        y = f"{unit}<br>{over}" if excess else unit
        return explorable([Panel(across, y, lines, log=excess, ticks=curves.ranks)], title=title)
    figure, ax = canvas(ax, (7.0, 4.5))
    for line in lines:
        line.draw(ax)
    if excess:
        ax.set_yscale("log")
    else:
        ax.axhline(curves.baseline, label="unablated", **_REFERENCE)
    ax.set_ylabel(f"{unit}\n{over}" if excess else unit)
    ax.set_xlabel(across)
    ax.set_xticks(curves.ranks)
    ax.set_title(title)
    ax.legend(frameon=False)
    return figure


def _labels(curves: AblationCurves, names: Mapping[str, str] | None) -> dict[str, str]:
    return dict(names or display_names(curves.per_sequence))


def _lines(
    curves: AblationCurves,
    labels: Mapping[str, str],
    estimates: Mapping[str, Sequence[Estimate]],
    floor: float,
) -> list[Line]:
    """The curves: excesses above a floor, or scores where there is none."""
    offset = curves.baseline if floor == -math.inf else 0.0
    lines = []
    for name, style in styles(list(labels)).items():
        mine = estimates[name]
        values = [e + offset if e > floor else math.nan for e in mine]
        low, high = [max(e.low, floor) + offset for e in mine], [e.high + offset for e in mine]
        look = {"linewidth": 1.6, "markersize": 5, **style}
        lines.append(Line(curves.ranks, values, labels[name], look, low, high))
    return lines


def _predicted(
    curves: AblationCurves, colors: Mapping[str, str], labels: Mapping[str, str], floor: float
) -> list[Line]:
    """Both forms of the second-order loss as thin lines, where there are any, and what they are."""
    lines = []
    for name, label in labels.items():
        first: Sequence[float] = (
            curves.predicted(name) if name in curves.predicted_per_sequence else []
        )
        second: Sequence[float] = curves.eigenvalue_prediction.get(name, [])
        for dash, values in zip(_FORMS, (first, second), strict=True):
            if values:
                shown = [value if value > floor else math.nan for value in values]
                look = {"color": colors[label], "linestyle": dash, "linewidth": 0.8}
                lines.append(Line(curves.ranks, shown, look=look))
    if curves.predicted_per_sequence:
        for dash, form in _FORMS.items():
            look = {"color": "#666666", "linestyle": dash, "linewidth": 0.8}
            lines.append(Line([], [], f"predicted: {form}", look))
    return lines


def plot_relative_excess(
    curves: AblationCurves,
    *,
    relative_to: str,
    names: Mapping[str, str] | None = None,
    level: float = 0.95,
    title: str | None = None,
    ax: Axes | None = None,
    interactive: bool = False,
) -> Any:
    """(score_b(k) − baseline) / (score_to(k) − baseline) by rank, with paired bootstrap bands.

    Where curves that fall over decades lie on each other, what one basis gains on another shows here: below
    the line at 1 it is better, and a band that does not reach the line is sure of it. Ranks at which an
    excess is zero to rounding, as at full rank, have no ratio and are left out.

    Args:
        curves: from `ablation_curves`.
        relative_to: the basis that the others are compared with.
        names: which curves, and what to call them; all by default, by their methods' names.
        level: of the bands.
        title: above the axes; the hook point by default.
        ax: to draw into; a new figure by default.
        interactive: a plotly figure, in place of one of matplotlib.

    Raises:
        ValueError: if there is no such basis, or nothing to compare it with.
        ImportError: if plotly is not installed, and asked for.
    """
    labels = _labels(curves, names)
    points = {name: curves.excess(name, level=level) for name in {*labels, relative_to}}
    floor = _ROUNDING * abs(curves.baseline)
    shown = {
        name: [i for i in range(len(curves.ranks)) if min(mine[i], points[relative_to][i]) > floor]
        for name, mine in points.items()
    }
    if not any(shown[name] for name in labels if name != relative_to):
        raise ValueError(
            f"There is nothing to compare {relative_to!r} with: no other basis has an excess above the "
            "unablated score at a rank where it has one."
        )

    def ratio(name: str, k: int) -> Estimate:
        with warnings.catch_warnings():  # what resampling floors is in the band
            warnings.simplefilter("ignore")
            return curves.relative_excess(name, to=relative_to, ranks=[k], level=level)

    lines = []
    for name, style in styles(list(labels)).items():
        if name == relative_to:
            continue
        ranks = [curves.ranks[i] for i in shown[name]]
        ratios = [ratio(name, k) for k in ranks]
        look = {"linewidth": 1.6, "markersize": 5, **style}
        low, high = [r.low for r in ratios], [r.high for r in ratios]
        lines.append(Line(ranks, ratios, labels[name], look, low, high))
    reference = labels.get(relative_to, display_name(relative_to))
    title = title if title is not None else f"Node ablation at {curves.hook_point}"
    across = f"components kept (of {curves.width})"
    if interactive:
        lines.append(Line([curves.ranks[0], curves.ranks[-1]], [1, 1], reference, _REFERENCE))
        y = f"excess {curves.unit},<br>over that of {reference}"
        return explorable([Panel(across, y, lines, log=True, ticks=curves.ranks)], title=title)
    figure, ax = canvas(ax, (7.0, 4.5))
    for line in lines:
        line.draw(ax)
    ax.axhline(1, label=reference, **_REFERENCE)
    ax.set_yscale("log")
    bottom, top = ax.get_ylim()
    steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if top < 20 * bottom else (1.0, 3.0)
    ax.yaxis.set_major_locator(LogLocator(subs=steps))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel(f"excess {curves.unit},\nover that of {reference}")
    ax.set_xlabel(across)
    ax.set_xticks(curves.ranks)
    ax.set_title(title)
    ax.legend(frameon=False)
    return figure
