"""Singular value decomposition of a product M = A B, from its factors A [l, m] and B [m, r].

    A = Q_A R_A,   Bᵀ = Q_B R_B,   C = R_A R_Bᵀ = W S Zᵀ   ⇒   M = (Q_A W) S (Q_B Z)ᵀ

The tall factors are only orthonormalised; the SVD itself is that of the small core C [m, m] (Golub and Van
Loan, *Matrix Computations*, 5.2 and 8.6). Three observations make it fast for float32 factors, with errors
below those of working in float32 throughout:

1. *Gram matrices.* AᵀA = RᵀR and R (BBᵀ) Rᵀ = W S² Wᵀ give U = A (R⁻¹ W) and V = Bᵀ (Rᵀ W S⁻¹) by matrix
   products and one eigh in float64. This squares condition numbers, that of A D⁻¹ and that of Bᵀ D⁻¹, D the
   norms of the columns: columns of different sizes do no harm (van der Sluis 1969). Where they are nearly
   orthogonal, as in most heads, the Gram matrices may even be of float32 products, a few rows each, that are
   summed in float64. `gram_svd.py` has the bounds.
2. *Cholesky-QR* where they are not: AᵀA = RᵀR gives Q = A R⁻¹, with the Gram matrix in float64 and
   ‖QᵀQ − I‖ ≲ 2⁻⁵³ κ², κ = √m ‖D R⁻¹‖_F ≥ cond(A D⁻¹). κ is computed, not estimated. Those matrices of a
   batch for which it is too large, or whose Cholesky breaks down, take Householder's QR instead.
3. *Half the core.* eigh(CᵀC) in float64 is right to √ε₆₄ ≈ 1e-8 of the largest singular value, less than
   float32 resolves. C Z then has orthogonal columns W S. Where they span too many orders of magnitude for
   that to hold, one QR of C Z (Householder's doesn't mind columns of different sizes) makes W orthonormal.

Q is never formed: U = A (R_A⁻¹ W), one product with the tall factor.

float64 factors get Householder's QR and LAPACK's SVD: squaring would cost them half of their digits. So do
small ones, where all of this takes longer than it saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.factored.as_html import spectrum_table
from tl_weighted_pca.factored.cholesky_qr import float32_products_are_exact, orthonormalise
from tl_weighted_pca.factored.device_rule import rule_for
from tl_weighted_pca.factored.gram_svd import EIGH_RANGE, rotations
from tl_weighted_pca.factored.near_equal import near_equal

# Below this many multiplications in AᵀA and BBᵀ the steps of this cost more than they save.
_SMALL = 2**20
# Above this many, pieces of the batch are worth threads of their own.
_LARGE = 2**25
# Below this Frobenius norm no singular value overflows.
_BOUND = {torch.float32: torch.finfo(torch.float32).max, torch.float64: math.inf}


# Whether a transform of torch.func is at work, such as vmap. torch has no public question for it.
is_transforming = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


class SVD(NamedTuple):
    """M = U diag(S) V_T, as from `torch.linalg.svd`: it is the *rows* of V_T that are right vectors."""

    U: Float[Tensor, "*batch l k"]
    S: Float[Tensor, "*batch k"]
    V_T: Float[Tensor, "*batch k r"]

    def __repr__(self) -> str:
        shapes = (f"{name}={list(part.shape)}" for name, part in self._asdict().items())
        return f"SVD({', '.join(shapes)})"

    def _repr_html_(self) -> str:
        """What a notebook shows: shapes, and the singular values."""
        *batch, left, _ = self.U.shape
        return spectrum_table(repr(self), [*batch, left, self.V_T.shape[-1]], self.S)

    def blocks(self, rtol: float = 1e-3) -> list[Any]:
        """Runs of singular values with σ_i − σ_{i+1} ≤ rtol · σ_i, which fix a subspace and no directions.

        Returns:
            Ranges that partition 0..k; nested lists of them for leading dimensions.

        Raises:
            ValueError: for an rtol below 0.
        """
        return near_equal(self.S, rtol)


def decompose(A: Tensor, B: Tensor) -> SVD:
    """The SVD of A B, both of one dtype, float32 or float64: the method is chosen by size.

    What is repeated along a leading dimension (stride 0) is computed once.
    """
    home, rule = A.device, rule_for(A)
    l, m, r = *A.shape[-2:], B.shape[-1]
    batch: tuple[int, ...] = ()
    n = 1
    if A.ndim > 2 or B.ndim > 2:
        batch = broadcast_batch(A, B)
        A, B = _once(A), _once(B)
        n = broadcast_batch(A, B).numel()
    work = n * (l + r) * m * m
    if work * l * r == 0:
        k = min(l, m, r)
        return SVD(A.new_empty(*batch, l, k), A.new_empty(*batch, k), A.new_empty(*batch, k, r))
    if A.is_mps or work < rule.least_work:  # MPS has no float64
        A, B = A.cpu(), B.cpu()
    if min(l, r) <= 1.25 * m or l * r <= 40:
        # The product is as small as its factors, or too small for anything else to pay.
        result = _from_product(A, B)
    elif work < _SMALL or A.dtype == torch.float64:
        result = _by_householder(A, B)
    else:
        result = _by_products(A, B)
    if result.S.device != home:
        result = SVD(*(X.to(home) for X in result))
    if result.S.shape[:-1] != batch:
        result = SVD(*(X.expand(*batch, *X.shape[len(batch) :]) for X in result))
    return result


def broadcast_batch(A: Tensor, B: Tensor) -> torch.Size:
    """The leading dimensions of A B."""
    if A.shape[:-2] == B.shape[:-2]:  # asking torch takes longer than the SVD of a small matrix
        return A.shape[:-2]
    return torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])


def _once(X: Tensor) -> Tensor:
    """X with one copy of what its leading dimensions only repeat."""
    strides = X.stride()[:-2]
    return X[tuple(slice(None if s else 1) for s in strides)] if 0 in strides else X


def _from_product(A: Tensor, B: Tensor) -> SVD:
    """LAPACK's SVD of A B in float64."""
    C = A.double() @ B.double()
    _require_finite(A, B, C)
    U, S, V_T = torch.linalg.svd(C, full_matrices=False)
    k = A.shape[-1]
    if S.shape[-1] > k:
        U, S, V_T = U[..., :k], S[..., :k], V_T[..., :k, :]
    return _finish(U, S, V_T, A.dtype)


