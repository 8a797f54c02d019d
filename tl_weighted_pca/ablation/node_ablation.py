"""Node ablation: keep the top k components of a basis, ablate the rest, and score the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.fill import Fill, Filling
from tl_weighted_pca.ablation.placed_bases import Bases, Rank, kept_components, placed_bases
from tl_weighted_pca.ablation.prediction import Prediction
from tl_weighted_pca.ablation.scored_pass import scores_of_edits, warn_where_nothing_changes
from tl_weighted_pca.ablation.scores import Score
from tl_weighted_pca.data.batches import check_rereadable
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.objectives.losses import Objective, ObjectiveName


def ablation_curves(
    model: Any,
    data: Any,
    bases: Bases,
    hook_point: str | None = None,
    *,
    ranks: Sequence[Rank] | None = None,
    score: Score = "loss",
    fill: Fill = "mean",
    seed: int = 0,
    predicted: bool | Objective | ObjectiveName = False,
    positions: Positions = None,
    outliers: float | None = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    anywhere: bool = False,
    progress: bool = True,
) -> AblationCurves:
    """score(k) of the model with f ↦ c + (f − c)E_kD_k at a hook point, for each basis and rank.

    Bases by hook point are ablated together: the edits go in as the forward pass goes by, so that a later
    hook point gets what the earlier ones have left. Where the model can start at a layer, only what lies
    downstream of the first of them is computed again for each rank and basis. The model is left as it was.

    Args:
        model: as for `collect`.
        data: as for `collect`; held-out data, or the curves flatter.
        bases: a basis, a list of them, or a dict by name, each of one hook point or a dict by hook point.
        hook_point: one name; by default where the bases were made.
        ranks: whole numbers are components at each hook point, 0..d; floats are shares of the width,
            0.0..1.0; a dict gives either by hook point, as `allocate_ranks` does. Nine of them, evenly
            spaced, by default. Per head, k in every head.
        score: "loss" (next-token loss in nats per predicted token), "kl" (Kullback-Leibler divergence
            from the unablated model, per position, the last included), or a callable of a `Run` giving
            [batch], whose `reference` is the unablated output.
        fill: c, what stands in for what is ablated: "mean" (the basis's centre), "zero", or "resample"
            (another sequence of the batch at the same position; the centre where no other is so long).
        seed: of the sequences that "resample" takes.
        predicted: with score="kl", also predict the excess to second order, from the gradients of labels
            sampled from the model: one more pass, with a backward pass, and at several hook points the
            ablated passes once more. Or an objective whose gradients to take, such as
            `sampled_token_loss(n_samples=4)`.
        positions: where to ablate; other positions are left as they are.
        outliers: leave as they are also positions whose norm in the unablated run exceeds so many medians
            of their own sequence, wherever they are; `left_out` counts them.
        batch_size: sequences per batch.
        max_tokens: stop before exceeding so many tokens of data.
        anywhere: use bases also at hook points or models that they were not made from.
        progress: show a progress bar.

    Returns:
        Scores by rank, kept per sequence. Of several hook points a rank is the components kept in all.

    Raises:
        TypeError: for anything but bases.
        ValueError: for ranks outside 0..d, a basis of another width, hook point or model, two names of one
            hook point, a hook point whose value the rest of the model does not read, or reads past the
            hook, or a prediction of the loss or of resampled sequences.
    """
    named = placed_bases(model, bases, hook_point, anywhere)
    kept = kept_components(ranks, named)
    n, places = len(kept), list(kept[0])
    filling = Filling(fill, seed)
    asked = None if predicted is False else Prediction(predicted, score, fill)
    if asked is not None:
        check_rereadable(data, "a prediction goes through it once more")
    edits = [
        {place: filling.edit(basis, step[place]) for place, basis in at.items()}
        for at in named.values()
        for step in kept
    ]
    options: dict[str, Any] = {
        "positions": positions, "outliers": outliers, "batch_size": batch_size,
        "max_tokens": max_tokens,
    }  # fmt: skip
    scores = scores_of_edits(
        model, data, edits, score=score, progress=progress, prepare=filling.prepare,
        **options,
    )  # fmt: skip
    width = sum(max(at[place].width for at in named.values()) for place in places)
    curves = scores.curves(
        {name: slice(i * n, (i + 1) * n) for i, name in enumerate(named)},
        ranks=[sum(step.values()) for step in kept], width=width, kept=kept,
        hook_point=places[0] if len(places) == 1 else f"{places[0]} … {places[-1]} ({len(places)})",
    )  # fmt: skip
    partial = [i for i, k in enumerate(curves.ranks * len(named)) if k < width]
    warn_where_nothing_changes(scores.edited[partial], scores.baseline)
    if asked is not None:
        about = {n: {s: filling.about(b) for s, b in at.items()} for n, at in named.items()}
        curves = asked.added_to(curves, model, data, about, **options)
    return curves
