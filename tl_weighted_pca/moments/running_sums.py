"""c, b and G of a stream: float32 products of the batch under way, and sums of those committed.

Every batch is about a mean of its own, so that its float32 products lose no digits to a mean far from
zero, and joins the sums about the mean of all by

    G(σ − δ) = G(σ) + bδᵀ + δbᵀ + cδδᵀ,

in the sums' own precision (Chan, Golub and LeVeque 1983, for M = I). No batch is special, the first one
neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from tl_weighted_pca.moments.packed import Packed, shift_terms
from tl_weighted_pca.moments.second_moment import SecondMoment


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
    """c, b and G of one moment; only the upper triangle of G, in packed strips.

    A batch that fails half-way is dropped whole.
    """

    def __init__(
        self, lead: torch.Size, width: int, home: torch.device, dtype: torch.dtype = torch.float64
    ) -> None:
        self.weight = torch.zeros(lead, dtype=torch.float64, device=home)
        self.first = torch.zeros((*lead, width), dtype=torch.float64, device=home)
        self.second = Packed.zeros(lead, width, dtype=dtype, device=home)
        self._lent = False
        self._pending: tuple[Tensor, Tensor, Packed] | None = None

    def move(self, home: torch.device) -> None:
        """Bring the sums to another device."""
        self.weight, self.first = self.weight.to(home), self.first.to(home)
        self.second = self.second.to(home)

    def add(self, weight: Tensor, first: Tensor, second: Packed, scale: float) -> None:
        """Put `scale` times (c, b, G) beside what the batch has given so far."""
        if scale != 1.0:
            weight, first = weight * scale, first * scale
            second.flat.mul_(scale)
        if self._pending is None:
            self._pending = weight, first, second
        else:  # in place, so that many samples take no more memory than one
            mine = self._pending
            self._pending = mine[0] + weight, mine[1] + first, mine[2].add_(second)

    def check(self) -> list[Tensor]:
        """Scalars that are finite exactly when all that is pending is (but for off-diagonal overflow)."""
        if self._pending is None:
            return []
        weight, first, second = self._pending
        return [second.diagonal().sum(), first.sum() + weight.sum()]

    def commit(self, moved: Tensor | None = None, offset: Tensor | None = None) -> None:
        """Add what is pending.

        Args:
            moved: σ − σ', the old shift less the new one; None where both are zero.
            offset: the mean that the batch was about, less the new shift.
        """
        if self._pending is None:
            return
        if self._lent:
            self.second, self._lent = self.second.clone(), False
        weight, first, second = self._pending
        weight, first = weight.to(self.weight), first.to(self.first)
        self.second.add_(second.to(self.second.flat.device))
        if moved is not None and offset is not None:
            parts = [
                shift_terms(self.weight, self.first, moved), shift_terms(weight, first, offset)
            ]  # fmt: skip
            self.second.add_products_(*(torch.cat(pair, -2) for pair in zip(*parts, strict=True)))
            self.first += self.weight[..., None] * moved
            first = first + weight[..., None] * offset
        self.weight += weight
        self.first += first
        self._pending = None

    def discard(self) -> None:
        """Forget what is pending."""
        self._pending = None

    def result(self, shift: Tensor) -> SecondMoment:
        """The moment; its G is these sums' own until the next batch comes."""
        self._lent = True
        return SecondMoment(self.weight.clone(), self.first.clone(), self.second, shift.clone())


def home_of(device: torch.device) -> torch.device:
    """Where float64 sums over activations on `device` live: beside them, but MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
