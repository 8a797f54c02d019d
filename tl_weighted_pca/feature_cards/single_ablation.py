"""What a model loses with one component ablated and all others left."""

from __future__ import annotations

from typing import Any

import torch
from tqdm.auto import tqdm

from tl_weighted_pca.curves import AblationCurves
from tl_weighted_pca.data import Positions, batches, count_tokens
from tl_weighted_pca.downstream import Downstream
from tl_weighted_pca.feature_cards.components import Components
from tl_weighted_pca.quiet_model import quiet
from tl_weighted_pca.scores import Score, Scorer


def single_ablations(
    model: Any,
    data: Any,
    components: Components,
    hook_point: str,
    *,
    score: Score,
    positions: Positions,
    batch_size: int,
    max_tokens: int | None,
    progress: bool,
) -> AblationCurves:
    """The score with f ↦ f − z_i D_i at a hook point, for each component i alone.

    Arguments are those of `ablation_curves`, which keeps what is ablated here and ablates the rest.

    Returns:
        Curves of one rank, d − 1, by the component's name.
    """
    scorer = Scorer(score)
    removals = {name: components.removal(i) for i, name in enumerate(components.names)}
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in removals}
    baseline, counts, order = [], [], []
    total = count_tokens(data, max_tokens)
    bar = tqdm(
        total=None if total is None else total * len(removals), unit="tok", unit_scale=True,
        desc="Ablating", dynamic_ncols=True, disable=not progress,
    )  # fmt: skip
    with bar, quiet(model, gradients=False):
        downstream = Downstream(model, hook_point, positions)
        for batch in batches(data, batch_size, max_tokens=max_tokens):
            run = downstream.start(batch)
            whole, n = scorer(run, run.output)
            baseline.append(whole)
            counts.append(n)
            order.append(batch.sequence_index)
            for name, removal in removals.items():
                scores[name].append(scorer(run, downstream.resume(removal))[0])
                bar.update(batch.n_tokens)
    by_index = torch.cat(order).argsort(stable=True)
    width = components.basis.width
    return AblationCurves(
        ranks=[width - 1],
        width=width,
        per_sequence={name: torch.cat(parts)[by_index][None] for name, parts in scores.items()},
        baseline_per_sequence=torch.cat(baseline)[by_index],
        counts=torch.cat(counts)[by_index],
        hook_point=hook_point,
        unit=scorer.unit,
    )
