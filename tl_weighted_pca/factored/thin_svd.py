"""`svd` and `svdvals` of a factored matrix, and their derivatives. The method is in `decompose.py`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from tl_weighted_pca.factored.decompose import SVD, broadcast_batch, decompose, is_transforming


def svd(matrix: Any, B: Float[Tensor, "*batch m r"] | None = None) -> SVD:
    """M = A B = U diag(S) V_T, without forming M: `svd(A, B)`, or `svd(M)` of a factored matrix.

    Shapes: A [*batch, l, m] and B [*batch, m, r] give U [*batch, l, k], S [*batch, k] descending and
    V_T [*batch, k, r] with k = min(l, m, r); leading dimensions broadcast. U has orthonormal columns and V_T
    orthonormal rows, for rank-deficient input too.

    dtype: float32 in, float32 out, computed partly in float64; float64 stays float64 throughout; float16 and
    bfloat16 are upcast and give float32; of mixed factors the wider counts.

    Signs: in each left vector u the entry with the largest |u_i| (1 − i / 2l) is positive. That is the
    largest entry with earlier ones preferred, so that rounding can't decide between two of the same size. The
    signs are a property of M: how it is split into factors doesn't matter.

    Differentiable, twice, forward and under `torch.func` (with `vmap`). As for `torch.linalg.svd` a gradient
    through U or V_T is infinite where singular values coincide or vanish; one through S alone is always
    finite, and right where S is smooth.

    Raises:
        TypeError: the argument is neither a factored matrix nor a pair of real floating-point tensors.
        ValueError: shapes or devices don't fit, a factor holds NaN or infinity, or a singular value is beyond
            the result's dtype.

    Source: see the head of `decompose.py`.
    """
    A, B = _factors(matrix, B)
    wants_graph = torch.is_grad_enabled() and (A.requires_grad or B.requires_grad)
    # Asked first, because a call of the Function takes as long as the SVD of a small matrix.
    if is_transforming() and _is_forward_of_forward():
        # There torch loses what a Function's rule says; by its own rules it is right, and slower.
        return SVD(*(X.to(A.dtype) for X in decompose(A.double(), B.double())))
    if wants_graph or is_transforming() or forward_ad._current_level >= 0:
        return SVD(*_ThinSVD.apply(A, B))
    return decompose(A, B)


def svdvals(matrix: Any, B: Float[Tensor, "*batch m r"] | None = None) -> Float[Tensor, "*batch k"]:
    """S of `svd`: the k = min(l, m, r) largest singular values of M = A B, descending; the others are zero.

    Arguments, dtype and errors are those of `svd`. The gradient is finite for repeated and zero values too.
    """
    return svd(matrix, B).S


def _is_forward_of_forward() -> bool:
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(each.key() == torch._C._functorch.TransformType.Jvp for each in stack) > 1


def _factors(matrix: Any, B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Check the arguments and bring both factors to the dtype of the result."""
    A = matrix
    if B is None:
        if isinstance(matrix, Tensor) or not hasattr(matrix, "A"):
            raise TypeError(
                f"svd was given one {type(matrix).__name__}, which is no factored matrix: give a "
                "FactoredMatrix or two factors A and B (torch.linalg.svd is for dense tensors)."
            )
        A, B = matrix.A, matrix.B
    for name, X in (("A", A), ("B", B)):
        if not isinstance(X, Tensor) or not X.is_floating_point():
            given = X.dtype if isinstance(X, Tensor) else type(X).__name__
            raise TypeError(f"Factor {name} is {given}: a real floating-point tensor is needed.")
        if X.ndim < 2:
            raise ValueError(
                f"Factor {name} has shape {tuple(X.shape)}: at least two dimensions are needed."
            )
    assert isinstance(B, Tensor)
    if A.shape[-1] != B.shape[-2]:
        raise ValueError(
            f"A {tuple(A.shape)} and B {tuple(B.shape)} don't multiply: A's last dimension must equal B's "
            "last but one."
        )
    if A.device != B.device:
        raise ValueError(f"A is on {A.device} and B on {B.device}: move them to one device.")
    try:
        broadcast_batch(A, B)
    except RuntimeError:
        raise ValueError(
            f"The leading dimensions of A {tuple(A.shape)} and B {tuple(B.shape)} don't broadcast."
        ) from None
    if A.dtype == B.dtype and A.dtype in (torch.float32, torch.float64):
        return A, B
    dtype = torch.promote_types(torch.promote_types(A.dtype, B.dtype), torch.float32)
    return A.to(dtype), B.to(dtype)


