"""c, b and G of a stream: float32 products of the batch under way, and sums of those committed.

Every batch is about a mean of its own, so that its float32 products lose no digits to a mean far from
zero, and joins the sums about the mean of all by

    G(σ − δ) = G(σ) + bδᵀ + δbᵀ + cδδᵀ,

in the sums' own precision (Chan, Golub and LeVeque 1983, for M = I). No batch is special, the first one
neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from tl_weighted_pca.moments.packed import Packed, shift_terms
from tl_weighted_pca.moments.second_moment import SecondMoment
from tl_weighted_pca.support.products import exact_products

Precision = Literal["highest", "tf32"]
"""Of the products of a batch: float32, or TF32 where the device has it."""


@contextlib.contextmanager
def products_in(precision: Precision, device_type: str) -> Iterator[None]:
    """Float32 products, or TF32 ones on CUDA; no autocast inside; what was set before, after."""
    products = _on_cuda(precision) if device_type == "cuda" else exact_products()
    with products, torch.no_grad(), torch.autocast(device_type, enabled=False):
        yield


@contextlib.contextmanager
def _on_cuda(precision: Precision) -> Iterator[None]:
    # The two APIs of torch for this must not be mixed, so only the oldest, which all versions have.
    matmul = torch.backends.cuda.matmul
    before, wanted = matmul.allow_tf32, precision == "tf32"
    change = before != wanted
    if change:
        matmul.allow_tf32 = wanted
    try:
        yield
    finally:
        if change:
            matmul.allow_tf32 = before


class Sums:
    """c, b and G of one moment; only the upper triangle of G, in packed strips.

    A batch that fails half-way is dropped whole. Where the sums live on the CPU and the activations on a
    GPU, a batch's products are on their way while the next one is computed.
    """

    def __init__(
        self, lead: torch.Size, width: int, home: torch.device, dtype: torch.dtype = torch.float64
    ) -> None:
        self.weight = torch.zeros(lead, dtype=torch.float64, device=home)
        self.first = torch.zeros((*lead, width), dtype=torch.float64, device=home)
        self.second = Packed.zeros(lead, width, dtype=dtype, device=home)
        self._lent = False
        self._pending: tuple[Tensor, Tensor, Packed] | None = None
        self._arriving: tuple[list[Tensor | None], int, torch.Event] | None = None

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
        weight, first, second = self._pending
        parts = [weight, first, second.flat, moved, offset]
        if second.flat.is_cuda and self.weight.device.type == "cpu":
            self.settle()
            on_host = [None if part is None else _pinned(part) for part in parts]
            self._arriving = on_host, second.width, torch.cuda.current_stream().record_event()
        else:
            self._merge(parts, second.width)
        self._pending = None

    def settle(self) -> None:
        """Wait for what is on its way to the CPU, and add it."""
        if self._arriving is not None:
            parts, width, event = self._arriving
            event.synchronize()
            self._arriving = None
            self._merge(parts, width)

    def _merge(self, parts: list[Tensor | None], width: int) -> None:
        home = self.weight.device
        weight, first, flat, moved, offset = (
            part if part is None else part.to(home) for part in parts
        )
        assert weight is not None and first is not None and flat is not None
        weight, first = weight.double(), first.double()
        if self._lent:
            self.second, self._lent = self.second.clone(), False
        self.second.add_(Packed(flat, width))
        if moved is not None and offset is not None:
            mine = shift_terms(self.weight, self.first, moved)
            theirs = shift_terms(weight, first, offset)
            left, right = (torch.cat(pair, -2) for pair in zip(mine, theirs, strict=True))
            self.second.add_products_(left, right)
            self.first += self.weight[..., None] * moved
            first = first + weight[..., None] * offset
        self.weight += weight
        self.first += first

    def discard(self) -> None:
        """Forget what is pending."""
        self._pending = None

    def state(self) -> dict[str, Tensor]:
        """Tensors for a file."""
        self.settle()
        return {"weight": self.weight, "first": self.first, "packed": self.second.flat}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave, or what a file of the first version has, whose strips lie in a matrix.

        Raises:
            KeyError: if it is the state of something else.
        """
        self.weight.copy_(state["weight"])
        self.first.copy_(state["first"])
        old = "second" in state
        self.second.flat.copy_(Packed.of(state["second"]).flat if old else state["packed"])

    def result(self, shift: Tensor) -> SecondMoment:
        """The moment; its G is these sums' own until the next batch comes."""
        self.settle()
        self._lent = True
        here = shift.to(self.weight.device, copy=True)
        return SecondMoment(self.weight.clone(), self.first.clone(), self.second, here)


def all_finite(scalars: Sequence[Tensor]) -> bool:
    """Whether all are, asked of each device once."""
    on: dict[torch.device, list[Tensor]] = {}
    for scalar in scalars:
        on.setdefault(scalar.device, []).append(scalar)
    return all(bool(torch.stack(each).isfinite().all()) for each in on.values())


def _pinned(tensor: Tensor) -> Tensor:
    """A copy in the CPU's memory that a GPU writes without being waited for."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def home_of(device: torch.device) -> torch.device:
    """Where float64 sums over activations on `device` live: beside them, but MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
