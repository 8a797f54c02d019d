"""The picture of an interaction graph. It returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from torch import Tensor

from tl_weighted_pca.interaction.graph import InteractionGraph
from tl_weighted_pca.support.figure import PALETTE, Picture
from tl_weighted_pca.support.interactive import explorable
from tl_weighted_pca.support.panel import Line, Panel

_BANDS = 8
"""Widths of edges in an interactive picture, each of which is one line."""


def plot_interaction_graph(
    graph: InteractionGraph,
    *,
    share: float = 0.95,
    most_edges: int = 300,
    features: int = 64,
    groups: Mapping[tuple[str, int], int] | None = None,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    interactive: bool = False,
) -> Any:
    """Features as dots, layers from left to right, and the strongest interactions as curves.

    A layer's first features stand in the order that crosses fewest strong edges (barycentres). Areas
    of dots grow with the logarithm of variance, curves are the darker and wider the stronger.

    Args:
        graph: from `interaction_edges`.
        share: of each pair of layers' strength that the drawn edges hold, if `most_edges` allows.
        most_edges: drawn between two layers, at most.
        features: drawn a layer, at most.
        groups: a number from 0 for a feature's colour, by (hook point, i), such as a community; from
            the seventh on they are grey.
        labels: of the layers; their hook points by default.
        title: above the picture.
        interactive: a plotly figure, in place of one of matplotlib.

    Raises:
        ImportError: if plotly is not installed, and asked for.
    """
    names = list(graph.variances)
    shown = {name: min(features, len(v)) for name, v in graph.variances.items()}
    at = _places(graph, shown)
    ticks = list(labels) if labels is not None else _wrapped(names)
    edges = {
        pair: _drawn(graph, pair, share, most_edges, (shown[pair[0]], shown[pair[1]]))
        for pair in graph.edges
    }
    if interactive:
        lines = [
            line
            for layer, (pair, drawn) in enumerate(edges.items())
            for line in _bundles(layer, drawn, at[pair[0]], at[pair[1]])
        ]
        lines += [
            _dots(graph, layer, name, at[name], groups, edges) for layer, name in enumerate(names)
        ]
        ticked = [tick.replace("\n", "<br>") for tick in ticks]
        panel = Panel("", "", lines, ends=(-0.03, 1.03), ticks=range(len(names)), names=ticked)
        figure = explorable([panel], title=title or "")
        figure.update_yaxes(visible=False)
        return figure.update_layout(height=160 + 11 * max(*shown.values(), 24))
    figure = Picture(
        figsize=(2.6 * len(names) + 0.8, 1.2 + 0.11 * max(*shown.values(), 24)),
        dpi=120,
        layout="constrained",
    )
    ax = figure.subplots()
    for layer, ((here, there), drawn) in enumerate(edges.items()):
        if not drawn:
            continue
        top = drawn[0][0]
        paths, widths, colors = [], [], []
        for strength, i, j in reversed(drawn):  # the strongest on top
            weight = (strength / top) ** 0.5
            paths.append(_curve(layer, at[here][i], at[there][j]))
            widths.append(0.3 + 1.9 * weight)
            alike = _together(groups, (here, i), (there, j))
            tint = _color(groups, (here, i)) if alike else (0.3,) * 3
            colors.append((*tint, 0.06 + 0.84 * weight))
        ax.add_collection(LineCollection(paths, linewidths=widths, colors=colors, zorder=1))
    for layer, name in enumerate(names):
        ax.scatter(
            [layer] * shown[name], at[name], s=6 + 44 * _sizes(graph, name, shown[name]),
            zorder=2, edgecolors="white", linewidths=0.5,
            c=[_color(groups, (name, i)) for i in range(shown[name])],
        )  # fmt: skip
    ax.set_xlim(-0.2, len(names) - 0.8)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xticks(range(len(names)), ticks, fontsize=8)
    ax.set_yticks([])
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    if title is not None:
        ax.set_title(title, fontsize=10)
    return figure


Edge = tuple[float, int, int]
"""Its strength, and the features that it joins."""


def _drawn(
    graph: InteractionGraph, pair: tuple[str, str], share: float, most: int, shown: tuple[int, int]
) -> list[Edge]:
    """The edges of one pair of layers that are drawn, the strongest first."""
    strengths, mask = graph.edges[pair], graph.strongest(share)[pair]
    found = [
        (float(strengths[i, j]), i, j)
        for i, j in mask.nonzero().tolist()
        if i < shown[0] and j < shown[1]
    ]
    return sorted(found, reverse=True)[:most]


def _sizes(graph: InteractionGraph, name: str, shown: int) -> Tensor:
    """0 to 1, by the logarithm of variance."""
    variances = graph.variances[name][:shown].clamp(min=1e-300)
    return (variances / variances.max()).log10().clamp(min=-4) / 4 + 1


def _bundles(
    layer: int, drawn: Sequence[Edge], here: Sequence[float], there: Sequence[float]
) -> list[Line]:
    """Edges of like strength as one line with gaps, the strongest last: a line each would be slow."""
    bundles: dict[int, list[Edge]] = {}
    for edge in reversed(drawn):
        weight = (edge[0] / drawn[0][0]) ** 0.5
        bundles.setdefault(min(_BANDS - 1, int(_BANDS * weight)), []).append(edge)
    lines = []
    for band, edges in sorted(bundles.items()):
        weight = (band + 0.5) / _BANDS
        gap = [[np.nan, np.nan]]
        paths = [
            np.concatenate([_curve(layer, here[i], there[j]), gap]) for _, i, j in edges
        ]  # fmt: skip
        x, y = np.concatenate(paths).T.tolist()
        look = {"color": "#4d4d4d", "linewidth": 0.3 + 1.9 * weight, "alpha": 0.06 + 0.84 * weight}
        lines.append(Line(x, y, look=look, quiet=True))
    return lines


def _dots(
    graph: InteractionGraph,
    layer: int,
    name: str,
    at: Sequence[float],
    groups: Mapping[tuple[str, int], int] | None,
    edges: Mapping[tuple[str, str], Sequence[Edge]],
) -> Line:
    """A layer's features; pointing at one names its variance and its strongest partners."""
    told = []
    for i in range(len(at)):
        words = [f"{name}, feature {i}", f"variance {float(graph.variances[name][i]):.4g}"]
        for (here, there), drawn in edges.items():
            if here == name:
                words += [f"→ {k}: {s:.4g}" for s, j, k in drawn if j == i][:3]
            if there == name:
                words += [f"← {j}: {s:.4g}" for s, j, k in drawn if k == i][:3]
        told.append("<br>".join(words))
    look = {
        "color": [to_hex(_color(groups, (name, i))) for i in range(len(at))], "marker": "o", "linestyle": "",
        "markersize": (2 + 8 * _sizes(graph, name, len(at)).sqrt()).tolist(),
    }  # fmt: skip
    return Line([layer] * len(at), at, look=look, hover=told)


