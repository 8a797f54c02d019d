"""M = A B that decomposes as `torch.linalg` does and takes part in torch functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, overload

import numpy as np
import torch
import transformer_lens
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from tl_weighted_pca.factored.as_html import spectrum_table
from tl_weighted_pca.factored.decompose import is_transforming
from tl_weighted_pca.factored.thin_svd import SVD, svd
from tl_weighted_pca.factored.torch_functions import FROM_FACTORS

# ‖AB‖² / ‖A‖²‖B‖² below which the trace formula for the norm has lost digits that float64 would keep.
_CANCELLED = 1e-6


class FactoredMatrix(transformer_lens.FactoredMatrix):
    """M = A B with A [..., l, m] and B [..., m, r], where M = U diag(S) V_T is found without forming M.

    A `transformer_lens.FactoredMatrix` in everything except that

    - `svd()` returns `SVD(U, S, V_T)` as `torch.linalg.svd` does, right for every input (see `svd`); `.V` is
      still V, and `.V_T` is its transpose;
    - operations on it give this class again;
    - it iterates, has a length and goes to numpy, pandas and matplotlib as the dense A @ B would: rows of a
      matrix, matrices of a batch (einops takes its own list of types: give it `M.AB`);
    - torch functions accept it. Some are computed from the factors: `torch.matmul`,
      `torch.trace`, `torch.linalg.svdvals`, the Frobenius, nuclear and spectral norms, products and
      quotients with a scalar. All others (`torch.dist`, `torch.allclose`, `torch.einsum`,
      `torch.linalg.svd`, sums, ...) get the dense A @ B: mind its size.

    `FactoredMatrix(A, B)` broadcasts leading dimensions; `FactoredMatrix(M)` shares the factors of M.
    """

    @overload
    def __init__(self, A: transformer_lens.FactoredMatrix) -> None: ...
    @overload
    def __init__(self, A: Float[Tensor, "... l m"], B: Float[Tensor, "... m r"]) -> None: ...
    def __init__(self, A: Any, B: Any = None) -> None:
        if B is None:
            if not isinstance(A, transformer_lens.FactoredMatrix):
                raise TypeError(
                    f"FactoredMatrix was given one {type(A).__name__}: give two factors, "
                    "FactoredMatrix(A, B), or another factored matrix."
                )
            A, B = A.pair
        super().__init__(A, B)
        self._svd: SVD | None = None
        self._changes: list[tuple[int, int]] = []

    # The decomposition and what is read off it.

    def svd(self) -> SVD:  # type: ignore[override]
        """M = U diag(S) V_T: see `tl_weighted_pca.svd`. Kept as long as this is, and A and B are the same.

        What is written through `A.data` cannot be seen: make another FactoredMatrix then.
        """
        wants_graph = torch.is_grad_enabled() and (self.A.requires_grad or self.B.requires_grad)
        if is_transforming():  # whose tensors are of no use after it
            return svd(self.A, self.B)
        # Tensors count their changes in place, outside of inference mode.
        factors = (self.A, self.B)
        changes = [(X.data_ptr(), X.is_inference() or X._version) for X in factors]
        kept = self._svd if changes == self._changes else None
        if kept is None or (wants_graph and not kept.S.requires_grad):
            kept = self._svd = svd(self.A, self.B)
            self._changes = changes
        return kept

    def svdvals(self) -> Float[Tensor, "... k"]:
        """The k = min(l, m, r) largest singular values, descending; all others are zero."""
        return self.svd().S

    @property
    def V(self) -> Float[Tensor, "... r k"]:
        """Right singular vectors as columns: M = U diag(S) Vᵀ."""
        return self.V_T.mT

    @property
    def V_T(self) -> Float[Tensor, "... k r"]:
        """Right singular vectors as rows: M = U diag(S) V_T."""
        return self.svd().V_T

    @property
    def Vh(self) -> Float[Tensor, "... r k"]:
        """TransformerLens's deprecated alias of `V`: for all its name it is not transposed. See `V_T`."""
        warnings.warn(
            "FactoredMatrix.Vh is V, as in TransformerLens. Use .V, or .V_T for its transpose.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.V

    def norm(self) -> Float[Tensor, "..."]:
        """Frobenius norm, ‖AB‖² = tr(AᵀA · BBᵀ), summed in float64; no SVD.

        Where A and B cancel so far that rounding shows in the trace, those matrices are multiplied out. Under
        `torch.func`, where values can't decide that, it is the root of Σ S².
        """
        if is_transforming():
            return torch.linalg.vector_norm(self.svdvals(), dim=-1)
        A, B = self.A.double(), self.B.double()
        G, H = A.mT @ A, B @ B.mT
        square = (G * H).sum((-2, -1))
        scale = G.diagonal(dim1=-2, dim2=-1).sum(-1) * H.diagonal(dim1=-2, dim2=-1).sum(-1)
        cancelled = square.detach() <= _CANCELLED * scale.detach()
        # 1 in place of what is not used keeps an infinite derivative of the root at 0 out of the graph.
        norm = torch.where(cancelled, 1, square).sqrt()
        if cancelled.any():
            dense = torch.linalg.matrix_norm(A[cancelled] @ B[cancelled])
            norm = norm.masked_scatter(cancelled, dense)
        return norm.to(_result_dtype(self))

    def truncate(self, k: int) -> FactoredMatrix:
        """(U_k diag(S_k)) V_T,k: the closest matrix of rank k in the Frobenius and spectral norms.

        Raises ValueError unless 0 ≤ k ≤ min(l, m, r). Source: Eckart and Young 1936.
        """
        U, S, V_T = self.svd()
        if not (hasattr(k, "__index__") and 0 <= k <= S.shape[-1]):
            raise ValueError(
                f"truncate({k}) of a matrix with {S.shape[-1]} singular values: choose k from 0 to "
                f"{S.shape[-1]}."
            )
        return FactoredMatrix(U[..., :k] * S[..., None, :k], V_T[..., :k, :])

    def pinv(self, rtol: float | None = None) -> FactoredMatrix:
        """V diag(1/S) Uᵀ, [..., r, l], of the singular values above rtol · max(S): Moore-Penrose's inverse.

        rtol defaults to max(l, r) · ε of the result's dtype, as in `torch.linalg.pinv`.
        """
        U, S, V_T = self.svd()
        if rtol is None:
            rtol = max(self.ldim, self.rdim) * torch.finfo(S.dtype).eps
        kept = rtol * S[..., :1] < S
        inverse = torch.where(kept, 1 / torch.where(kept, S, 1), 0)
        return FactoredMatrix(V_T.mT * inverse[..., None, :], U.mT)

    def _repr_html_(self) -> str:
        """What a notebook shows: shapes, and the singular values."""
        with torch.no_grad():
            return spectrum_table(repr(self), list(self.shape), self.svdvals())

    # What TransformerLens computes as its own class, as this one.

    def make_even(self) -> FactoredMatrix:
        return FactoredMatrix(super().make_even())

    def unsqueeze(self, k: int) -> FactoredMatrix:
        return FactoredMatrix(super().unsqueeze(k))

    @property
    def T(self) -> FactoredMatrix:
        return FactoredMatrix(super().T)

    def __getitem__(self, idx: Any) -> FactoredMatrix:
        return FactoredMatrix(super().__getitem__(idx))

    def __matmul__(self, other: Any) -> Any:
        array = isinstance(other, np.ndarray)
        return NotImplemented if array else _again(super().__matmul__(other))

    def __rmatmul__(self, other: Any) -> Any:
        array = isinstance(other, np.ndarray)
        return NotImplemented if array else _again(super().__rmatmul__(other))

    def __mul__(self, scalar: Any) -> FactoredMatrix:
        # TransformerLens refuses tensors that are no scalars, and multiplies A by arrays.
        scalar = torch.as_tensor(scalar) if isinstance(scalar, np.ndarray) else scalar
        return FactoredMatrix(super().__mul__(scalar))

    def __rmul__(self, scalar: Any) -> FactoredMatrix:
        return self * scalar

    # As a container, and for numpy, it is its dense product.

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        """The matrices along the first dimension; of a single matrix the rows, as tensors."""
        return iter(_dense(self)) if self.ndim == 2 else (self[i] for i in range(len(self)))

    def __reversed__(self) -> Iterator[Any]:
        return reversed(tuple(self))

    def __contains__(self, x: Any) -> bool:
        return _dense(x) in _dense(self)

    def __bool__(self) -> bool:
        return bool(self.AB)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "The dense product of a FactoredMatrix is a copy: leave out copy=False."
            )
        return np.asarray(self.A.detach() @ self.B.detach(), dtype)

    # An array to its left asks its __rmatmul__ and __rmul__, and not numpy's.
    __array_priority__ = Tensor.__array_priority__

    # Arithmetic that TransformerLens's class lacks.

    def __neg__(self) -> FactoredMatrix:
        return FactoredMatrix(-self.A, self.B)

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, (int, float)) or (isinstance(other, Tensor) and other.numel() == 1):
            return FactoredMatrix(self.A / other, self.B)
        return _dense(self) / _dense(other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _dense(other) / _dense(self)

    def __add__(self, other: Any) -> Tensor:
        return _dense(self) + _dense(other)

    def __radd__(self, other: Any) -> Tensor:
        return _dense(other) + _dense(self)

    def __sub__(self, other: Any) -> Tensor:
        return _dense(self) - _dense(other)

    def __rsub__(self, other: Any) -> Tensor:
        return _dense(other) - _dense(self)

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        from_factors = FROM_FACTORS.get(func)
        result = from_factors(*args, **(kwargs or {})) if from_factors else NotImplemented
        if result is not NotImplemented:
            return result
        args, kwargs = tree_map(_dense, (args, kwargs or {}))
        return func(*args, **kwargs)


def _again(result: Any) -> Any:
    """TransformerLens's operations name their own class; vectors and the like pass."""
    return FactoredMatrix(result) if isinstance(result, transformer_lens.FactoredMatrix) else result


def _dense(x: Any) -> Any:
    return x.AB if isinstance(x, transformer_lens.FactoredMatrix) else x


def _result_dtype(M: transformer_lens.FactoredMatrix) -> torch.dtype:
    """float64 where a factor is, float32 otherwise: what `svd` returns."""
    return torch.promote_types(torch.promote_types(M.A.dtype, M.B.dtype), torch.float32)
