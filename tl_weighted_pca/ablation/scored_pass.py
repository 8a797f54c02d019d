"""One pass over data that scores a model as it is and under many edits, sequence by sequence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.scores import Score, Scorer
from tl_weighted_pca.data.batches import Batch, batches
from tl_weighted_pca.data.positions import Outliers, Positions
from tl_weighted_pca.data.progress import Progress
from tl_weighted_pca.models.downstream import Downstream, Edit
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.run import Run
from tl_weighted_pca.streaming.checkpoint import Checkpoint

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
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many positions were left as they are for their norm, by hook point and position."""

    def curves(self, rows: Mapping[str, slice], **fields: Any) -> AblationCurves:
        """The curves whose ranks are these rows of edits, by name."""
        return AblationCurves(
            per_sequence={name: self.edited[where] for name, where in rows.items()},
            baseline_per_sequence=self.baseline,
            counts=self.counts,
            unit=self.unit,
            left_out=self.left_out,
            **fields,
        )


class ScoreSums:
    """Scores of the batches so far; `Checkpoint` keeps them, and they go on from there."""

    def __init__(self) -> None:
        self.n_tokens = self.n_sequences = 0
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, batch: Batch, edited: Tensor, baseline: Tensor, counts: Tensor) -> None:
        """Take those of a batch: edited [edit, batch], the others [batch]."""
        self.n_tokens += batch.n_tokens
        self.n_sequences += len(batch.sequence_index)
        parts = edited, baseline, counts, batch.sequence_index
        for name, part in zip(("edited", "baseline", "counts", "order"), parts, strict=True):
            self._parts.setdefault(name, []).append(part)

    def state(self) -> dict[str, Tensor]:
        """All so far, in the order of the batches."""
        return {name: torch.cat(parts, -1) for name, parts in self._parts.items()}

    def restore(self, state: Mapping[str, Tensor], n_tokens: int, n_sequences: int) -> None:
        """Go on from what `state` gave."""
        self.n_tokens, self.n_sequences = n_tokens, n_sequences
        self._parts = {name: [part] for name, part in state.items()}

    def scores(self, unit: str) -> Scores:
        """The scores in the order of the data; raises ValueError where no sequence has a term."""
        found = self.state()
        if not bool(found["counts"].any()):
            raise ValueError(
                "The data have no token to predict, and so no loss: pass sequences of two tokens or more."
            )
        by_index = found.pop("order").argsort(stable=True)
        in_order: dict[str, Any] = {name: part[..., by_index] for name, part in found.items()}
        return Scores(**in_order, unit=unit)


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
    outliers: float | Outliers | None = None,
    downstream: Downstream | None = None,
    sums: ScoreSums | None = None,
    checkpoint: Checkpoint | None = None,
) -> Scores:
    """The model's scores with each of the edits, and without any, in one pass over the data.

    Each batch's unablated model runs once. Arguments are those of `ablation_curves`; hook points are
    names that `resolve` gave.

    Args:
        prepare: told each batch's run before its edits are asked.
        downstream: of all the hook points, if there is one already.
        sums: what the checkpoint keeps.
        checkpoint: where to go on from, and to write to.
    """
    scorer, sums = Scorer(score), sums or ScoreSums()
    left_out = Outliers.checked(outliers)
    names = list(dict.fromkeys(name for one in edits for name in one))
    if checkpoint is not None:
        checkpoint.resume()
    bar = Progress(data, batch_size, max_tokens, progress, title="Ablating", passes=len(edits))
    with bar, quiet(model, gradients=False):
        downstream = downstream or Downstream(model, names, positions, left_out)
        for batch in batches(data, batch_size, max_tokens=max_tokens, may_be_empty=False):
            if checkpoint is not None and checkpoint.skips(batch):
                bar.skip(batch)
                continue
            run = downstream.start(batch)
            if prepare is not None:
                prepare(run)
            baseline, counts = scorer.unablated(run)
            rows = []
            for one in edits:
                rows.append(scorer(run, downstream.resume(one))[0])
                bar.advance(batch)
            sums.add(batch, torch.stack(rows), baseline, counts)
            if checkpoint is not None:
                checkpoint.advance()
        if checkpoint is not None:
            checkpoint.finish()
    found = sums.scores(scorer.unit)
    return found if left_out is None else replace(found, left_out=left_out.report())


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
