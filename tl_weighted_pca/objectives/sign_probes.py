"""Random signs times values, summed: what `logit_probe` and `hook_probe` differentiate."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.support.randomness import signs


class SignProbes(torch.autograd.Function):
    """Σ_{s,o} v_kso · values_so for k probes, whose signs v are drawn again for the backward pass.

    Neither pass holds more than one probe, and the gradient of one probe costs one probe.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, seed: int, sequence: Tensor, position: Tensor, n_probes: int
    ) -> Tensor:
        ctx.save_for_backward(sequence, position)
        ctx.seed, ctx.like = seed, values[:0]
        counters = (sequence, position, values)
        wide = torch.promote_types(values.dtype, torch.float32)  # half precision would overflow
        return torch.stack(
            [(values * _probe(seed, k, *counters)).sum((1, 2), dtype=wide) for k in range(n_probes)]
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weights,) = gradients  # [probes, batch]
        sequence, position = ctx.saved_tensors
        like = ctx.like.new_empty(()).expand(*position.shape, ctx.like.shape[-1])
        result = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        for k in weights.abs().sum(1).nonzero().flatten().tolist():
            result += weights[k][:, None, None] * _probe(ctx.seed, k, sequence, position, like)
        return result, None, None, None, None


def _probe(
    seed: int, k: int, sequence: Tensor, position: Tensor, like: Float[Tensor, "batch pos outputs"]
) -> Float[Tensor, "batch pos outputs"]:
    outputs = torch.arange(like.shape[-1], device=like.device)
    return signs(seed, sequence[:, None, None], k, position[..., None], outputs).to(like)
