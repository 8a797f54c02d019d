"""What a trained basis is worth on sequences that were held out, beside its start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_SURE = 1.64
"""Standard errors: a one-sided test at 95%."""


@dataclass(frozen=True)
class HeldOut:
    """Scores at each rank of a grid, one a sequence, and what the start and no ablation have there."""

    ranks: list[int]
    start: Float[Tensor, "rank sequence"]
    baseline: Float[Tensor, " sequence"]
    terms: Float[Tensor, " sequence"]
    """The number of terms in each sequence's score."""

    def excess(self, scores: Float[Tensor, "rank sequence"]) -> Float[Tensor, " rank"]:
        """The score over that of the unablated model."""
        return (scores - self.baseline).sum(-1) / self.terms.sum()

    def scale(self, scores: Float[Tensor, "rank sequence"]) -> Float[Tensor, " rank"]:
        """The excess, floored where it is noise: what an excess is relative to."""
        excess = self.excess(scores)
        _, error = self._mean(scores - self.baseline)
        known = torch.maximum(excess, error.nan_to_num(posinf=0.0))
        return known.clamp(min=max(1e-5 * float(excess.max()), 1e-12))

    def relative(self, scores: Float[Tensor, "rank sequence"]) -> float:
        """The mean over ranks, but for rank 0, of the excess over the start's."""
        counted = self._counted
        return float((self.excess(scores) / self.scale(self.start))[counted].mean())

    def lower(self, scores: Float[Tensor, "rank sequence"]) -> bool:
        """Whether the relative excess is significantly below the start's, by a paired test."""
        counted = self._counted
        falls = ((scores - self.start) / self.scale(self.start)[:, None])[counted].mean(0)
        return surely_lower(falls, self.terms)

    def worse(self, scores: Float[Tensor, "rank sequence"]) -> list[int]:
        """Ranks at which the excess is significantly above the start's, by a paired test at each."""
        mean, error = self._mean(scores - self.start)
        # Of what is as good, rounding tells nothing.
        rounding = 1e-6 * max(1.0, float(self.excess(self.start).max()))
        above = mean - _SURE * error > rounding
        return [k for k, is_above in zip(self.ranks, above.tolist(), strict=True) if is_above]

    @property
    def _counted(self) -> Bool[Tensor, " rank"]:
        return torch.tensor([k > 0 for k in self.ranks], device="cpu")

    def _mean(self, differences: Float[Tensor, "rank sequence"]) -> tuple[Tensor, Tensor]:
        return mean_and_error(differences, self.terms)


def mean_and_error(
    values: Float[Tensor, "*rank sequence"], terms: Float[Tensor, " sequence"]
) -> tuple[Float[Tensor, "*rank"], Float[Tensor, "*rank"]]:
    """Σ values / Σ terms over sequences, and its standard error; infinite for a single sequence."""
    n = len(terms)
    mean = values.sum(-1) / terms.sum()
    if n < 2:  # of a single sequence there is no spread to be sure by
        return mean, torch.full_like(mean, torch.inf)
    residual = values - mean[..., None] * terms
    error = (residual.square().sum(-1) * n / (n - 1)).sqrt() / terms.sum()
    return mean, error


def surely_lower(
    differences: Float[Tensor, " sequence"], terms: Float[Tensor, " sequence"]
) -> bool:
    """Whether Σ differences / Σ terms is below zero by more than 1.64 standard errors."""
    mean, error = mean_and_error(differences, terms)
    return bool(mean + _SURE * error < 0)
