"""Contexts from all over a coordinate's range: a random sample of tokens, sorted into quantiles."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.feature_cards.contexts import Window
from tl_weighted_pca.feature_cards.histogram import Histogram
from tl_weighted_pca.support.randomness import uniform

SAMPLED = 2048
"""Tokens in the sample: two hundred for each tenth."""

AROUND = 5
"""Tokens shown before and after each."""

_NONE = -1
"""The id where a sequence has no token."""


class TokenSample:
    """The tokens with the lowest random number, the same tokens for every component.

    The number is a hash of the seed, the sequence's place in the data and the token's position, so
    the sample depends neither on batches nor on padding. Memory does not grow with the stream.
    """

    def __init__(self, seed: int, size: int = SAMPLED) -> None:
        self._seed, self._size = seed, size
        self._order = torch.empty(0, dtype=torch.float64, device="cpu")
        self._places = torch.empty(0, 2, dtype=torch.long, device="cpu")
        self._tokens = torch.empty(0, 2 * AROUND + 1, dtype=torch.long, device="cpu")
        self._z: Tensor | None = None

    def add(
        self, batch: Batch, z: Float[Tensor, "batch pos n"], counted: Bool[Tensor, "batch pos"]
    ) -> None:
        """See a batch, with the coordinates and which positions count."""
        real = torch.ones_like(counted) if batch.mask is None else batch.mask.cpu()
        position = real.cumsum(1) - 1
        number = uniform(self._seed, batch.sequence_index.cpu()[:, None], position)
        bar = self._order[-1] if len(self._order) == self._size else math.inf
        rows, columns = ((number < bar) & counted).nonzero().unbind(1)
        if not len(rows):
            return
        at = columns[:, None] + torch.arange(-AROUND, AROUND + 1, device="cpu")
        there = (at >= 0) & (at < counted.shape[1])
        at = at.clamp(0, counted.shape[1] - 1)
        there &= real[rows[:, None], at]
        tokens = batch.inputs.cpu().long()[rows[:, None], at].masked_fill(~there, _NONE)
        shown = there & counted[rows[:, None], at]
        near = z[rows[:, None], at].float().masked_fill(~shown[..., None], math.nan)
        places = torch.stack([batch.sequence_index.cpu()[rows], position[rows, columns]], 1)
        every = torch.cat([self._order, number[rows, columns]])
        kept = every.argsort(stable=True)[: self._size]
        self._order = every[kept]
        self._places = torch.cat([self._places, places])[kept]
        self._tokens = torch.cat([self._tokens, tokens])[kept]
        self._z = near[kept] if self._z is None else torch.cat([self._z, near])[kept]

    def by_quantile(
        self, i: int, histogram: Histogram, groups: int, each: int
    ) -> list[tuple[float, float, float, list[Window]]]:
        """(low, high, share, windows) of each group of component i, highest first.

        Bounds are edges of the histogram's bins, those below each quantile. Where many tokens have one
        coordinate, groups that hold nothing are left out.
        """
        assert self._z is not None
        inner = [histogram.quantile(g / groups) for g in range(1, groups)]
        edges = sorted({float(histogram.edges[0]), *inner, math.inf})
        z = self._z[:, AROUND, i].double()
        below = histogram.edges[:-1, None] < torch.tensor(edges, dtype=torch.float64, device="cpu")
        total = float(histogram.counts.sum())
        cumulated = (histogram.counts[:, None] * below).sum(0) / total
        found = []
        for g in reversed(range(len(edges) - 1)):
            # What rounding in another batch moves below the first edge belongs to the first group.
            low = edges[g] if g else -math.inf
            inside = ((z >= low) & (z < edges[g + 1])).nonzero().flatten()[:each]
            windows = sorted((self._window(int(t), i) for t in inside), key=_highest_first)
            high = min(edges[g + 1], histogram.maximum)
            share = float(cumulated[g + 1] - cumulated[g])
            found.append((max(edges[g], histogram.minimum), high, share, windows))
        return found

    def _window(self, t: int, i: int) -> Window:
        assert self._z is not None
        there: Int[Tensor, " shown"] = (self._tokens[t] != _NONE).nonzero().flatten()
        sequence, position = self._places[t].tolist()
        return Window(
            sequence,
            position,
            self._tokens[t, there].tolist(),
            self._z[t, there, i].tolist(),
            int((there < AROUND).sum()),
        )


def _highest_first(window: Window) -> tuple[float, int, int]:
    return -window.coordinate, window.sequence, window.position
