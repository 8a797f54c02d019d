"""Histograms of a stream whose range nobody knows beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BINS = 4096
"""Bins that a stream is kept in: an outlier at 500 standard deviations leaves four a deviation."""

_FINEST = 40
"""A bin is never narrower than 2^−40 of the largest value: below that is rounding."""

_UNSET = -1000
"""The exponent before the first value, below any there can be."""

_TINIEST = 1e-200
"""Values below this are zero, so that no width underflows."""


@dataclass(frozen=True)
class Histogram:
    """Counts c_j of the values in [e_j, e_{j+1}), with mean and standard deviation of the values.

    The bins are 2^k wide and begin at a multiple of it, so that histograms do not depend on the order of
    the values, nor on how they were cut into batches.
    """

    edges: Float[Tensor, " bins+1"]
    counts: Int[Tensor, " bins"]
    mean: float
    std: float
    """Of the population: √(E z² − (E z)²)."""
    minimum: float
    maximum: float

    def quantile(self, q: float) -> float:
        """The lower edge of the bin that holds the q-quantile: right to the width of a bin."""
        at = int(torch.searchsorted(self.counts.cumsum(0).double(), q * float(self.counts.sum())))
        return float(self.edges[min(at, len(self.counts) - 1)])

    def shown(self, bins: int = 40, tail: float = 5e-4) -> Histogram:
        """At most so many equal bins of the middle, for a picture; outliers count in the two end bins.

        Args:
            bins: at most.
            tail: share of the values on either side that need not be inside the range.
        """
        below = self.counts.cumsum(0).double() / float(self.counts.sum())
        first = int((below <= tail).sum())
        last = max(first, int((below < 1 - tail).sum()))
        step = -(-(last + 1 - first) // bins)
        starts = list(range(first, last + 1, step))
        ends = [*starts[1:], min(starts[-1] + step, len(self.counts))]
        counts = torch.stack([self.counts[a:b].sum() for a, b in zip(starts, ends, strict=True)])
        counts[0] += self.counts[:first].sum()
        counts[-1] += self.counts[ends[-1] :].sum()
        width = float(self.edges[1] - self.edges[0]) * step
        edges = self.edges[first] + width * torch.arange(
            len(starts) + 1, dtype=torch.float64, device="cpu"
        )
        return Histogram(edges, counts, self.mean, self.std, self.minimum, self.maximum)


class HistogramSums:
    """Histograms of several streams at once, in memory that does not grow.

    Whenever a value falls outside, bins are merged in pairs until it has a place: the width in the end
    is the smallest power of two for which the whole range fits.
    """

    def __init__(self, n: int) -> None:
        self._exponent = torch.full((n,), _UNSET, dtype=torch.int64, device="cpu")
        self._low = torch.zeros(n, dtype=torch.int64, device="cpu")
        self._counts = torch.zeros(n, _BINS, dtype=torch.int64, device="cpu")
        self._extremes = torch.tensor(
            [[math.inf], [-math.inf]], dtype=torch.float64, device="cpu"
        ).repeat(1, n)
        self._sums = torch.zeros(2, n, dtype=torch.float64, device="cpu")

    def add(self, values: Float[Tensor, "tokens n"]) -> None:
        """Count the values of a batch, all finite."""
        if not len(values):
            return
        values = values.double()
        low = torch.minimum(self._extremes[0], values.amin(0))
        high = torch.maximum(self._extremes[1], values.amax(0))
        self._extremes = torch.stack([low, high])
        self._sums += torch.stack([values.sum(0), values.square().sum(0)])
        self._make_room(low, high)
        n = values.shape[1]
        index = self._bin(values) - self._low + _BINS * torch.arange(n, device="cpu")
        counted = torch.bincount(index.flatten(), minlength=n * _BINS)
        self._counts += counted.view(n, _BINS)

    def result(self) -> list[Histogram]:
        """One histogram a stream, from the first bin that holds something to the last."""
        found = []
        for i, counts in enumerate(self._counts):
            total = int(counts.sum())
            if not total:
                raise ValueError("No values were counted, so there is no histogram.")
            filled = counts.nonzero()
            first, last = int(filled[0]), int(filled[-1]) + 1
            low, width = int(self._low[i]) + first, 2.0 ** int(self._exponent[i])
            edges = (
                low + torch.arange(last - first + 1, dtype=torch.float64, device="cpu")
            ) * width
            mean, square = (self._sums[:, i] / total).tolist()
            std = math.sqrt(max(square - mean**2, 0.0))
            minimum, maximum = self._extremes[:, i].tolist()
            found.append(Histogram(edges, counts[first:last].clone(), mean, std, minimum, maximum))
        return found

    def _bin(self, values: Tensor) -> Tensor:
        # Not torch.ldexp, which goes through float32.
        per_unit = [math.ldexp(1.0, -exponent) for exponent in self._exponent.tolist()]
        return (values * torch.tensor(per_unit, dtype=torch.float64, device="cpu")).floor().long()

    def _make_room(self, low: Tensor, high: Tensor) -> None:
        largest = torch.maximum(low.abs(), high.abs()).clamp(min=_TINIEST)
        exponent = torch.maximum(self._exponent, torch.frexp(largest).exponent.long() - _FINEST)
        before = self._exponent.clone()
        self._exponent = exponent
        while bool((crowded := self._bin(high) - self._bin(low) >= _BINS).any()):
            self._exponent = self._exponent + crowded.long()
        first = self._bin(low)
        for i in range(len(first)):
            shift = int(self._exponent[i] - before[i])
            if shift or first[i] != self._low[i]:
                filled = self._counts[i].nonzero().flatten()
                moved = ((filled + self._low[i]) >> min(shift, 62)) - first[i]
                fresh = torch.zeros(_BINS, dtype=torch.int64, device="cpu")
                self._counts[i] = fresh.index_add_(0, moved, self._counts[i][filled])
        self._low = first
