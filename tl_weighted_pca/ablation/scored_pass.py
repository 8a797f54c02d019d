"""One pass over data that scores a model as it is and under many edits, sequence by sequence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.scores import Score, Scorer
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.data.progress import Progress
from tl_weighted_pca.models.downstream import Downstream, Edit
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.run import Run

Edits = Mapping[str, Edit]
"""What one pass of the model is edited by: f ↦ edit(f) by hook point."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores summed over each sequence, in the order of the data."""

    edited: Float[Tensor, "edit sequence"]
    baseline: Float[Tensor, " sequence"]
    counts: Float[Tensor, " sequence"]
    """The terms in each sum."""
    unit: str

    def curves(self, rows: Mapping[str, slice], **fields: Any) -> AblationCurves:
        """The curves whose ranks are these rows of edits, by name."""
        return AblationCurves(
            per_sequence={name: self.edited[where] for name, where in rows.items()},
            baseline_per_sequence=self.baseline,
            counts=self.counts,
            unit=self.unit,
            **fields,
        )


def scores_of_edits(
    model: Any,
    data: Any,
    edits: Sequence[Edits],
    *,
    score: Score,
    positions: Positions,
    batch_size: int,
    max_tokens: int | None,
    progress: bool,
    prepare: Callable[[Run], None] | None = None,
) -> Scores:
    """The model's scores with each of the edits, and without any, in one pass over the data.

    Each batch's unablated model runs once. Arguments are those of `ablation_curves`; hook points are
    names that `resolve` gave, and `prepare` is told each batch's run before its edits are asked.
    """
    scorer = Scorer(score)
    edited: list[Tensor] = []
    baseline: list[Tensor] = []
    counts: list[Tensor] = []
    order: list[Tensor] = []
    bar = Progress(data, batch_size, max_tokens, progress, title="Ablating", passes=len(edits))
    with bar, quiet(model, gradients=False):
        names = dict.fromkeys(name for one in edits for name in one)
        downstream = Downstream(model, list(names), positions)
        for batch in batches(data, batch_size, max_tokens=max_tokens, may_be_empty=False):
            run = downstream.start(batch)
            if prepare is not None:
                prepare(run)
            scores, n = scorer.unablated(run)
            rows = []
            for one in edits:
                rows.append(scorer(run, downstream.resume(one))[0])
                bar.advance(batch)
            edited.append(torch.stack(rows))
            baseline.append(scores)
            counts.append(n)
            order.append(batch.sequence_index)
    by_index = torch.cat(order).argsort(stable=True)
    if not bool(torch.cat(counts).any()):
        raise ValueError(
            "The data have no token to predict, and so no loss: pass sequences of two tokens or more."
        )
    return Scores(
        torch.cat(edited, 1)[:, by_index],
        torch.cat(baseline)[by_index],
        torch.cat(counts)[by_index],
        scorer.unit,
    )


def warn_where_nothing_changes(
    scores: Float[Tensor, "edit sequence"], baseline: Float[Tensor, " sequence"]
) -> None:
    """Warn where no edit changes any score: it is not of what was ablated."""
    if len(scores) and bool((scores == baseline).all()):
        warnings.warn(
            "No ablation changed any score: the score does not see the positions that were ablated. The loss "
            "at the last position of a sequence, for one, has no next token: use score='kl' or a callable.",
            stacklevel=3,
        )
