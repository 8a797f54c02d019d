"""Random numbers that depend on where they are used, and on nothing else.

Each is a hash of its counters (seed, sequence, sample, position), so that neither the batch size nor
the padding, the device or the order of the batches changes what a sequence draws.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_weighted_pca.support.whole_numbers import checked_count


def seeded(seed: int) -> torch.Generator:
    """torch's generator on the CPU, from a seed; raises ValueError for one that is no whole number."""
    return torch.Generator("cpu").manual_seed(checked_count("seed", seed, least=-(2**63)))


def uniform(*counters: Int[Tensor, "..."] | int) -> Float[Tensor, "..."]:
    """Uniform on [0, 1), float64, one for each combination of the broadcast counters."""
    return _shift_right(_hashed(*counters), 11).double() * 2.0**-53


def signs(*counters: Int[Tensor, "..."] | int) -> Float[Tensor, "..."]:
    """Rademacher: +1 or −1 with equal probability, float32."""
    return 1.0 - 2.0 * _shift_right(_hashed(*counters), 63).float()


def _hashed(*counters: Int[Tensor, "..."] | int) -> Int[Tensor, "..."]:
    """Counters absorbed one by one through the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    state: Tensor = torch.zeros((), dtype=torch.int64, device="cpu")
    for counter in counters:
        if not isinstance(counter, Tensor):
            counter = torch.tensor(counter, device="cpu")
        counter = counter.long()
        state = state.to(counter.device) if counter.ndim else state
        state = state + counter.to(state.device) + _signed(0x9E3779B97F4A7C15)
        state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
        state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
        state = state ^ _shift_right(state, 31)
    return state


def _shift_right(x: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """A logical shift: torch's own copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