def _by_householder(A: Tensor, B: Tensor) -> SVD:
    Q_A, R_A = torch.linalg.qr(A.double())
    Q_B, R_B = torch.linalg.qr(B.mT.double())
    C = R_A @ R_B.mT
    _require_finite(A, B, C)
    W, S, Z_T = torch.linalg.svd(C)
    return _finish(Q_A @ W, S, Z_T @ Q_B.mT, A.dtype)


def _by_products(A: Tensor, B: Tensor) -> SVD:
    """By Gram matrices or Cholesky-QR, for float32, in pieces of the batch: see `device_rule.py`."""
    (l, m), r, batch = A.shape[-2:], B.shape[-1], broadcast_batch(A, B)
    A = A.expand(*batch, l, m).reshape(-1, l, m)
    B = B.expand(*batch, m, r).reshape(-1, m, r)
    n = A.shape[0]
    U, S, V_T = A.new_empty(n, l, m), A.new_empty(n, m), A.new_empty(n, m, r)
    exact = m >= 16 and float32_products_are_exact()
    rule = rule_for(A)
    threads = torch.get_num_threads() if rule.threads and n * (l + r) * m**2 > _LARGE else 1
    rounds = math.ceil(n / (threads * max(1, rule.piece_bytes // (4 * m * (l + r)))))
    step = math.ceil(n / (threads * rounds))  # as many pieces for each thread

    def decompose(part: slice) -> None:
        others: slice | Tensor = part
        turned = rotations(A[part], B[part]) if exact else None
        if turned is not None:
            S[part] = turned.S
            _turn(A[part], turned.X, B[part].mT, turned.Y, U[part], V_T[part])
            if turned.good.all():
                return
            others = part.start + (~turned.good).nonzero()[:, 0]
        left = orthonormalise(A[others], exact)
        right = orthonormalise(B[others].mT, exact)
        C = left.R @ right.R.mT
        _require_finite(A[others], B[others], C)
        W, s, Z = _core_svd(C)
        S[others] = s.to(S.dtype)
        u, v_T = U[others], V_T[others]
        _turn(left.X, left.T @ W, right.X, right.T @ Z, u, v_T)
        if turned is not None:  # u and v_T are copies then, as `others` is no slice
            U[others], V_T[others] = u, v_T

    _for_each([slice(i, i + step) for i in range(0, n, step)], decompose, threads)
    return SVD(U.view(*batch, l, m), S.view(*batch, m), V_T.view(*batch, m, r))


def _turn(A: Tensor, X: Tensor, B: Tensor, Y: Tensor, U: Tensor, V_T: Tensor) -> None:
    """U = A X and V = B Y, written into U and V_T with their signs, in the dtypes of A and B."""
    _multiply(A, X, out=U)
    sign = _signs(U).unsqueeze(-2)
    U *= sign
    _multiply(B, Y * sign, out=V_T.mT)


def _multiply(A: Tensor, X: Tensor, out: Tensor) -> None:
    if A.dtype == out.dtype:
        torch.bmm(A, X.to(A.dtype), out=out)
    else:
        out.copy_(A @ X)


def _for_each(pieces: list[slice], task: Callable[[slice], None], threads: int) -> None:
    """task of each piece, in threads that compute by themselves.

    LAPACK takes the matrices of a batch one by one, and gains next to nothing from a second core for matrices
    of this size; pieces of the batch gain all of it.
    """
    if threads == 1 or len(pieces) == 1:
        for piece in pieces:
            task(piece)
        return
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad

    def alone(piece: slice) -> None:
        with mode():  # of the thread, as the number of threads is
            task(piece)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for result in [pool.submit(alone, piece) for piece in pieces]:
                result.result()
    finally:
        # What was set for a thread is the default of those to come: put that right.
        torch.set_num_threads(threads)


def _core_svd(C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C [n, m, m] = W diag(s) Zᵀ to √ε of the largest singular value, by way of eigh(CᵀC)."""
    Z = torch.linalg.eigh(C.mT @ C).eigenvectors.flip(-1)
    CZ = C @ Z
    s = torch.linalg.vector_norm(CZ, dim=-2)
    W = CZ / s[..., None, :]
    spread = ~(s[..., -1] * EIGH_RANGE > s[..., 0])
    if spread.any():
        Q, R = torch.linalg.qr(CZ[spread])
        d = R.diagonal(dim1=-2, dim2=-1)
        W[spread], s[spread] = Q * torch.where(d < 0, -1, 1)[..., None, :], d.abs()
    if (s[..., 1:] > s[..., :-1]).any():  # by rounding, among values that are nearly equal
        s, order = s.sort(descending=True, stable=True)
        W = W.take_along_dim(order[..., None, :], -1)
        Z = Z.take_along_dim(order[..., None, :], -1)
    return W, s, Z


def _polish(Q: Tensor) -> Tensor:
    """One Newton step towards the nearest matrix with orthonormal columns: Q − Q (QᵀQ − I) / 2.

    Products of orthogonal matrices drift by some ten ε; from there a single step arrives at rounding.
    """
    excess = Q.mT @ Q
    excess.diagonal(dim1=-2, dim2=-1).sub_(1)
    return Q - Q @ excess / 2


def _finish(U: Tensor, S: Tensor, V_T: Tensor, dtype: torch.dtype) -> SVD:
    """Results in float64, brought to `dtype` and to their signs."""
    if dtype == torch.float32:
        U, S, V_T = U.float(), S.float(), V_T.float()
    elif S.shape[-1] > 4:
        U, V_T = _polish(U), _polish(V_T.mT).mT
    sign = _signs(U)
    return SVD(U * sign.unsqueeze(-2), S, V_T * sign.unsqueeze(-1))


def _signs(U: Tensor) -> Tensor:
    """±1 for each column u of U: the sign of its entry with the largest |u_i| (1 − i / 2l)."""
    # What is made inside a transform is of no use after it.
    weights = _sign_weights.__wrapped__ if is_transforming() else _sign_weights
    falling, one = weights(U.shape[-2], U.dtype, U.device)
    weighted = U * falling
    return torch.copysign(one, weighted.amax(-2) + weighted.amin(-2))


@lru_cache(maxsize=32)
def _sign_weights(l: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    falling = 1 - torch.arange(l, dtype=dtype, device=device) / (2 * l)
    return falling[:, None], torch.ones((), dtype=dtype, device=device)


def _require_finite(A: Tensor, B: Tensor, C: Tensor) -> None:
    """Say what isn't finite, or won't be. All of it shows in the norm of the core C."""
    if float(torch.linalg.vector_norm(C)) < _BOUND[A.dtype]:  # which no NaN is
        return
    for name, X in (("A", A), ("B", B)):
        if not X.isfinite().all():
            kind = "NaN" if X.isnan().any() else "infinity"
            raise ValueError(
                f"Factor {name} holds {kind}, so its SVD doesn't exist: remove or replace it first."
            )
    if not C.isfinite().all():
        raise ValueError("The product A B overflows float64: scale the factors down first.")
    largest = float(torch.linalg.svdvals(C).max())
    if largest > _BOUND[A.dtype]:
        raise ValueError(
            f"The largest singular value of A B is {largest:.2g}, beyond float32: pass factors in float64, "
            "or scale them down first."
        )
