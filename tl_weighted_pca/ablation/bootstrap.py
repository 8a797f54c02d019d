"""Estimates with intervals: the paired percentile bootstrap over sequences."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.support.randomness import seeded

_RESAMPLES = 1000


class Estimate(float):
    """A number with its bootstrap interval: compares and computes as the number."""

    low: float
    """The interval's lower end."""
    high: float
    """The interval's upper end."""

    def __new__(cls, value: float, low: float, high: float) -> Estimate:
        self = super().__new__(cls, value)
        self.low, self.high = low, high
        return self

    def __repr__(self) -> str:
        return f"{float(self):.4g} [{self.low:.4g}, {self.high:.4g}]"

    __str__ = __repr__

    def __reduce__(self) -> tuple[type[Estimate], tuple[float, float, float]]:
        return Estimate, (float(self), self.low, self.high)


def resamples(counts: Float[Tensor, " sequence"], seed: int) -> Float[Tensor, "sequence resample"]:
    """How often each sequence appears in each bootstrap sample: none for fewer than two sequences."""
    if int((counts > 0).sum()) < 2:
        return torch.zeros(len(counts), 0, dtype=torch.float64, device="cpu")
    draws = _bootstrap(len(counts), seed)
    counted = counts @ draws > 0
    return draws if bool(counted.all()) else draws[:, counted]


@lru_cache(maxsize=1)  # one set of curves asks for it once a basis, or a component
def _bootstrap(n: int, seed: int) -> Float[Tensor, "sequence resample"]:
    """How often each of n sequences appears in each of the samples of n."""
    drawn = torch.randint(n, (n, _RESAMPLES), generator=seeded(seed), device="cpu")
    one = torch.ones((), dtype=torch.float64, device="cpu").expand(drawn.shape)
    return torch.zeros(n, _RESAMPLES, dtype=torch.float64, device="cpu").scatter_add_(0, drawn, one)


def interval(
    resampled: Float[Tensor, "*rank resample"], level: float, *, discrete: bool = False
) -> tuple[Tensor, Tensor]:
    """The percentile interval; the whole line where there was nothing to resample.

    Of what is `discrete`, such as ranks, its ends are values that occur.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a share between 0 and 1, such as 0.95.")
    if not resampled.shape[-1]:
        unknown = torch.full(resampled.shape[:-1], torch.inf, dtype=resampled.dtype, device="cpu")
        return -unknown, unknown
    tail = (1 - level) / 2
    down, up = ("lower", "higher") if discrete else ("linear", "linear")
    return (
        resampled.quantile(tail, -1, interpolation=down),
        resampled.quantile(1 - tail, -1, interpolation=up),
    )


def estimate(
    point: Tensor, resampled: Float[Tensor, " resample"], level: float, *, discrete: bool = False
) -> Estimate:
    """A value with the interval of its resampled values."""
    low, high = interval(resampled, level, discrete=discrete)
    return Estimate(float(point), float(low), float(high))