def _places(graph: InteractionGraph, shown: Mapping[str, int]) -> dict[str, list[float]]:
    """Heights of features in 0..1, strong partners side by side."""
    names = list(graph.variances)
    heights: dict[str, Tensor] = {n: 1 - _spread(torch.arange(shown[n])) for n in names}
    for _ in range(8):
        # Forward each layer is sorted by the one before it, backward by the one after.
        for (here, there), strengths in graph.edges.items():
            part = strengths[: shown[here], : shown[there]]
            heights[there] = _by_centre(part.mT, heights[here], heights[there])
        for (here, there), strengths in reversed(list(graph.edges.items())):
            part = strengths[: shown[here], : shown[there]]
            heights[here] = _by_centre(part, heights[there], heights[here])
    return {name: height.tolist() for name, height in heights.items()}


def _by_centre(weights: Tensor, partners: Tensor, now: Tensor) -> Tensor:
    """Heights in the order of each row's strength-weighted mean of its partners' heights."""
    total = weights.sum(1)
    centres = (weights @ partners.to(weights)) / total.clamp(min=1e-300)
    centres = torch.where(total > 0, centres, now.to(weights))
    return _spread(centres.argsort(stable=True).argsort())


def _spread(ranks: Tensor) -> Tensor:
    """Ranks 0..n−1 evenly over 0..1."""
    return (ranks.double() + 0.5) / max(1, len(ranks))


def _curve(layer: int, start: float, end: float) -> np.ndarray:
    t = np.linspace(0, 1, 24)
    return np.stack([layer + t, start + (end - start) * (3 * t**2 - 2 * t**3)], axis=1)


def _color(
    groups: Mapping[tuple[str, int], int] | None, node: tuple[str, int]
) -> tuple[float, float, float]:
    if groups is None or node not in groups:
        return to_rgb(PALETTE[0])
    # Six colours, and grey for the groups past them: cycling would make strangers look related.
    return to_rgb(PALETTE[groups[node]]) if 0 <= groups[node] < 6 else (0.6, 0.6, 0.6)


def _together(
    groups: Mapping[tuple[str, int], int] | None, a: tuple[str, int], b: tuple[str, int]
) -> bool:
    return groups is not None and a in groups and groups.get(a) == groups.get(b)


def _wrapped(names: Sequence[str]) -> list[str]:
    """Hook points on two lines: the module, and the point in it."""
    return ["\n".join(name.rsplit(".", 1)) for name in names]
