"""ProLU: a ReLU whose bias gates without shifting, and the two gradients it is trained with.

Source: Taggart 2024, "ProLU: A Nonlinearity for Sparse Autoencoders".
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

GradientRule = Literal["ste", "relu"]
"""What stands in for the derivative of the gate: "ste" (straight-through) or "relu"."""


def prolu(
    m: Float[Tensor, "..."],
    b: Float[Tensor, "..."],
    gradient: GradientRule = "ste",
    *,
    relu_where_positive: bool = False,
) -> Float[Tensor, "..."]:
    """ProLU(m, b) = m where m > 0 and m + b > 0, else 0.

    With H the step function, f = ReLU(m) · H(m + b). The bias silences small m and leaves what passes
    as it is, where ReLU(m + b) would shrink it; a positive bias acts as zero. So ∂f/∂b is zero almost
    everywhere and b could not be learned: each rule puts something in its place. Write gate for
    H(m)·H(m + b).

    "relu": the gradient of ReLU(m + b), wherever f is not zero:

        ∂f/∂m := gate        ∂f/∂b := gate

    "ste", the straight-through estimator: in the product rule, H′ is replaced by the derivative of
    ReLU, that is by H itself, H′(m + b) := H(m + b); and then

        ∂f/∂m = H(m)·H(m + b) + ReLU(m)·H′(m + b) := gate · (1 + m)
        ∂f/∂b =                 ReLU(m)·H′(m + b) := gate · m

    Both are zero outside the gate. The second depends on the unit in which m is measured.

    Args:
        m: pre-activations.
        b: biases, of any shape that broadcasts with `m`.
        gradient: "ste" or "relu". Mixing them, one for m and the other for b, does worse (Taggart).
        relu_where_positive: take ReLU(m + b), with its true gradient, where b > 0.

    Returns:
        The broadcast shape, in the common dtype.

    Raises:
        ValueError: for another `gradient`.
    """
    if gradient not in get_args(GradientRule):
        raise ValueError(f"gradient is {gradient!r}; expected 'ste' or 'relu'.")
    rule: Any = _StraightThrough if gradient == "ste" else _ReLULike
    gated: Tensor = rule.apply(m, b)
    if not relu_where_positive:
        return gated
    # torch.where hands each branch only its own gradient.
    return torch.where(b > 0, torch.relu(m + b), gated)


def _closed(m: Tensor, b: Tensor) -> Tensor:
    """Where the gate is shut. Asked this way round, NaN passes on and is not mistaken for zero."""
    return m <= (-b).clamp(min=0)


class _Gate(torch.autograd.Function):
    """The forward pass, which both rules share."""

    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor, b: Tensor) -> Tensor:
        zero = m.new_zeros((), dtype=torch.result_type(m, b))
        return torch.where(_closed(m, b), zero, m.to(zero.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _ReLULike(_Gate):
    """∂/∂m := gate, ∂/∂b := gate."""

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        m, b = ctx.saved_tensors
        passed = upstream.masked_fill(_closed(m, b), 0.0)
        return _reduced(passed, m), _reduced(passed, b)


class _StraightThrough(_Gate):
    """∂/∂m := gate · (1 + m), ∂/∂b := gate · m."""

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        m, b = ctx.saved_tensors
        closed = _closed(m, b)
        to_b = (upstream * m).masked_fill(closed, 0.0)
        return _reduced(upstream.masked_fill(closed, 0.0) + to_b, m), _reduced(to_b, b)


def _reduced(gradient: Tensor, like: Tensor) -> Tensor:
    """Summed over the dimensions that broadcasting added, in the dtype of `like`."""
    return gradient.sum_to_size(like.shape).to(like.dtype)
