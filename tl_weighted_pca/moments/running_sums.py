"""c, b and G of a stream: float32 products of the batch under way, float64 sums of those committed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.moments.second_moment import SecondMoment

_BLOCK = 192
"""Column blocks of the symmetric products. At width 768, ten blocks of sixteen are computed."""


@contextlib.contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """No TF32, no reduced-precision sums and no autocast inside; what was set before, after."""
    # The two APIs of torch for this must not be mixed, so only the oldest, which all versions have.
    before = torch.backends.cuda.matmul.allow_tf32 if device_type == "cuda" else False
    if before:
        torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            yield
    finally:
        if before:
            torch.backends.cuda.matmul.allow_tf32 = True


class Sums:
    """c, b and G of one moment: products of the batch under way, and float64 sums of those committed.

    Only the block upper triangle of G is computed. A batch that fails half-way is dropped whole.
    """

    def __init__(self, lead: torch.Size, width: int, device: torch.device) -> None:
        home = _home(device)
        self.weight = torch.zeros(lead, dtype=torch.float64, device=home)
        self.first = torch.zeros((*lead, width), dtype=torch.float64, device=home)
        self.second = torch.zeros((*lead, width, width), dtype=torch.float64, device=home)
        self._pending: tuple[Tensor, Tensor, Tensor] | None = None

    def move(self, device: torch.device) -> None:
        """Bring the sums to where activations on `device` are summed."""
        home = _home(device)
        self.weight, self.first = self.weight.to(home), self.first.to(home)
        self.second = self.second.to(home)

    def add(self, weight: Tensor, first: Tensor, second: Tensor, scale: float) -> None:
        """Put `scale` times (c, b, G) beside what the batch has given so far."""
        if scale != 1.0:
            weight, first, second = weight * scale, first * scale, second.mul_(scale)
        if self._pending is None:
            self._pending = weight, first, second
        else:  # in place, so that many samples take no more memory than one
            for mine, theirs in zip(self._pending, (weight, first, second), strict=True):
                mine += theirs

    def check(self) -> list[Tensor]:
        """Scalars that are finite exactly when all that is pending is (but for off-diagonal overflow)."""
        if self._pending is None:
            return []
        weight, first, second = self._pending
        return [second.diagonal(dim1=-2, dim2=-1).sum(), first.sum() + weight.sum()]

    def commit(self) -> None:
        if self._pending is None:
            return
        weight, first, second = self._pending
        self.weight += weight.to(self.weight)
        self.first += first.to(self.first.device)
        second = second.to(self.second.device)
        # Strip by strip: a float64 copy of the whole would go through memory twice more.
        for start, stop in _strips(self.second.shape[-1]):
            self.second[..., start:stop, start:] += second[..., start:stop, start:]
        self._pending = None

    def discard(self) -> None:
        self._pending = None

    def result(self, shift: Tensor) -> SecondMoment:
        whole = self.second.clone()
        for start, stop in _strips(whole.shape[-1]):
            corner = whole[..., start:stop, start:stop]
            corner.copy_(corner.triu() + corner.triu(1).mT)
            whole[..., stop:, start:stop] = whole[..., start:stop, stop:].mT
        return SecondMoment(self.weight.clone(), self.first.clone(), whole, shift.clone())


def _home(device: torch.device) -> torch.device:
    """Where float64 sums over activations on `device` live: beside them, but MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _strips(width: int) -> list[tuple[int, int]]:
    """Rows of the block upper triangle: strip (a, b) holds columns a and up. A narrow one is whole."""
    block = _BLOCK if width >= 2 * _BLOCK else width
    return [(start, min(start + block, width)) for start in range(0, width, block)]


def symmetric_product(
    left: Float[Tensor, "*head rows d"], right: Float[Tensor, "*head rows d"]
) -> Float[Tensor, "*head d d"]:
    """leftᵀ right where that is symmetric: the block upper triangle, and nothing meant below it."""
    width = left.shape[-1]
    strips = _strips(width)
    if len(strips) == 1:
        return left.mT @ right
    product = left.new_empty((*left.shape[:-2], width, width))
    for start, stop in strips:
        torch.matmul(
            left[..., start:stop].mT, right[..., start:], out=product[..., start:stop, start:]
        )
    return product
