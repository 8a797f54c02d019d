"""Orthonormalising tall float32 matrices by matrix products: where, and how far, Cholesky-QR is safe.

See the second observation at the head of `decompose.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tl_weighted_pca.factored.device_rule import rule_for

# Cholesky-QR is used up to this κ: the loss of orthogonality is then 2⁻²⁵, under float32's rounding.
_SAFE_CONDITION = 2.0**14
# Up to this ‖D R⁻¹‖_F = κ / √m the last product is in float32, which rounds a vector of U by 2⁻²⁴ as much.
_NARROW_CONDITION = 2.0**5
# Nor does it where T overflows float32, or entries are so small that it has few digits for them.
_LEAST_SQUARE = 2.0**-200
# Columns of a block of the Gram matrix, and rows that float32 products are summed over.
_BLOCK, _ROWS = 48, 512


class Frame(NamedTuple):
    """A tall matrix Q R with orthonormal Q = X T."""

    X: Tensor
    T: Tensor
    R: Tensor


def orthonormalise(X: Tensor, exact: bool) -> Frame:
    """Cholesky-QR of each float32 matrix [n, l, m] where that is safe, else Householder's QR."""
    m = X.shape[-1]
    G = gram(X.double())
    L, T, condition = _cholesky(G)
    narrow = exact and condition.max() < _NARROW_CONDITION * math.sqrt(m)
    narrow = narrow and G.diagonal(dim1=-2, dim2=-1).min() > _LEAST_SQUARE
    unsafe = ~(condition < _SAFE_CONDITION)
    X = X if narrow else X.double()
    if unsafe.any():
        X[unsafe], R = torch.linalg.qr(X[unsafe])
        L[unsafe], T[unsafe] = R.mT, torch.eye(m, dtype=T.dtype, device=T.device)
    return Frame(X, T, L.mT)


def gram(X: Tensor) -> Tensor:
    """XᵀX in float64 [n, m, m]: at least its lower triangle, which is all that Cholesky reads.

    Products of float32 are of few rows each and summed in float64. Where their own rounding doesn't average
    out is for `gram_svd.py` to see.
    """
    m, dtype = X.shape[-1], torch.float64
    if rule_for(X).gram_at_once:
        return X.mT @ X if X.dtype == dtype else _gram_at_once(X)
    G = X.new_zeros(X.shape[0], m, m, dtype=dtype)
    few = X.new_zeros(X.shape[0], m, m)
    for rows in X.split(_ROWS if X.dtype != dtype else max(X.shape[-2], 1), dim=-2):
        for i in range(0, m, _BLOCK):
            j = i + _BLOCK
            torch.bmm(rows[..., i:j].mT, rows[..., :j], out=few[:, i:j, :j])
        G += few
    return G


def _gram_at_once(X: Tensor) -> Tensor:
    """The same by one product of all runs of rows, the last run apart."""
    n = X.shape[-2] // _ROWS
    whole, last = X.split([n * _ROWS, X.shape[-2] - n * _ROWS], dim=-2)
    runs = whole.unflatten(-2, (n, _ROWS))
    return (runs.mT @ runs).sum(-3, dtype=torch.float64) + last.mT @ last


def _cholesky(G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L with G = L Lᵀ, T = L⁻ᵀ, and κ [n] of the matrix that G is of: NaN where L breaks down."""
    m = G.shape[-1]
    L, breakdown = torch.linalg.cholesky_ex(G)
    identity = torch.eye(m, dtype=G.dtype, device=G.device).expand_as(L)
    T = torch.linalg.solve_triangular(L.mT, identity, upper=True)
    squares = G.diagonal(dim1=-2, dim2=-1)
    condition = (m * (T.square().sum(-1) * squares).sum(-1)).sqrt()
    return L, T, condition.masked_fill(breakdown != 0, torch.nan)


def float32_products_are_exact() -> bool:
    """Whether torch may not round factors to bfloat16 or TF32 before it multiplies."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was set for one backend alone
        return False
