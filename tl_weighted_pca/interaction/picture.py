"""The picture of an interaction graph. It returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from tl_weighted_pca.interaction.graph import InteractionGraph
from tl_weighted_pca.support.figure import PALETTE, Picture


def plot_interaction_graph(
    graph: InteractionGraph,
    *,
    share: float = 0.95,
    most_edges: int = 300,
    features: int = 64,
    groups: Mapping[tuple[str, int], int] | None = None,
    labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
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
    """
    names = list(graph.variances)
    shown = {name: min(features, len(v)) for name, v in graph.variances.items()}
    at = _places(graph, shown)
    tallest = max(shown.values())
    figure = Picture(
        figsize=(2.6 * len(names) + 0.8, 1.2 + 0.11 * max(tallest, 24)),
        dpi=120,
        layout="constrained",
    )
    ax = figure.subplots()
    for layer, (here, there) in enumerate(graph.edges):
        strengths = graph.edges[here, there]
        mask = graph.strongest(share)[here, there]
        drawn = [
            (float(strengths[i, j]), i, j)
            for i, j in mask.nonzero().tolist()
            if i < shown[here] and j < shown[there]
        ]
        drawn = sorted(drawn, reverse=True)[:most_edges]
        if not drawn:
            continue
        top = drawn[0][0]
        paths, widths, colors = [], [], []
        for strength, i, j in reversed(drawn):  # the strongest on top
            weight = (strength / top) ** 0.5
            paths.append(_curve(layer, at[here][i], at[there][j]))
            widths.append(0.3 + 1.9 * weight)
            tint = (
                _color(groups, (here, i))
                if _together(groups, (here, i), (there, j))
                else (0.3,) * 3
            )
            colors.append((*tint, 0.06 + 0.84 * weight))
        ax.add_collection(LineCollection(paths, linewidths=widths, colors=colors, zorder=1))
    for layer, name in enumerate(names):
        variances = graph.variances[name][: shown[name]].clamp(min=1e-300)
        size = (variances / variances.max()).log10().clamp(min=-4) / 4 + 1
        ax.scatter(
            [layer] * shown[name], at[name], s=6 + 44 * size, zorder=2, edgecolors="white",
            linewidths=0.5, c=[_color(groups, (name, i)) for i in range(shown[name])],
        )  # fmt: skip
    ax.set_xlim(-0.2, len(names) - 0.8)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xticks(range(len(names)), labels if labels is not None else _wrapped(names), fontsize=8)
    ax.set_yticks([])
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    if title is not None:
        ax.set_title(title, fontsize=10)
    return figure


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
