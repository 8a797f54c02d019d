"""Ranks of a nested basis: which are trained, which are measured, and what lies between those."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def measured_ranks(width: int) -> list[int]:
    """0, d/32, d/16 and the eighths of d."""
    return sorted({0, width // 32, width // 16, *(i * width // 8 for i in range(1, 8))})


def seeded(seed: int, number: int) -> torch.Generator:
    """The random numbers of one step, or of one pass over the data."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)


def drawn_ranks(width: int, n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """n ranks in 0..d−1 in random order, half of them uniform and half log-uniform, one a stratum.

    So each octave has its share, and the last one, where most ranks are, has more.
    """
    log_uniform = 1 / torch.arange(1, width + 1, dtype=torch.float64, device="cpu")
    cumulative = (1 / width + log_uniform / log_uniform.sum()).cumsum(0) / 2
    strata = torch.arange(n, dtype=torch.float64, device="cpu")
    points = (strata + torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")) / n
    drawn = torch.searchsorted(cumulative, points).clamp(max=width - 1)
    return drawn[torch.randperm(n, generator=generator, device="cpu")]


def interpolated(
    ranks: list[int], excess: Float[Tensor, " ranks"], width: int
) -> Float[Tensor, " width+1"]:
    """The excess at every rank 0..d: geometric between measured ranks, linear from the last to 0 at d."""
    curve = torch.zeros(width + 1, dtype=torch.float64, device="cpu")
    excess = excess.clamp(min=max(float(excess.max()), 1.0) * 1e-9)
    for low, high, left, right in zip(ranks, ranks[1:], excess, excess[1:], strict=False):
        share = torch.arange(high - low, dtype=torch.float64, device="cpu") / (high - low)
        curve[low:high] = torch.exp((1 - share) * math.log(left) + share * math.log(right))
    last = ranks[-1]
    share = torch.arange(width - last + 1, dtype=torch.float64, device="cpu") / max(1, width - last)
    curve[last:] = excess[-1] * (1 - share)
    return curve


def eigenvalues(curve: Float[Tensor, " width+1"]) -> Float[Tensor, " width"]:
    """Λ_i = 2 (excess(i − 1) − excess(i)), the nearest that descend: ½ Σ_{i>k} Λ_i is the excess."""
    blocks: list[tuple[float, int]] = []  # mean and length, pooled where one is below the next
    for fall in (2 * (curve[:-1] - curve[1:])).tolist():
        mean, length = fall, 1
        while blocks and blocks[-1][0] < mean:
            before, n = blocks.pop()
            mean, length = (before * n + mean * length) / (n + length), n + length
        blocks.append((mean, length))
    return torch.tensor(
        [mean for mean, length in blocks for _ in range(length)], dtype=torch.float64, device="cpu"
    )
