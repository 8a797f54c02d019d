"""How alike two bases are: principal angles between the subspaces that they keep.

For subspaces A and B of dimension k with orthonormal frames Q_A and Q_B [d, k],

    cos θ_i = σ_i(Q_Aᵀ Q_B),      φ = 1/k Σ_i cos² θ_i = ‖Q_Aᵀ Q_B‖_F² / k,

where φ is 1 for equal subspaces, 0 for orthogonal ones, and k/d on average for random ones.
Source: Björck and Golub 1973, Numerical methods for computing angles between linear subspaces.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.support.whole_numbers import checked_count

Side = Literal["decoder", "encoder"]
"""Which of a basis's two sets of directions: those it writes, or those it reads."""


def subspace_angles(
    left: Float[Tensor, "*head d k"], right: Float[Tensor, "*head d l"]
) -> Float[Tensor, "*head m"]:
    """θ_i between the column spaces of two matrices, in radians, ascending; m = min(k, l).

    The columns need not be orthonormal. Small angles keep their digits: they come from their sines.

    Raises:
        ValueError: where the columns of either are linearly dependent, or their lengths differ.
    """
    if left.shape[-2] != right.shape[-2]:
        raise ValueError(
            f"Subspaces of spaces of {left.shape[-2]} and {right.shape[-2]} dimensions have no angles "
            "between them: compare directions of one width."
        )
    dtype = torch.promote_types(left.dtype, right.dtype)
    left, right = left.to(dtype), right.to(dtype)
    if left.shape[-1] < right.shape[-1]:
        left, right = right, left
    larger, smaller = _orthonormal(left), _orthonormal(right)
    inner = larger.mT @ smaller
    cosines = torch.linalg.svdvals(inner)
    sines = torch.linalg.svdvals(smaller - larger @ inner).flip(-1)
    return torch.atan2(sines, cosines)


def principal_angles(
    a: Basis, b: Basis, k: int | None = None, *, side: Side = "decoder"
) -> Float[Tensor, "*head k"]:
    """θ_i between the top k components of two bases, in radians, ascending; float64.

    Args:
        a: a basis.
        b: another of the same width, from any hook point: all layers of a residual stream share one
            space.
        k: components of each; as many as both have by default.
        side: "decoder" compares what the bases keep of an activation (the directions they write),
            "encoder" what they look at (those they read). The same for orthonormal bases.

    Raises:
        ValueError: for bases of different widths or numbers of heads, or k outside 1..n_components.
    """
    k = _checked(a, b, k, side)
    return subspace_angles(_directions(a, k, side), _directions(b, k, side))


def subspace_overlap(
    a: Basis, b: Basis, k: int | None = None, *, side: Side = "decoder"
) -> Float[Tensor, "*head k"]:
    """φ(j) = 1/j Σ_i cos² θ_i(j) between the top j components, for j = 1 … k.

    The last entry is the overlap of the top k. Random subspaces give j/d. Arguments and errors are
    those of `principal_angles`.
    """
    k = _checked(a, b, k, side)
    # Frames of the first j columns are the first j columns of the frame: one QR serves all j.
    frames = [_orthonormal(_directions(basis, k, side)) for basis in (a, b)]
    squares = (frames[0].mT @ frames[1]).square()
    held = squares.cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1)
    return held / torch.arange(1, k + 1, dtype=held.dtype, device="cpu")


def component_cosines(
    a: Basis, b: Basis, k: int | None = None, *, side: Side = "decoder"
) -> Float[Tensor, "*head k k"]:
    """|cos ∠(a_i, b_j)| of single components i of one basis and j of the other.

    Arguments and errors are those of `principal_angles`. Where eigenvalues nearly coincide single
    directions are arbitrary, and only subspaces can be compared.
    """
    k = _checked(a, b, k, side)
    left, right = (_unit(_directions(basis, k, side)) for basis in (a, b))
    return (left.mT @ right).abs()


def _unit(columns: Float[Tensor, "*head d k"]) -> Float[Tensor, "*head d k"]:
    """Columns of length one, of whatever length they were; zero stays zero."""
    # By the largest entry first: squares of small numbers vanish.
    columns = columns / _or_one(columns.abs().amax(-2, keepdim=True))
    return columns / _or_one(columns.norm(dim=-2, keepdim=True))


def _or_one(lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, lengths, 1)


def _directions(basis: Basis, k: int, side: Side) -> Float[Tensor, "*head d k"]:
    return basis.decoder[..., :k, :].mT if side == "decoder" else basis.encoder[..., :k]


def _orthonormal(columns: Float[Tensor, "*head d k"]) -> Float[Tensor, "*head d k"]:
    width, k = columns.shape[-2:]
    if k > width:
        raise ValueError(
            f"{k} directions of a space of {width} dimensions are linearly dependent: compare the top "
            f"{width}, or fewer."
        )
    frame, upper = torch.linalg.qr(columns)
    lengths = columns.norm(dim=-2)
    rounding = columns.shape[-2] * torch.finfo(columns.dtype).eps
    dependent = upper.diagonal(dim1=-2, dim2=-1).abs() <= rounding * lengths
    if bool(dependent.any()):
        first = int(dependent.nonzero()[0, -1])
        raise ValueError(
            f"Direction {first} lies in the span of those before it, so the first {first + 1} span no "
            f"subspace of that dimension: compare the top {first}, or fewer."
        )
    return frame


def _checked(a: Basis, b: Basis, k: int | None, side: Side) -> int:
    if side not in get_args(Side):
        raise ValueError(f"side is {side!r}; expected one of {', '.join(get_args(Side))}.")
    for one in (a, b):
        if not isinstance(one, Basis):
            raise TypeError(
                f"A basis is a {type(one).__name__}; expected what `pca` and its like give."
            )
    shapes = [(*basis.encoder.shape[:-2], basis.width) for basis in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Bases of spaces of shape {shapes[0]} and {shapes[1]} ([heads,] width) cannot be "
            "compared: make both at hook points of one width, per head both or neither."
        )
    most = min(a.n_components, b.n_components)
    k = most if k is None else checked_count("k", k)
    if k > most:
        raise ValueError(f"k is {k}; expected 1 to {most}, the components that both bases have.")
    return k
