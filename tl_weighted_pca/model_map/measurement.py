"""The measurement of a map: one pass that collects at all hook points, one that ablates each of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tl_weighted_pca.ablation.fill import Filling
from tl_weighted_pca.ablation.placed_bases import components_at, kept_components, placed_bases
from tl_weighted_pca.ablation.scored_pass import Scores, ScoreSums, scores_of_edits
from tl_weighted_pca.ablation.scores import Scorer
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.bases.principal_components import metric_pca, pca, random_basis
from tl_weighted_pca.data.batches import batches, check_rereadable
from tl_weighted_pca.data.positions import Outliers, Positions
from tl_weighted_pca.model_map.dimensions import DimensionMap
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.fingerprint import fingerprint
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import NamesFilter, resolve
from tl_weighted_pca.moments.second_moment import Moments
from tl_weighted_pca.objectives.losses import sampled_token_loss
from tl_weighted_pca.streaming.checkpoint import Checkpoint
from tl_weighted_pca.streaming.one_pass import collect

Makers = Mapping[str, Callable[[Moments], Basis]]

MAKERS: Makers = {"pca": pca, "fisher": metric_pca, "random": random_basis}
"""The bases that a map can make, by name."""

SHARES = (0.0, 1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)


def dimension_map(
    model: Any,
    data: Any,
    hook_points: NamesFilter | None = None,
    *,
    heldout: Any,
    bases: Sequence[str] | Mapping[str, Mapping[str, Basis]] = ("pca", "fisher"),
    shares: Sequence[float] = SHARES,
    tolerance: float = 0.1,
    score: Literal["loss", "kl"] = "loss",
    positions: Positions = None,
    outliers: float | None = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    heldout_tokens: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 20,
    progress: bool = True,
) -> DimensionMap:
    """min {k : score(k) − baseline ≤ tolerance} at every hook point: how many directions each layer uses.

    One pass over `data` collects the moments at all hook points; one over `heldout` ablates each hook
    point alone, for each basis and share, and runs each batch's unablated model once. The model is left as
    it was.

    Args:
        model: as for `collect`.
        data: as for `collect`, to make the bases of; None where `bases` are given.
        hook_points: as for `collect`, such as "blocks.*.hook_resid_post".
        heldout: other data of that kind, to score on; nothing that can be read only once.
        bases: which to make: "pca", "fisher" (PCA in the Fisher metric), "random"; or bases by name and
            hook point, which are used as they are.
        shares: of each hook point's width, that are kept.
        tolerance: the excess in nats up to which a rank is enough.
        score: "loss" or "kl", as for `ablation_curves`.
        positions: which positions count, and are ablated.
        outliers: leave out, hook point by hook point, positions whose norm exceeds so many medians of the
            norms of their own sequence: as for `collect` and `ablation_curves`.
        batch_size: sequences a batch.
        max_tokens: stop before exceeding so many tokens of data.
        heldout_tokens: the same for the held-out data.
        checkpoint: a folder to go on from, and to write to, made where there is none; see `collect`.
        checkpoint_every: batches between two writes.
        progress: show progress bars, with the time left.

    Returns:
        A `DimensionMap`: `AblationCurves` by hook point.

    Raises:
        ValueError: for unknown bases or shares, no hook points, and what `collect` and `ablation_curves`
            refuse: a hook point that cannot be ablated, before anything is collected.
        OSError: if the checkpoint cannot be written, with what there is as its attribute: the
            `collection`, or the `map` of the held-out sequences so far.
    """
    if score not in ("loss", "kl"):
        raise ValueError(f"score is {score!r}; expected 'loss' or 'kl', whose excess is in nats.")
    check_rereadable(heldout, "it is looked at before the bases are made")
    names = _hook_points(model, hook_points, bases)
    # 1 is all of the width here, not a component.
    shares = sorted({float(share) for share in shares})
    makers = None if isinstance(bases, Mapping) else _makers(bases)
    with quiet(model, gradients=False):  # what cannot be ablated is told before the long passes
        left_out = Outliers.checked(outliers)
        downstream = Downstream(model, names, positions, left_out)
        downstream.start(
            next(batches(heldout, batch_size, max_tokens=heldout_tokens, may_be_empty=False))
        )
        if left_out is not None:
            left_out.restore({})  # this batch comes once more
    for share in shares:
        components_at(share, downstream.widths)
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if makers is None:
        found = placed_bases(model, bases, None, anywhere=False)
    else:
        gradients = "fisher" in makers
        stats = collect(
            model, data, names,
            objective=sampled_token_loss() if gradients else None,
            statistics=["activation", "gradient"] if gradients else ["activation"],
            positions=positions, outliers=outliers, batch_size=batch_size, max_tokens=max_tokens,
            progress=progress,
            checkpoint=folder and folder / "checkpoint.moments.safetensors",
            checkpoint_every=checkpoint_every,
        )  # fmt: skip
        found = {name: {s: make(stats[s]) for s in names} for name, make in makers.items()}
    kept = {
        s: [step[s] for step in kept_components(shares, {n: {s: at[s]} for n, at in found.items()})]
        for s in names
    }
    filling = Filling("mean")
    edits = [{s: filling.edit(at[s], k)} for s in names for at in found.values() for k in kept[s]]
    sums, file = ScoreSums(), None
    if folder is not None:
        settings = {
            "weights": fingerprint(model), "score": score, "positions": repr(positions),
            "outliers": outliers, "batch_size": batch_size, "max_tokens": heldout_tokens,
            "ranks": kept, "code": {},
            "bases": {name: [at[s].digest for s in names] for name, at in found.items()},
        }  # fmt: skip
        path = folder / "checkpoint.scores.safetensors"
        file = Checkpoint(path, checkpoint_every, settings, {"scores": sums}, left_out)
    finished = partial(_map, found=found, kept=kept, shares=shares, tolerance=tolerance)
    try:
        scores = scores_of_edits(
            model, heldout, edits, score=score, positions=positions, outliers=left_out,
            batch_size=batch_size, max_tokens=heldout_tokens, progress=progress, downstream=downstream,
            sums=sums, checkpoint=file,
        )  # fmt: skip
    except OSError as error:
        if sums.n_sequences:
            report = {} if left_out is None else left_out.report()
            error.map = finished(replace(sums.scores(Scorer(score).unit), left_out=report))  # type: ignore[attr-defined]
        raise
    return finished(scores)


def _map(
    scores: Scores,
    found: dict[str, dict[str, Basis]],
    kept: Mapping[str, list[int]],
    shares: list[float],
    tolerance: float,
) -> DimensionMap:
    """The map that the scores of all edits make: by hook point, then basis, then rank."""
    curves, at = {}, 0
    for s in kept:
        rows, n = {}, len(kept[s])
        for name in found:
            rows[name], at = slice(at, at + n), at + n
        width = max(found[name][s].width for name in found)
        steps = [{s: k} for k in kept[s]]
        some = scores.curves(rows, ranks=kept[s], width=width, hook_point=s, kept=steps)
        here = {s: scores.left_out[s]} if s in scores.left_out else {}
        curves[s] = replace(some, left_out=here)
    return DimensionMap(curves, tolerance, shares, found)


def _hook_points(model: Any, hook_points: NamesFilter | None, bases: Any) -> list[str]:
    if isinstance(bases, Mapping):
        if hook_points is not None:
            raise ValueError("The bases are by hook point already: leave hook_points out.")
        return list(next(iter(bases.values()), {}))
    if hook_points is None:
        raise ValueError(
            "No hook points were given; name some, such as 'blocks.*.hook_resid_post'."
        )
    return resolve(model, hook_points)


def _makers(bases: Sequence[str]) -> Makers:
    names = [bases] if isinstance(bases, str) else list(bases)
    unknown = [name for name in names if name not in MAKERS]
    if unknown or not names:
        raise ValueError(
            f"bases is {bases!r}; expected some of {', '.join(map(repr, MAKERS))}, or bases by name and "
            "hook point."
        )
    return {name: MAKERS[name] for name in names}
