"""Pictures of the feature ansatz."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from tl_weighted_pca.support.figure import MARKERS, PALETTE, Picture, plain
from tl_weighted_pca.support.interactive import explorable
from tl_weighted_pca.support.panel import Line, Panel

if TYPE_CHECKING:
    from tl_weighted_pca.ansatz.model_ansatz import FeatureAnsatz, WeightAnsatz

_LINES = {
    "cosine": "cos(WWᵀ, AGOP)",
    "identity": "identity instead of WWᵀ",
    "rotated": "WWᵀ rotated at random",
    "other_layers": "other layers' WWᵀ",
    "replaced": "random W, its own gradients",
}


def plot_feature_ansatz(
    found: FeatureAnsatz,
    *,
    objective: str | None = None,
    kinds: Sequence[str] | None = None,
    power: float = 1.0,
    columns: int = 4,
    interactive: bool = False,
) -> Any:
    """The cosine and its baselines by layer, one panel a kind of weight.

    Args:
        found: from `feature_ansatz`.
        objective: which; the first by default.
        kinds: which kinds of weight; all by default.
        power: exponent on the AGOP.
        columns: panels a row.
        interactive: a plotly figure, in place of one of matplotlib.

    Raises:
        ImportError: if plotly is not installed, and asked for.
    """
    rows = _chosen(found, objective, kinds)
    table = replace(found, rows=tuple(rows)).to_pandas(power=power)
    name = "cosine" if power == 1 else f"cosine with AGOP^{power:g}"
    panels = []
    for kind in dict.fromkeys(row.kind for row in rows):
        of_kind = table[table.kind == kind].sort_values("layer")
        lines = []
        for i, (column, label) in enumerate(_LINES.items()):
            ours = column == "cosine"
            look = {
                "color": PALETTE[i], "marker": MARKERS[i], "linewidth": 2.2 if ours else 1.2,
                "markersize": 6 if ours else 4, "linestyle": "-" if ours else "--",
                "zorder": 3 if ours else 2,
            }  # fmt: skip
            lines.append(Line(of_kind.layer.tolist(), of_kind[column].tolist(), label, look))
        panels.append(Panel("layer", name, lines, title=kind, ends=(0, 1.03)))
    title = f"gradients of {rows[0].objective}"
    if interactive:
        return explorable(panels, title=title, columns=columns)
    figure, axes = _drawn(panels, columns)
    for panel, ax in zip(panels, axes, strict=True):
        layers = list(panel.lines[0].x)
        ax.set_xlim(layers[0] - 0.4, layers[-1] + 0.4)
        if len(layers) <= 16:
            ax.set_xticks(layers)
    figure.suptitle(title, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False,
        fontsize=9,
    )  # fmt: skip
    return figure


def plot_captured(
    found: FeatureAnsatz,
    *,
    objective: str | None = None,
    kinds: Sequence[str] | None = None,
    columns: int = 4,
    interactive: bool = False,
) -> Any:
    """Share of the best k directions' gradient variance that W's top k hold, one panel a kind.

    Layers are shades from light (first) to dark (last); dashed, what random directions would hold.

    Args:
        found: from `feature_ansatz`.
        objective: which; the first by default.
        kinds: which kinds of weight; all by default.
        columns: panels a row.
        interactive: a plotly figure, in place of one of matplotlib.

    Raises:
        ImportError: if plotly is not installed, and asked for.
    """
    rows = _chosen(found, objective, kinds)
    last = max(row.layer for row in rows)
    panels: dict[str, list[Line]] = {}
    for row in rows:
        shade = 0.25 + 0.75 * (row.layer / last if last else 1.0)
        red, green, blue = (1 - shade * (1 - c) for c in to_rgb(PALETTE[0]))
        color = to_hex((red, green, blue))
        share = row.captured().tolist()
        k = range(1, len(share) + 1)
        chance = {"color": color, "linewidth": 1, "linestyle": "--"}
        panels.setdefault(row.kind, []).extend(
            [
                Line(k, share, f"layer {row.layer}", {"color": color, "linewidth": 1.8}),
                Line(k, row.captured_by_chance().tolist(), look=chance),
            ]
        )
    made = [
        Panel("k", "captured share", lines, title=kind, ends=(0, 1.03))
        for kind, lines in panels.items()
    ]
    title = f"gradients of {rows[0].objective}"
    if interactive:
        return explorable(made, title=title, columns=columns)
    figure, axes = _drawn(made, columns)
    for ax in axes:
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=10)
    return figure


def _chosen(
    found: FeatureAnsatz, objective: str | None, kinds: Sequence[str] | None
) -> list[WeightAnsatz]:
    known = list(dict.fromkeys(row.objective for row in found))
    objective = known[0] if objective is None else objective
    rows = [
        row for row in found if row.objective == objective and (kinds is None or row.kind in kinds)
    ]
    if not rows:
        all_kinds = list(dict.fromkeys(row.kind for row in found))
        of_kinds = "" if kinds is None else f" of kinds {', '.join(kinds)}"
        raise ValueError(
            f"Nothing was measured{of_kinds} under the objective {objective!r}; there are the kinds "
            f"{', '.join(all_kinds)} and the objectives {', '.join(known)}."
        )
    return rows


def _drawn(panels: Sequence[Panel], columns: int) -> tuple[Figure, list[Axes]]:
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Picture(figsize=(3.0 * columns + 0.6, 2.7 * rows + 0.8), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten().tolist()
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for i, (panel, ax) in enumerate(zip(panels, axes, strict=False)):
        plain(ax).set_title(panel.title, fontsize=10)
        for line in panel.lines:
            line.draw(ax)
        ax.set_ylim(panel.ends)
        ax.set_xlabel(panel.x)
        if i % columns == 0:
            ax.set_ylabel(panel.y)
    return figure, axes[: len(panels)]
