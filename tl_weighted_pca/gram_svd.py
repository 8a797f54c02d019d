"""The SVD of a product from the Gram matrices of both factors, where their columns are nearly orthogonal.

See the first observation at the head of `decompose.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tl_weighted_pca.cholesky_qr import gram

# Up to this ‖D R⁻¹‖_F / √m, which is 1 for orthogonal columns, Gram matrices of float32 products will do.
# Near it orthogonality is lost by a quarter of what TransformerLens loses: the table in docs/svd.md.
_CONDITION = 1.5
# Not where a column's square is so small that float32 products of its entries lose digits to underflow.
_LEAST_SQUARE = 2.0**-80
# Nor where singular values are further apart: K squares them, and 2⁻⁵³ (2¹²)² = 2⁻²⁹.
_RANGE = 2.0**12


class Rotations(NamedTuple):
    """U = A X and V = Bᵀ Y, in float64; `good` [n] says for which matrices."""

    X: Tensor
    S: Tensor
    Y: Tensor
    good: Tensor


def rotations(A: Tensor, B: Tensor) -> Rotations | None:
    """A [n, l, m] and B [n, m, r] of float32; None where it is plain that none is good.

    R from AᵀA = RᵀR, then R (B Bᵀ) Rᵀ = W S² Wᵀ by eigh, X = R⁻¹ W and Y = Rᵀ W S⁻¹. An error E of BBᵀ makes
    Yᵀ E Y of the orthogonality of V, and ‖D Y‖_F = ‖D R_B⁻¹‖_F: what decides is the same for both factors.
    """
    G = gram(A)
    L, breakdown = torch.linalg.cholesky_ex(G)
    bound = _CONDITION**2 * A.shape[-1]
    squares = G.diagonal(dim1=-2, dim2=-1)
    pivots = L.diagonal(dim1=-2, dim2=-1).square()
    # The diagonal's share of ‖D R⁻¹‖²_F, which is known at once.
    good = (breakdown == 0) & ((squares / pivots).sum(-1) < bound)
    if not good.any():
        return None
    H = gram(B.mT)
    K = L.mT @ (H.tril() + H.tril(-1).mT) @ L
    good &= K.sum((-2, -1)).isfinite()
    K[~good] = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    values, W = torch.linalg.eigh(K)
    S, W = values.flip(-1).sqrt(), W.flip(-1)
    X = torch.linalg.solve_triangular(L.mT, W, upper=True)
    Y = L @ W / S.unsqueeze(-2)
    for rotation, sizes in ((X, squares), (Y, H.diagonal(dim1=-2, dim2=-1))):
        good &= (rotation.square().sum(-1) * sizes).sum(-1) < bound
        good &= sizes.amin(-1) > _LEAST_SQUARE
    good &= S[..., -1] * _RANGE > S[..., 0]
    return Rotations(X, S, Y, good)
