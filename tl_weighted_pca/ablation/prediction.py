"""What an ablation should cost to second order: from gradients at the unablated model, without ablating."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.fill import Fill
from tl_weighted_pca.ablation.scores import Score
from tl_weighted_pca.bases.allocation import has_metric
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.data.positions import Outliers, Positions
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.objectives.losses import (
    Objective,
    ObjectiveName,
    checked_objective,
    objective_name,
)
from tl_weighted_pca.streaming.pairs import Pairs, stream_pairs

Kept = Sequence[Mapping[str, int]]
"""The components kept at each hook point, one mapping a rank."""


class Prediction:
    """½ mean_y (Σ_h Σ_s g_hs·δ_hs)², beside ½ Σ_h Σ_{i>k} Λ_hi: two forms of the second-order loss.

    δ_h = (f − c)(I − E_kD_k) is what an ablation takes away from what arrives at hook point h, with those
    before it ablated; g_h are the gradients, in the unablated model, of one sample y of the objective. With
    labels sampled from the model the mean over y is, to second order, the KL divergence summed over the
    sequence. Dropping its terms between positions and hook points, and the coupling of gradient and
    activation, leaves the second form, of bases in the metric E[g gᵀ].

    Args:
        objective: what to differentiate; True for labels sampled from the model.
        score: what is measured beside it.
        fill: what stands in for what is ablated.

    Raises:
        ValueError: for what this does not predict.
    """

    def __init__(
        self,
        objective: Objective | ObjectiveName | Literal[True],
        score: Score,
        fill: Fill,
    ) -> None:
        if fill == "resample":
            raise ValueError("predicted is of fill='mean' or 'zero', not of resampled sequences.")
        if objective is True and score != "kl":
            raise ValueError(
                f"predicted=True is of the KL divergence, and score is {score!r}: pass score='kl', or the "
                "objective whose square the score is."
            )
        self._objective = checked_objective("fisher" if objective is True else objective)

    def added_to(
        self,
        curves: AblationCurves,
        model: Any,
        data: Any,
        bases: Mapping[str, Mapping[str, Basis]],
        **options: Any,
    ) -> AblationCurves:
        """The curves with both predictions. One backward pass a sample serves all bases and ranks.

        At several hook points each basis and rank also runs the ablated model once more.
        """
        places = list(curves.kept[0])
        all_pairs = stream_pairs(model, data, places, objective=self._objective, **options)
        moved = _alone if len(places) == 1 else _Together(model, data, places, **options)
        found: dict[str, list[Tensor]] = {name: [] for name in bases}
        order, n_edited = [], dict.fromkeys(places, 0)
        for pairs in all_pairs:
            for place, here in pairs.items():
                n_edited[place] += here.n_tokens
            order.append(pairs[places[0]].sequence_index)
            for name, each in moved(pairs, bases, curves.kept).items():
                found[name].append(each.double().cpu().square().mean(0).T / 2)
        by_index = torch.cat(order).argsort(stable=True)
        n = float(curves.counts.sum())
        what = objective_name(self._objective)
        dropped = {  # per scored position, though fewer are edited
            name: {s: _dropped(basis) * (n_edited[s] / n / 2) for s, basis in at.items()}
            for name, at in bases.items()
            if all(has_metric(basis, what) for basis in at.values())
        }
        return dataclasses.replace(
            curves,
            predicted_per_sequence={n: torch.cat(p, 1)[:, by_index] for n, p in found.items()},
            eigenvalue_prediction={
                name: [sum(float(at[s][k]) for s, k in step.items()) for step in curves.kept]
                for name, at in dropped.items()
            },
        )


def _alone(
    pairs: Mapping[str, Pairs], bases: Mapping[str, Mapping[str, Basis]], kept: Kept
) -> dict[str, Float[Tensor, "samples batch rank"]]:
    """Σ_s g_s·δ_s at one hook point, which gets what the unablated model gives."""
    ((place, here),) = pairs.items()
    ranks = [step[place] for step in kept]
    return {name: _moved(here, at[place])[..., ranks] for name, at in bases.items()}


class _Together:
    """Σ_h Σ_s g_hs·δ_hs at several hook points, batch by batch: the ablated model says what arrives."""

    def __init__(
        self,
        model: Any,
        data: Any,
        places: Sequence[str],
        *,
        positions: Positions,
        outliers: float | None,
        **options: Any,
    ) -> None:
        self._model, self._batches = model, batches(data, **options)
        self._downstream = Downstream(model, places, positions, Outliers.checked(outliers))
        self._positions = positions

    def __call__(
        self, pairs: Mapping[str, Pairs], bases: Mapping[str, Mapping[str, Basis]], kept: Kept
    ) -> dict[str, Float[Tensor, "samples batch rank"]]:
        with quiet(self._model, gradients=False):
            self._downstream.start(next(self._batches))
            return {
                name: torch.stack([self._ablated(pairs, at, step) for step in kept], -1)
                for name, at in bases.items()
            }

    def _ablated(
        self, pairs: Mapping[str, Pairs], bases: Mapping[str, Basis], step: Mapping[str, int]
    ) -> Float[Tensor, "samples batch"]:
        found: dict[str, Tensor] = {}

        def edit(f: Tensor, place: str) -> Tensor:
            new = bases[place].project(f, step[place])
            if place not in found:  # what fires again is the same
                g = _counted(pairs[place])
                taken = (f - new)[:, None] if f.ndim == 2 else (f - new).flatten(2)
                if taken.shape[1] > g.shape[2]:  # gradients come cut to a slice
                    taken = taken[:, self._positions]
                found[place] = torch.einsum("bsd,nbsd->nb", taken, g.to(taken))
            return new

        self._downstream.resume({place: partial(edit, place=place) for place in bases})
        return torch.stack(list(found.values())).sum(0)


def _counted(pairs: Pairs) -> Float[Tensor, "samples batch pos d"]:
    """The gradients, zero at positions that do not count."""
    g = pairs.gradients
    return g if pairs.mask is None else g.masked_fill(~pairs.mask[..., None], 0)


def _moved(pairs: Pairs, basis: Basis) -> Float[Tensor, "samples batch rank"]:
    """Σ_s g_s·δ_s at every rank 0..k: g·(f − c), less what the first components keep of it."""
    f, g = pairs.activations, _counted(pairs)
    if basis.per_head:
        f, g = (x.unflatten(-1, (-1, basis.width)) for x in (f, g))
    z = basis.encode(f)
    g, off_center, decoder = g.to(z), f.to(z) - basis.center.to(z), basis.decoder.to(z)
    if not basis.per_head:  # one head
        g, off_center, z, decoder = (
            g[..., None, :],
            off_center[..., None, :],
            z[..., None, :],
            decoder[None],
        )
    whole = torch.einsum("bshd,nbshd->nb", off_center, g)
    each = torch.einsum("bshk,nbshd,hkd->nbk", z, g, decoder)
    return whole[..., None] - pad(each.cumsum(-1), (1, 0))


def _dropped(basis: Basis) -> Float[Tensor, " rank"]:
    """Σ_{i>k} Λ_i at every rank 0..k, over all heads."""
    eigenvalues = basis.eigenvalues.reshape(-1, basis.n_components).sum(0)
    return (basis.total.sum() - pad(eigenvalues.cumsum(0), (1, 0))).clamp(min=0)
