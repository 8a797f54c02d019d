"""The SVD of a product from the Gram matrices of both factors, where their columns are nearly orthogonal.

See the first observation at the head of `decompose.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tl_weighted_pca.factored.cholesky_qr import gram

# Up to this ‖D x‖² for each column x of X and Y, D the norms of the columns, Gram matrices and last products
# of float32 will do: it is 1 for orthogonal columns, and rounding grows in proportion.
_STRETCH = 6.0
# As long as rounding averages out. Where all terms of a sum are rounded the same way (entries ±c, say), or
# one is far above the others, the sums of squares show it: all of their terms have one sign.
_BIAS = 7e-7
# Other entries are rounded less than squares, unless a row x is so long that the sums of all entries pass
# through x_i x_j and are rounded at that size. ‖D⁻¹ x‖² is m/l for rows of one length, m at the most.
_LONGEST_ROW = 4.0
# Rows of a sum of squares in float32.
_ROWS = 64
# Not where a column's square is so small that float32 products of its entries lose digits to underflow.
_LEAST_SQUARE = 2.0**-80
EIGH_RANGE = 2.0**12
"""Singular values further apart than this are not told by eigh of their squares: 2⁻⁵³ (2¹²)² = 2⁻²⁹."""


class Rotations(NamedTuple):
    """U = A X and V = Bᵀ Y, in float64; `good` [n] says for which matrices."""

    X: Tensor
    S: Tensor
    Y: Tensor
    good: Tensor


def rotations(A: Tensor, B: Tensor) -> Rotations | None:
    """A [n, l, m] and B [n, m, r] of float32; None where it is plain that none is good.

    R from AᵀA = RᵀR, then R (B Bᵀ) Rᵀ = W S² Wᵀ by eigh, X = R⁻¹ W and Y = Rᵀ W S⁻¹. Errors E of AᵀA and F
    of BBᵀ cost orthogonality Xᵀ E X of U and Yᵀ F Y of V: what decides is the same for both factors.
    """
    G, a_squares, good = _gram(A)
    L, breakdown = torch.linalg.cholesky_ex(G)
    pivots = L.diagonal(dim1=-2, dim2=-1).square()
    # The diagonal's share of Σ ‖D x‖², which is known at once.
    good &= (breakdown == 0) & ((a_squares / pivots).mean(-1) < _STRETCH)
    if not good.any():
        return None
    H, b_squares, b_good = _gram(B.mT)
    K = L.mT @ (H.tril() + H.tril(-1).mT) @ L
    good &= b_good & K.sum((-2, -1)).isfinite()
    K = torch.where(good[:, None, None], K, torch.eye(K.shape[-1], dtype=K.dtype, device=K.device))
    values, W = torch.linalg.eigh(K)
    S, W = values.flip(-1).sqrt(), W.flip(-1)
    X = torch.linalg.solve_triangular(L.mT, W, upper=True)
    Y = L @ W / S.unsqueeze(-2)
    for rotation, squares in ((X, a_squares), (Y, b_squares)):
        stretch = squares.unsqueeze(-2) @ rotation.square()
        good &= stretch.amax((-2, -1)) < _STRETCH
    good &= S[..., -1] * EIGH_RANGE > S[..., 0]
    good &= S[..., 0] < torch.finfo(torch.float32).max  # what overflows is for others to say
    return Rotations(X, S, Y, good)


def _gram(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """XᵀX of float32 products, its diagonal (summed with more care), and where they can be trusted."""
    G = gram(X)
    diagonal = G.diagonal(dim1=-2, dim2=-1)
    entries = X.square()
    squares = _sum_of_rows(entries)
    good = ((diagonal - squares).abs() < _BIAS * squares).all(-1)
    good &= squares.amin(-1) > _LEAST_SQUARE
    good &= (entries @ squares.reciprocal().float().unsqueeze(-1)).amax((-2, -1)) < _LONGEST_ROW
    diagonal.copy_(squares)
    return G, squares, good


def _sum_of_rows(X: Tensor) -> Tensor:
    """Σ_i x_ij of entries ≥ 0, right to 1e-7: few rows each in float32, and these sums in float64."""
    n = X.shape[-2] // _ROWS
    whole, last = X.split([n * _ROWS, X.shape[-2] - n * _ROWS], dim=-2)
    few = whole.unflatten(-2, (n, _ROWS)).sum(-2)
    return few.sum(-2, dtype=torch.float64) + last.sum(-2)
