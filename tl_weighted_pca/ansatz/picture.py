"""Pictures of the feature ansatz. Each function returns a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tl_weighted_pca.support.figure import MARKERS, PALETTE, Picture, plain

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
) -> Figure:
    """The cosine and its baselines by layer, one panel a kind of weight.

    Args:
        found: from `feature_ansatz`.
        objective: which; the first by default.
        kinds: which kinds of weight; all by default.
        power: exponent on the AGOP.
        columns: panels a row.
    """
    rows = _chosen(found, objective, kinds)
    table = replace(found, rows=tuple(rows)).to_pandas(power=power)
    figure, panels = _panels(list(dict.fromkeys(row.kind for row in rows)), columns)
    for kind, ax in panels.items():
        of_kind = table[table.kind == kind].sort_values("layer")
        for i, (column, label) in enumerate(_LINES.items()):
            ours = column == "cosine"
            ax.plot(
                of_kind.layer, of_kind[column], label=label, color=PALETTE[i], marker=MARKERS[i],
                linewidth=2.2 if ours else 1.2, markersize=6 if ours else 4,
                linestyle="-" if ours else "--", zorder=3 if ours else 2,
            )  # fmt: skip
        ax.set_ylim(0, 1.03)
        layers = sorted(of_kind.layer)
        ax.set_xlim(layers[0] - 0.4, layers[-1] + 0.4)
        if len(layers) <= 16:
            ax.set_xticks(layers)
        ax.set_xlabel("layer")
    figure.suptitle(f"gradients of {rows[0].objective}", fontsize=10)
    _label(panels, "cosine" if power == 1 else f"cosine with AGOP^{power:g}", columns)
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
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
) -> Figure:
    """Share of the best k directions' gradient variance that W's top k hold, one panel a kind.

    Layers are shades from light (first) to dark (last); dashed, what random directions would hold.

    Args:
        found: from `feature_ansatz`.
        objective: which; the first by default.
        kinds: which kinds of weight; all by default.
        columns: panels a row.
    """
    rows = _chosen(found, objective, kinds)
    figure, panels = _panels(list(dict.fromkeys(row.kind for row in rows)), columns)
    last = max(row.layer for row in rows)
    for row in rows:
        shade = 0.25 + 0.75 * (row.layer / last if last else 1.0)
        color = (*(1 - shade * (1 - c) for c in to_rgb(PALETTE[0])),)
        share = row.captured()
        k = torch.arange(1, len(share) + 1)
        ax = panels[row.kind]
        ax.plot(k, share, color=color, linewidth=1.8, label=f"layer {row.layer}")
        ax.plot(k, row.captured_by_chance(), color=color, linewidth=1, linestyle="--")
        ax.set_ylim(0, 1.03)
        ax.set_xlabel("k")
    for ax in panels.values():
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(f"gradients of {rows[0].objective}", fontsize=10)
    _label(panels, "captured share", columns)
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


def _panels(kinds: Sequence[str], columns: int) -> tuple[Figure, dict[str, Axes]]:
    columns = min(columns, len(kinds))
    lines = math.ceil(len(kinds) / columns)
    figure = Picture(
        figsize=(3.0 * columns + 0.6, 2.7 * lines + 0.8), dpi=120, layout="constrained"
    )
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten().tolist()
    for ax in axes[len(kinds) :]:
        ax.set_visible(False)
    panels = dict(zip(kinds, axes, strict=False))
    for kind, ax in panels.items():
        plain(ax).set_title(kind, fontsize=10)
    return figure, panels


def _label(panels: dict[str, Axes], label: str, columns: int) -> None:
    for i, ax in enumerate(panels.values()):
        if i % columns == 0:
            ax.set_ylabel(label)