class _ThinSVD(torch.autograd.Function):
    """The decomposition, with its derivative in closed form: products only, and never an l × r matrix."""

    @staticmethod
    def forward(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        result = decompose(A, B)
        if forward_ad._current_level >= 0:  # which takes no view for an output
            result = SVD(*(X.clone() for X in result))
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.save_for_forward(*inputs, *output)
        # An unused output must stay None: through S alone the gradient never divides.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_U: Tensor | None, grad_S: Tensor | None, grad_V_T: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """∂f/∂A = M̄ Bᵀ and ∂f/∂B = Aᵀ M̄, where M̄ = ∂f/∂M = U K V_T + Y V_T + U X, and

            K = diag(S̄) + [ a / (s_j − s_i) + b / (s_i + s_j) ] / 2    a = p + q,  b = p − q,
            p = UᵀŪ − ŪᵀU,   q = VᵀV̄ − V̄ᵀV,   Y = (I − UUᵀ) Ū S⁻¹,   X = S⁻¹ V̄ᵀ (I − VVᵀ).

        This is the textbook's (p S + S q) / (s_j² − s_i²) taken apart, so that nothing is squared and b, the
        part that simultaneous rotations of both sides leave alone, is well-behaved for close singular values.
        Source: Townsend, *Differentiating the singular value decomposition*, 2016, for a factored M.
        """
        A, B, U, S, V_T = ctx.saved_tensors
        K = torch.zeros_like(S).diag_embed() if grad_S is None else grad_S.diag_embed()
        p = q = torch.zeros_like(K)
        left, right = None, K
        if grad_U is not None:
            UtG = U.mT @ grad_U
            p = UtG - UtG.mT
            if U.shape[-2] > U.shape[-1]:
                left = _ratio(grad_U - U @ UtG, S[..., None, :])
        if grad_V_T is not None:
            GV = grad_V_T @ V_T.mT
            q = GV.mT - GV
        if grad_U is not None or grad_V_T is not None:
            row, column = S[..., :, None], S[..., None, :]
            K = K + (_ratio(p + q, column - row) + _ratio(p - q, column + row)) / 2
        right = K @ V_T
        if grad_V_T is not None and V_T.shape[-1] > V_T.shape[-2]:
            right = right + _ratio(grad_V_T - GV @ V_T, S[..., :, None])
        # M̄ = U right + left V_T, multiplied from the side that stays thin.
        grad_A = U @ (right @ B.mT)
        grad_B = (A.mT @ U) @ right
        if left is not None:
            grad_A = grad_A + left @ (V_T @ B.mT)
            grad_B = grad_B + (A.mT @ left) @ V_T
        return grad_A.sum_to_size(A.shape), grad_B.sum_to_size(B.shape)

    @staticmethod
    def jvp(ctx: Any, dA: Tensor | None, dB: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """dU, dS and dV_T of dM = dA B + A dB, with P = UᵀdM V:

            dS = diag(P),   dU = U (F ∘ (P S + S Pᵀ)) + (I − UUᵀ) dM V S⁻¹,   F_ij = 1 / (s_j² − s_i²),
            dV = V (F ∘ (S P + Pᵀ S)) + (I − VVᵀ) dMᵀ U S⁻¹.

        Source: as for `backward`.
        """
        A, B, U, S, V_T = ctx.saved_tensors
        dA = torch.zeros_like(A) if dA is None else dA
        dB = torch.zeros_like(B) if dB is None else dB
        V, row, column = V_T.mT, S[..., :, None], S[..., None, :]
        dM_V = dA @ (B @ V) + A @ (dB @ V)
        dMt_U = B.mT @ (dA.mT @ U) + dB.mT @ (A.mT @ U)
        P = U.mT @ dM_V
        dS = P.diagonal(dim1=-2, dim2=-1).clone()
        # F ∘ (P S + S Pᵀ) is (a + b) / 2 and its twin (a − b) / 2, so that nothing is squared here either.
        a = _ratio(P + P.mT - 2 * dS.diag_embed(), column - row)
        b = _ratio(P - P.mT, column + row)
        dU, dV = U @ ((a + b) / 2), V @ ((a - b) / 2)
        if U.shape[-2] > U.shape[-1]:
            dU = dU + _ratio(dM_V - U @ P, column)
        if V.shape[-2] > V.shape[-1]:
            dV = dV + _ratio(dMt_U - V @ P.mT, column)
        return dU, dS, dV.mT.contiguous()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], A: Tensor, B: Tensor) -> Any:  # type: ignore[override]
        """One more leading dimension, which is what `decompose` is made for."""
        most = max(X.ndim - (dim is not None) for X, dim in zip((A, B), in_dims, strict=True))
        factors = []
        for X, dim in zip((A, B), in_dims, strict=True):
            if dim is not None:
                X = X.movedim(dim, 0)
                X = X[(slice(None), *[None] * (most + 1 - X.ndim))]
            factors.append(X)
        return _ThinSVD.apply(*factors), (0, 0, 0)


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    """x / y with 0 / 0 = 0: what doesn't enter the function has no gradient, however arbitrary it is."""
    return x / torch.where((x == 0) & (y == 0), 1, y)
