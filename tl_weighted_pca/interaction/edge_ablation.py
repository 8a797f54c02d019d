"""Edge ablation: keep the strongest interactions between two layers, cut the others, score the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.scored_pass import ScoreSums
from tl_weighted_pca.ablation.scores import Score, Scorer
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.data.progress import Progress
from tl_weighted_pca.interaction.graph import InteractionGraph, top_edges
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.fingerprint import made_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.support.whole_numbers import checked_counts


def edge_ablation_curves(
    model: Any,
    data: Any,
    graphs: Mapping[str, InteractionGraph],
    between: tuple[str, str],
    *,
    n_edges: Sequence[int],
    score: Score = "loss",
    positions: Positions = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    anywhere: bool = False,
    progress: bool = True,
) -> AblationCurves:
    """score(n) with ẑ'_j = z'_j(z ∘ m_·j), m the mask of the n strongest edges between two layers.

    Each feature j of the later hook point is computed from those features of the earlier one whose
    edge to j is kept; the others are at their mean. What is in neither basis is at its mean too. That
    takes one partial pass of the model for each distinct column of the mask.

    Args:
        model: as for `collect`.
        data: as for `ablation_curves`.
        graphs: from `interaction_edges`, by name.
        between: the two hook points; all that reaches the later must pass through the earlier.
        n_edges: how many of the strongest edges to keep; more than there are keeps all.
        score: as for `ablation_curves`.
        positions: where to ablate, at both.
        batch_size: sequences a batch.
        max_tokens: stop before exceeding so many tokens of data.
        anywhere: use graphs also of models that they were not made from.
        progress: show a progress bar.

    Returns:
        Scores by number of edges: `AblationCurves` whose `ranks` are `n_edges`.

    Raises:
        TypeError: for graphs that are no dict of graphs by name.
        ValueError: for a pair of hook points that a graph has no edges between, or a graph of another
            model.
    """
    if not isinstance(graphs, Mapping) or not graphs:
        raise TypeError(
            f"graphs is {graphs!r}; expected a dict of at least one graph by name, such as "
            "{'LIB': interaction_edges(…)}."
        )
    between = (between[0], between[1])
    _check_graphs(model, graphs, between, anywhere)
    counts = sorted(set(checked_counts("n_edges", n_edges)))
    if not counts:
        raise ValueError("n_edges is empty; expected at least one number of edges.")
    masks = [
        (graph, top_edges(graph.edges[between], count))
        for graph in graphs.values()
        for count in counts
    ]
    scorer, sums = Scorer(score), ScoreSums()
    bar = Progress(
        data, batch_size, max_tokens, progress, title="Ablating edges", passes=len(masks)
    )
    with bar, quiet(model, gradients=False):
        downstream = Downstream(model, between, positions)
        for batch in batches(data, batch_size, max_tokens=max_tokens, may_be_empty=False):
            run = downstream.start(batch)
            baseline, terms = scorer.unablated(run)
            rows = []
            for graph, mask in masks:
                later = _recomputed(downstream, between, graph, mask)
                output = downstream.resume({between[1]: partial(_instead, later)})
                rows.append(scorer(run, output)[0])
                bar.advance(batch)
            sums.add(batch, torch.stack(rows), baseline, terms)
    n = len(counts)
    return sums.scores(scorer.unit).curves(
        {name: slice(i * n, (i + 1) * n) for i, name in enumerate(graphs)},
        ranks=counts,
        width=max(graph.edges[between].numel() for graph in graphs.values()),
        hook_point=" → ".join(between),
    )


def _check_graphs(
    model: Any, graphs: Mapping[str, InteractionGraph], between: tuple[str, str], anywhere: bool
) -> None:
    """Raise ValueError for a graph without edges between the hook points, or of another model."""
    places = {} if anywhere else {name: made_at(model, name) for name in between}
    for name, graph in graphs.items():
        if between not in graph.edges:
            raise ValueError(
                f"The graph {name!r} has no edges between {between[0]!r} and {between[1]!r}; it has them "
                f"between {', '.join(map(str, graph.edges))}."
            )
        for hook_point, place in places.items():
            graph.bases[hook_point].check_place(place, "pass anywhere=True")


def _instead(later: Tensor, tensor: Tensor) -> Tensor:
    return later.to(tensor)


def _recomputed(
    downstream: Downstream,
    between: tuple[str, str],
    graph: InteractionGraph,
    mask: Bool[Tensor, "here there"],
) -> Tensor:
    """Activations at the later hook point, each feature computed from its own kept edges."""
    earlier, later = (graph.bases[hook_point] for hook_point in between)
    columns, which = mask.mT.unique(dim=0, return_inverse=True)
    parts = []
    for number, column in enumerate(columns):
        seen: list[Tensor] = []

        def edit(tensor: Tensor, column: Tensor = column) -> Tensor:
            kept = earlier.encode(_flat(tensor)) * column.to(tensor)
            return earlier.decode(kept).to(tensor.dtype).reshape(tensor.shape)

        def see(tensor: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(tensor)
            return tensor

        downstream.resume(dict(zip(between, (edit, see), strict=True)))
        parts.append(later.encode(_flat(seen[0]))[..., which == number])
    coordinates = torch.cat(parts, -1)[..., which.argsort(stable=True).argsort()]
    return later.decode(coordinates).reshape(seen[0].shape)


def _flat(tensor: Tensor) -> Tensor:
    """One space of all heads."""
    return tensor.flatten(2) if tensor.ndim == 4 else tensor
