"""What an ablation should cost to second order: from gradients at the unablated model, without ablating."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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
from tl_weighted_pca.data.batches import check_rereadable
from tl_weighted_pca.objectives.losses import Objective, objective_name, sampled_token_loss
from tl_weighted_pca.streaming.pairs import Pairs, stream_pairs


class Prediction:
    """½ mean_y (Σ_s g_s·δ_s)², beside ½ Σ_{i>k} Λ_i: two forms of the second-order loss.

    δ = (f − c)(I − E_kD_k) is what an ablation takes away, g the gradients of one sample y of the objective.
    With labels sampled from the model the mean over y is, to second order, the KL divergence summed over
    the sequence. Dropping its terms between positions and the coupling of gradient and activation leaves
    the second form, of bases in the metric E[g gᵀ].

    Args:
        objective: what to differentiate; True for labels sampled from the model.
        score: what is measured beside it.
        fill: what stands in for what is ablated.
        hook_points: where.

    Raises:
        ValueError: for what this does not predict.
    """

    def __init__(
        self,
        objective: Objective | Literal[True],
        score: Score,
        fill: Fill,
        hook_points: Sequence[str],
    ) -> None:
        if len(hook_points) > 1:
            raise ValueError(
                f"predicted is of one hook point, and there are {len(hook_points)}: call once for each."
            )
        if fill == "resample":
            raise ValueError("predicted is of fill='mean' or 'zero', not of resampled sequences.")
        if objective is True and score != "kl":
            raise ValueError(
                f"predicted=True is of the KL divergence, and score is {score!r}: pass score='kl', or the "
                "objective whose square the score is."
            )
        self._objective = sampled_token_loss() if objective is True else objective
        (self._hook_point,) = hook_points

    def added_to(
        self,
        curves: AblationCurves,
        model: Any,
        data: Any,
        bases: Mapping[str, Basis],
        **options: Any,
    ) -> AblationCurves:
        """The curves with both predictions. One backward pass a sample serves all bases and ranks."""
        check_rereadable(data, "a prediction goes through it once more")
        found: dict[str, list[Tensor]] = {name: [] for name in bases}
        order, n_edited = [], 0
        for pairs in stream_pairs(
            model, data, self._hook_point, objective=self._objective, **options
        ):
            here = pairs[self._hook_point]
            n_edited += here.n_tokens
            order.append(here.sequence_index)
            for name, basis in bases.items():
                moved = _moved(here, basis).double().cpu()[..., curves.ranks]
                found[name].append(moved.square().mean(0).T / 2)
        by_index = torch.cat(order).argsort(stable=True)
        share = n_edited / float(curves.counts.sum())  # of the scored positions
        what = objective_name(self._objective)
        return dataclasses.replace(
            curves,
            predicted_per_sequence={n: torch.cat(p, 1)[:, by_index] for n, p in found.items()},
            eigenvalue_prediction={
                name: (_dropped(basis)[curves.ranks] * share / 2).tolist()
                for name, basis in bases.items()
                if has_metric(basis, what)
            },
        )


def _moved(pairs: Pairs, basis: Basis) -> Float[Tensor, "samples batch rank"]:
    """Σ_s g_s·δ_s at every rank 0..k: g·(f − c), less what the first components keep of it."""
    f, g = pairs.activations, pairs.gradients
    if pairs.mask is not None:
        g = g.masked_fill(~pairs.mask[..., None], 0)
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
