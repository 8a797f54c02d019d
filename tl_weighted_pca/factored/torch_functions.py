"""The torch functions that a factored matrix answers from its factors, without the dense product.

Each takes the function's own arguments, and returns NotImplemented for those that the factors do not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import transformer_lens
from torch import Tensor

if TYPE_CHECKING:
    from tl_weighted_pca.factored.factored_matrix import FactoredMatrix


def _matmul(input: Any, other: Any, *, out: Tensor | None = None) -> Any:
    if out is not None:
        return NotImplemented
    is_left = isinstance(input, transformer_lens.FactoredMatrix)
    return input.__matmul__(other) if is_left else other.__rmatmul__(input)


def _scale(input: Any, other: Any) -> Any:
    return input * other if isinstance(input, transformer_lens.FactoredMatrix) else other * input


def _trace(input: FactoredMatrix) -> Any:
    """tr(AB) = Σ_ij A_ij B_ji."""
    M = input
    return (M.A * M.B.mT).sum() if M.ndim == 2 and M.ldim == M.rdim else NotImplemented


def _svdvals(A: FactoredMatrix, *, driver: str | None = None, out: Tensor | None = None) -> Any:
    if out is not None:
        return NotImplemented
    S = A.svdvals()
    return torch.nn.functional.pad(S, (0, min(A.ldim, A.rdim) - S.shape[-1]))


def _matrix_norm(
    A: FactoredMatrix, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, **options: Any
) -> Any:
    if options or any(not -A.ndim <= d < A.ndim for d in dim):
        return NotImplemented
    if {d % A.ndim for d in dim} != {A.ndim - 2, A.ndim - 1}:
        return NotImplemented
    if ord == "fro":
        norm = A.norm()
    elif ord == "nuc":
        norm = A.svdvals().sum(-1)
    elif ord == 2 and A.svdvals().shape[-1]:
        norm = A.svdvals()[..., 0]
    else:
        return NotImplemented
    return norm[..., None, None] if keepdim else norm


def _norm(
    A: FactoredMatrix, ord: Any = None, dim: Any = None, keepdim: bool = False, **options: Any
) -> Any:
    """As torch: without `ord` and `dim` the norm of all entries, otherwise a matrix norm."""
    if ord is None and dim is None and not keepdim and not options:
        return torch.linalg.vector_norm(A.norm())
    if dim is None and A.ndim == 2:
        dim = (-2, -1)
    if not isinstance(dim, (tuple, list)) or len(dim) != 2:
        return NotImplemented
    return _matrix_norm(A, "fro" if ord is None else ord, dim, keepdim, **options)


def _old_norm(
    input: FactoredMatrix, p: Any = "fro", dim: Any = None, keepdim: bool = False, **options: Any
) -> Any:
    """`torch.norm`: of all entries, unless `dim` says otherwise."""
    if p not in ("fro", 2) or dim is not None or any(x is not None for x in options.values()):
        return NotImplemented
    return _norm(input, keepdim=keepdim)


FROM_FACTORS: dict[Callable, Callable] = {
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    # `tensor * M`: TransformerLens has a product with scalars only, and says so. torch.mul is elementwise.
    Tensor.mul: _scale,
    Tensor.__mul__: _scale,
    torch.trace: _trace,
    torch.linalg.svdvals: _svdvals,
    torch.linalg.matrix_norm: _matrix_norm,
    torch.linalg.norm: _norm,
    torch.norm: _old_norm,
}
