"""Node ablation: keep the top k components of a basis, ablate the rest, and score the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.scores import Score, Scorer
from tl_weighted_pca.bases.basis import Basis, check_bases
from tl_weighted_pca.data.batches import batches, count_tokens
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.fingerprint import made_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import resolve
from tl_weighted_pca.support.whole_numbers import checked_counts


def ablation_curves(
    model: Any,
    data: Any,
    bases: Mapping[str, Basis],
    hook_point: str,
    *,
    ranks: Sequence[int] | None = None,
    score: Score = "loss",
    positions: Positions = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
    anywhere: bool = False,
    progress: bool = True,
) -> AblationCurves:
    """score(k) of the model with f ↦ μ + (f − μ)E_kD_k at a hook point, for each basis and rank.

    Where the model can start at a layer, only what lies downstream of the hook point is computed
    again for each rank and basis. The model is left as it was.

    Args:
        model: as for `collect`.
        data: as for `collect`; held-out data, or the curves flatter.
        bases: by name.
        hook_point: one name.
        ranks: k, each within 0..d; nine of them, evenly spaced, by default. Per head, k in every head.
        score: "loss" (next-token loss in nats per predicted token), "kl" (Kullback-Leibler divergence
            from the unablated model, per position, the last included), or a callable of a `Run` giving
            [batch], whose `reference` is the unablated output.
        positions: where to ablate; other positions are left as they are.
        batch_size: sequences a batch.
        max_tokens: stop before exceeding so many tokens of data.
        anywhere: use bases also at hook points or models that they were not made from.
        progress: show a progress bar.

    Returns:
        Scores by rank, kept per sequence.

    Raises:
        TypeError: for bases that are no dict of bases by name.
        ValueError: for ranks that are no whole numbers or outside 0..d, a basis of another width, hook
            point or model, or a hook point whose value the rest of the model does not read, or reads past
            the hook.
    """
    check_bases(bases, "from names to Basis, such as {'pca': wpca.pca(moments)}")
    if not bases:
        raise ValueError("No bases were given; pass a dict such as {'pca': wpca.pca(moments)}.")
    (hook_point,) = resolve(model, [hook_point])
    if not anywhere:
        here = made_at(model, hook_point)
        for basis in bases.values():
            basis.check_place(here, "pass anywhere=True")
    width = max(basis.width for basis in bases.values())
    steps = _checked_ranks(ranks, bases, width)
    edits = {name: [partial(basis.project, k=k) for k in steps] for name, basis in bases.items()}
    return score_edits(
        model, data, hook_point, edits, ranks=steps, width=width, score=score,
        positions=positions, batch_size=batch_size, max_tokens=max_tokens, progress=progress,
    )  # fmt: skip


def score_edits(
    model: Any,
    data: Any,
    hook_point: str,
    edits: Mapping[str, Sequence[Callable[[Tensor], Tensor]]],
    *,
    ranks: Sequence[int],
    width: int,
    score: Score,
    positions: Positions,
    batch_size: int,
    max_tokens: int | None,
    progress: bool,
) -> AblationCurves:
    """The score with f ↦ edit(f) at a hook point: `edits` has one a name and rank.

    Other arguments are those of `ablation_curves`; the hook point's name is one that `resolve` gave.
    """
    scorer = Scorer(score)
    sums: dict[str, list[Tensor]] = {name: [] for name in edits}
    baseline: list[Tensor] = []
    counts: list[Tensor] = []
    order: list[Tensor] = []
    total = count_tokens(data, max_tokens)
    bar = tqdm(
        total=None if total is None else total * len(edits) * len(ranks), unit="tok",
        unit_scale=True, desc="Ablating", dynamic_ncols=True, disable=not progress,
    )  # fmt: skip
    with bar, quiet(model, gradients=False):
        downstream = Downstream(model, hook_point, positions)
        for batch in batches(data, batch_size, max_tokens=max_tokens, may_be_empty=False):
            run = downstream.start(batch)
            scores, n = scorer.unablated(run)
            baseline.append(scores)
            counts.append(n)
            order.append(batch.sequence_index)
            for name, by_rank in edits.items():
                rows = []
                for edit in by_rank:
                    rows.append(scorer(run, downstream.resume(edit))[0])
                    bar.update(batch.n_tokens)
                sums[name].append(torch.stack(rows))
    if not bool(torch.cat(counts).any()):
        raise ValueError(
            "The data have no token to predict, and so no loss: pass sequences of two tokens or more."
        )
    partial_ranks = [i for i, k in enumerate(ranks) if k < width]
    _note_where_nothing_changes([torch.cat(s, 1)[partial_ranks] for s in sums.values()], baseline)
    by_index = torch.cat(order).argsort(stable=True)
    return AblationCurves(
        ranks=list(ranks),
        width=width,
        per_sequence={name: torch.cat(parts, 1)[:, by_index] for name, parts in sums.items()},
        baseline_per_sequence=torch.cat(baseline)[by_index],
        counts=torch.cat(counts)[by_index],
        hook_point=hook_point,
        unit=scorer.unit,
    )


def _note_where_nothing_changes(scores: Sequence[Tensor], baseline: Sequence[Tensor]) -> None:
    """Warn where no edit, [rank, sequence] each, changes any score: it is not of what was ablated."""
    unablated = torch.cat(list(baseline))
    if all(len(one) and bool((one == unablated).all()) for one in scores):
        warnings.warn(
            "No ablation changed any score: the score does not see the positions that were ablated. The loss "
            "at the last position of a sequence, for one, has no next token: use score='kl' or a callable.",
            stacklevel=4,
        )


def _checked_ranks(
    ranks: Sequence[int] | None, bases: Mapping[str, Basis], width: int
) -> list[int]:
    most = min(basis.n_components for basis in bases.values())
    if ranks is None:
        return sorted({round(i * most / 8) for i in range(9)})
    steps = sorted(set(checked_counts("ranks", ranks)))
    wrong = [k for k in steps if k > most]
    if wrong or not steps:
        raise ValueError(
            f"ranks {wrong or '[]'} are outside 0..{most}, the components that every basis has."
        )
    return steps
