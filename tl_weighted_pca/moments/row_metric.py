"""Row metrics M, and the second moment of activations under one.

    c = Σ 1ᵀM1,   b = Σ FᵀM1,   G = Σ FᵀMF     over the sequences of a batch

Two contractions give that of a gradient row metric, M = g gᵀ per sequence:

    short sequences   K = (g gᵀ) F,  G = Fᵀ K     2 S² d + S d² products a sequence
    long sequences    T = gᵀ F,      G = Tᵀ T       S d² + d³   products a sequence

They cross near S = d/√2 by count, and at 0.75 d as `benchmarks/contraction.py` measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_weighted_pca.moments.packed import Packed, symmetric_product

RowMetric = (
    Literal["identity", "gradient", "diagonal"]
    | Callable[
        [Float[Tensor, "batch pos d"], Float[Tensor, "batch pos d"]], Float[Tensor, "batch pos pos"]
    ]
)
"""A name, or a callable (F, g) -> M giving one symmetric, positive semi-definite M per sequence.

A callable sees the rows that count, and no others: sequences with as many of them come together.
"""

ROW_METRICS = ("identity", "gradient", "diagonal")

_CROSSING = 0.75
"""S/d below which the contraction for short sequences is taken, as measured."""


def row_metric_name(row_metric: RowMetric) -> str:
    """The name that goes into files; raises ValueError for anything else."""
    if isinstance(row_metric, str) and row_metric in ROW_METRICS:
        return row_metric
    if not callable(row_metric):
        raise ValueError(
            f"row_metric is {row_metric!r}; expected one of {', '.join(ROW_METRICS)}, or a callable "
            "(F, g) -> [batch, pos, pos]."
        )
    own = (getattr(row_metric, "name", None), getattr(row_metric, "__name__", None))
    name = next((n for n in own if isinstance(n, str)), type(row_metric).__name__)
    return f"{name}()" if name in ROW_METRICS else name


def about_their_mean(
    rows: Float[Tensor, "*head batch pos d"], mask: Bool[Tensor, "batch pos"] | None, n_tokens: int
) -> tuple[Float[Tensor, "*head batch pos d"], Float[Tensor, "*head d"]]:
    """F − 1mᵀ, zero where the mask leaves out, and m, the mean of what is left."""
    if mask is None:
        mean = rows.sum((-3, -2)) / n_tokens
        return rows - mean[..., None, None, :], mean
    left_out = ~mask[..., None]
    rows = rows.masked_fill(left_out, 0.0)  # it may hold NaN
    mean = rows.sum((-3, -2)) / n_tokens
    return rows.sub_(mean[..., None, None, :]).masked_fill_(left_out, 0.0), mean


def plain_sums(
    rows: Float[Tensor, "*head batch pos d"], n_tokens: int
) -> tuple[Tensor, Tensor, Packed]:
    """(c, b, G) for M = I."""
    flat = rows.flatten(-3, -2)
    weight = rows.new_full(rows.shape[:-3], float(n_tokens))
    return weight, flat.sum(-2), symmetric_product(flat, flat)


def weighted_sums(
    row_metric: RowMetric,
    rows: Float[Tensor, "*head batch pos d"],
    g: Float[Tensor, "*head batch pos d"],
    mask: Bool[Tensor, "batch pos"] | None,
    shift: Float[Tensor, "*head d"],
) -> tuple[Tensor, Tensor, Packed]:
    """(c, b, G) of a batch about the shift σ.

    Args:
        row_metric: which; "identity" has the activations' own sums, and is none of this.
        rows: F − 1σᵀ, zero where the mask leaves out.
        g: gradients, zero there too.
        mask: of the positions that count; None for all.
        shift: σ.

    Raises:
        ValueError: for a callable's matrix that is misshapen or not symmetric.
    """
    if row_metric == "gradient":
        total = g.sum(-2)  # gᵀ1 of each sequence
        weight = total.square().sum((-2, -1))
        row_sums = torch.einsum("...bsd,...bd->...bs", g, total)  # M1 = g gᵀ1
        first = torch.einsum("...bs,...bsd->...d", row_sums, rows)
        if rows.shape[-2] < _CROSSING * rows.shape[-1]:
            mixed = (g @ g.mT) @ rows
            second = symmetric_product(rows.flatten(-3, -2), mixed.flatten(-3, -2))
        else:
            crossed = (g.mT @ rows).flatten(-3, -2)
            second = symmetric_product(crossed, crossed)
        return weight, first, second
    if row_metric == "diagonal":
        squared = g.square().sum(-1, keepdim=True)  # ‖g_s‖²
        scaled = squared * rows
        weight, first = squared.sum((-3, -2, -1)), scaled.sum((-3, -2))
        return weight, first, symmetric_product(rows.flatten(-3, -2), scaled.flatten(-3, -2))
    assert callable(row_metric)
    if mask is not None or not rows.shape[-2]:
        return _summed_by_length(row_metric, rows, g, mask, shift)
    metric = _called(row_metric, rows + shift.to(rows)[..., None, None, :], g)
    mixed = metric @ rows
    weight, first = metric.sum((-3, -2, -1)), mixed.sum((-3, -2))
    return weight, first, symmetric_product(rows.flatten(-3, -2), mixed.flatten(-3, -2))


def _summed_by_length(
    row_metric: RowMetric, rows: Tensor, g: Tensor, mask: Tensor | None, shift: Tensor
) -> tuple[Tensor, Tensor, Packed]:
    """(c, b, G) of sequences with as many rows that count each, and these alone, length by length.

    A callable may do anything with a sequence's rows, and must not see how far a batch was padded.
    """
    lead, d = rows.shape[:-3], rows.shape[-1]
    weight, first = rows.new_zeros(lead), rows.new_zeros((*lead, d))
    second = Packed.zeros(lead, d, dtype=rows.dtype, device=rows.device)
    lengths = rows.new_zeros(0) if mask is None else mask.sum(-1)
    for length in lengths.unique().tolist():
        if not length or mask is None:
            continue
        same = lengths == length
        kept = mask[same]
        F, own = (x[..., same, :, :][..., kept, :].unflatten(-2, (-1, length)) for x in (rows, g))
        parts = weighted_sums(row_metric, F, own, None, shift)
        weight, first, second = weight + parts[0], first + parts[1], second.add_(parts[2])
    return weight, first, second


def _called(
    row_metric: Callable[[Tensor, Tensor], Tensor], activations: Tensor, g: Tensor
) -> Float[Tensor, "*head batch pos pos"]:
    """M of a callable row metric, checked."""
    expected = (*g.shape[-3:-1], g.shape[-2])
    called = []
    # One call per head: what a user writes for [batch, pos, d] serves heads as well.
    heads = zip(activations, g, strict=True) if g.ndim == 4 else [(activations, g)]
    for of_head in heads:
        metric = row_metric(*of_head)
        if not isinstance(metric, Tensor) or metric.shape != expected:
            got = tuple(metric.shape) if isinstance(metric, Tensor) else type(metric).__name__
            raise ValueError(
                f"The row metric gave {got}; expected a tensor of shape {tuple(expected)}: "
                "one [pos, pos] matrix per sequence."
            )
        called.append(metric)
    metric = torch.stack(called).view(*g.shape[:-1], g.shape[-2]).to(activations)
    if not bool(metric.isfinite().all()):
        raise ValueError("The row metric gave NaN or infinity; expected finite matrices.")
    if not torch.allclose(metric, metric.mT, rtol=1e-4, atol=1e-5 * float(metric.abs().max())):
        raise ValueError(
            "The row metric gave a matrix that is not symmetric; a second moment FᵀMF needs a "
            "symmetric, positive semi-definite M: return (M + M.mT) / 2 if that is what you mean."
        )
    return metric
