"""What pays on which kind of device: cache and threads on CPUs, few and large calls on GPUs.

A CPU is fast in what its cache holds, and LAPACK uses one core for the matrices of a batch. On a GPU each
call costs some microseconds however small, each question whether numbers are good waits for the device, and
what is too small for it is done sooner by the CPU, the way there and back included. float64 is slow on
consumers' cards (1/64 of float32), so that products with the tall factors are of float32 wherever the bounds
of `gram_svd.py` hold, as on a CPU; what is left in float64 is m × m. The numbers for GPUs are estimates: no
GPU has been measured yet (`benchmarks/gpu.py` will).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DeviceRule(NamedTuple):
    """How a batch of products is cut up, and what is not worth the device."""

    piece_bytes: int
    """Of factors, that are decomposed together."""
    threads: bool
    """Whether pieces are shared among threads."""
    gram_at_once: bool
    """Whether all rows' Gram matrices come from one product, not the lower triangle block by block."""
    least_work: int
    """Multiplications in AᵀA and BBᵀ below which the CPU does it all."""


CPU = DeviceRule(8 * 2**20, threads=True, gram_at_once=False, least_work=0)
GPU = DeviceRule(2**29, threads=False, gram_at_once=True, least_work=2**20)


def rule_for(X: Tensor) -> DeviceRule:
    """The rule of the device that a tensor is on."""
    return CPU if X.is_cpu else GPU
