"""Edge ablation: keep the strongest interactions between two layers, cut the others, score the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.scores import Score, Scorer
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.data.batches import batches, count_tokens
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.interaction.graph import InteractionGraph, top_edges
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.fingerprint import made_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import hooked
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
    batch_size: int = 32,
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
    here, there = between = (between[0], between[1])
    places = {} if anywhere else {hook_point: made_at(model, hook_point) for hook_point in between}
    for name, graph in graphs.items():
        if between not in graph.edges:
            raise ValueError(
                f"The graph {name!r} has no edges between {here!r} and {there!r}; it has them between "
                f"{', '.join(map(str, graph.edges))}."
            )
        for hook_point, at in places.items():
            graph.bases[hook_point].check_place(at, "pass anywhere=True")
    counts = sorted(set(checked_counts("n_edges", n_edges)))
    if not counts:
        raise ValueError("n_edges is empty; expected at least one number of edges.")
    scorer = Scorer(score)
    sums: dict[str, list[Tensor]] = {name: [] for name in graphs}
    baseline, terms, order = [], [], []
    total = count_tokens(data, max_tokens)
    bar = tqdm(
        total=None if total is None else total * len(graphs) * len(counts), unit="tok",
        unit_scale=True, desc="Ablating edges", dynamic_ncols=True, disable=not progress,
    )  # fmt: skip
    with bar, quiet(model, gradients=False):
        source = Downstream(model, here, positions)
        target = Downstream(model, there, positions)
        for batch in batches(data, batch_size, max_tokens=max_tokens, may_be_empty=False):
            run = source.start(batch)
            target.start(batch)
            scores, n = scorer.unablated(run)
            baseline.append(scores)
            terms.append(n)
            order.append(batch.sequence_index)
            for name, graph in graphs.items():
                rows = []
                for count in counts:
                    mask = top_edges(graph.edges[between], count)
                    later = _recomputed(
                        model, source, there, graph.bases[here], graph.bases[there], mask
                    )
                    output = target.resume(partial(_instead, later))
                    rows.append(scorer(run, output)[0])
                    bar.update(batch.n_tokens)
                sums[name].append(torch.stack(rows))
    by_index = torch.cat(order).argsort(stable=True)
    return AblationCurves(
        ranks=counts,
        width=max(graph.edges[between].numel() for graph in graphs.values()),
        per_sequence={name: torch.cat(parts, 1)[:, by_index] for name, parts in sums.items()},
        baseline_per_sequence=torch.cat(baseline)[by_index],
        counts=torch.cat(terms)[by_index],
        hook_point=f"{here} → {there}",
        unit=scorer.unit,
    )


def _instead(later: Tensor, tensor: Tensor) -> Tensor:
    return later.to(tensor)


def _recomputed(
    model: Any,
    source: Downstream,
    there: str,
    earlier: Basis,
    later: Basis,
    mask: Bool[Tensor, "here there"],
) -> Tensor:
    """Activations at the later hook point, each feature computed from its own kept edges."""
    columns, which = mask.mT.unique(dim=0, return_inverse=True)
    coordinates: Tensor | None = None
    shape: torch.Size | None = None
    for number, column in enumerate(columns):
        seen: list[Tensor] = []

        def edit(tensor: Tensor, column: Tensor = column) -> Tensor:
            flat = tensor.flatten(2) if tensor.ndim == 4 else tensor
            kept = earlier.encode(flat) * column.to(flat)
            return earlier.decode(kept).to(tensor.dtype).reshape(tensor.shape)

        def see(tensor: Tensor, hook: Any, seen: list[Tensor] = seen) -> None:
            seen.append(tensor)

        with hooked(model, [(there, see)]):
            source.resume(edit)
        shape = seen[0].shape
        z = later.encode(seen[0].flatten(2) if seen[0].ndim == 4 else seen[0])
        coordinates = torch.empty_like(z) if coordinates is None else coordinates
        chosen = which == number
        coordinates[..., chosen] = z[..., chosen]
    assert coordinates is not None and shape is not None
    return later.decode(coordinates).reshape(shape)
