"""A symmetric matrix in little more than half the memory: the block upper triangle, strip by strip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_PIECE = 2**16
"""Numbers that are converted at a time."""

BLOCK = 192
"""Rows a strip. Files hold packed matrices, so that another number would be another format."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A symmetric G [*head, d, d], of which the strips G[a:b, a:] are kept, one after the other.

    Below a diagonal block nothing is kept, and what lies below the diagonal within one means nothing. A
    narrow matrix is one strip, whole. At width 768 this takes 62% of d², at 14,336 51%.
    """

    flat: Float[Tensor, "*head n"]
    """The strips, each row by row."""
    width: int
    """d."""

    @classmethod
    def zeros(cls, lead: torch.Size, width: int, **options: Any) -> Packed:
        """A matrix of zeros; options are those of `torch.zeros`."""
        return cls(torch.zeros((*lead, packed_size(width)), **options), width)

    @classmethod
    def of(cls, full: Float[Tensor, "*head d d"]) -> Packed:
        """What is kept of a whole matrix."""
        width = full.shape[-1]
        parts = [full[..., start:stop, start:].flatten(-2) for start, stop in _bounds(width)]
        return cls(torch.cat(parts, -1) if len(parts) > 1 else parts[0], width)

    def strips(self) -> Iterator[tuple[slice, Float[Tensor, "*head rows columns"]]]:
        """Rows a:b and the view of G[a:b, a:], for each strip."""
        at = 0
        for start, stop in _bounds(self.width):
            rows, columns = stop - start, self.width - start
            part = self.flat[..., at : at + rows * columns]
            yield slice(start, stop), part.unflatten(-1, (rows, columns))
            at += rows * columns

    def full(self) -> Float[Tensor, "*head d d"]:
        """The whole matrix, in float64, symmetric to the bit."""
        d = self.width
        whole = self.flat.new_empty((*self.flat.shape[:-1], d, d), dtype=torch.float64)
        for rows, strip in self.strips():
            whole[..., rows, rows.start :] = strip
            corner = whole[..., rows, rows]
            corner.copy_(corner.triu() + corner.triu(1).mT)
            whole[..., rows.stop :, rows] = whole[..., rows, rows.stop :].mT
        return whole

    def diagonal(self) -> Float[Tensor, "*head d"]:
        """G_ii."""
        return torch.cat([strip.diagonal(dim1=-2, dim2=-1) for _, strip in self.strips()], -1)

    def add_(self, other: Packed) -> Packed:
        """Add another, of any dtype, in place and without a whole copy of it in this one's."""
        if other.flat.dtype == self.flat.dtype or not self.flat.is_cpu:
            self.flat.add_(other.flat)
            return self
        # torch converts number by number while it adds, which is slower than to convert what fits the cache.
        pieces = self.flat.view(-1).split(_PIECE), other.flat.flatten().split(_PIECE)
        for mine, theirs in zip(*pieces, strict=True):
            mine.add_(theirs.to(mine.dtype))
        return self

    def add_products_(
        self, left: Float[Tensor, "*head k d"], right: Float[Tensor, "*head k d"]
    ) -> Packed:
        """Add leftᵀ right, which must be symmetric, in place."""
        left, right = left.to(self.flat), right.to(self.flat)
        for rows, strip in self.strips():
            add = strip.addmm_ if strip.ndim == 2 else strip.baddbmm_
            add(left[..., rows].mT, right[..., rows.start :])
        return self

    def to(self, *args: Any, **kwargs: Any) -> Packed:
        """As `Tensor.to`."""
        return Packed(self.flat.to(*args, **kwargs), self.width)

    def clone(self) -> Packed:
        """A copy."""
        return Packed(self.flat.clone(), self.width)


def packed_size(width: int) -> int:
    """How many numbers are kept of a d × d matrix."""
    return sum((stop - start) * (width - start) for start, stop in _bounds(width))


def symmetric_product(
    left: Float[Tensor, "*head rows d"], right: Float[Tensor, "*head rows d"]
) -> Packed:
    """leftᵀ right where that is symmetric: the strips alone are computed."""
    width = left.shape[-1]
    product = Packed(left.new_empty((*left.shape[:-2], packed_size(width))), width)
    for rows, strip in product.strips():
        torch.matmul(left[..., rows].mT, right[..., rows.start :], out=strip)
    return product


def shift_terms(
    weight: Float[Tensor, "*head"], first: Float[Tensor, "*head d"], by: Float[Tensor, "*head d"]
) -> tuple[Float[Tensor, "*head 2 d"], Float[Tensor, "*head 2 d"]]:
    """U, V with G(σ − δ) = G(σ) + UᵀV = G + bδᵀ + δbᵀ + cδδᵀ, for moments c, b and G about σ."""
    return torch.stack([first + weight[..., None] * by, by], -2), torch.stack([by, first], -2)


def _bounds(width: int) -> list[tuple[int, int]]:
    block = BLOCK if width >= 2 * BLOCK else width
    return [(start, min(start + block, width)) for start in range(0, width, max(block, 1))]
