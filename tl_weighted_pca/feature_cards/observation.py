"""What one pass over the data keeps of the components' coordinates."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.data.positions import Outliers, Positions, selected
from tl_weighted_pca.feature_cards.card import Neighbour
from tl_weighted_pca.feature_cards.components import Components
from tl_weighted_pca.feature_cards.contexts import Extremes
from tl_weighted_pca.feature_cards.facts import FactSums
from tl_weighted_pca.feature_cards.histogram import HistogramSums
from tl_weighted_pca.feature_cards.neighbours import CrossSums, nearest
from tl_weighted_pca.feature_cards.token_sample import TokenSample
from tl_weighted_pca.streaming.sink import counted_sum


class Latest:
    """A recorder's sink that holds the activations of one batch."""

    def __init__(self) -> None:
        self.activations: Tensor | None = None
        self._mask: Tensor | None = None

    def begin(
        self,
        activations: Tensor,
        mask: Tensor | None = None,
        n_tokens: int | None = None,
        *,
        gradients_to_come: int = 0,
    ) -> None:
        self.activations, self._mask = activations, mask

    def gradient(self, gradients: Tensor, objective: str = "", scale: float = 1.0) -> None:
        raise AssertionError("no gradients were asked for")

    def check(self) -> list[Tensor]:
        x, mask = self.activations, self._mask
        assert x is not None
        return [counted_sum(x, mask)]

    def commit(self) -> None:
        """Nothing to do: `taken` follows."""

    def discard(self) -> None:
        self.activations = self._mask = None

    def taken(self) -> Tensor:
        """The activations [batch, pos, …], handed over."""
        activations = self.activations
        assert activations is not None
        self.discard()
        return activations


class Observation:
    """Sums, histograms and contexts of coordinates, in memory that does not grow with the stream.

    Args:
        components: those that get cards.
        every: among which their neighbours are sought, these first.
        other: components of another basis to compare with, if there is one.
        contexts: extremes to keep at either end.
        window: tokens before and after an extreme.
        facts: the facts to relate the coordinates to, if there are any.
        seed: of the random sample of tokens.
        outliers: tokens that do not count for their norm, counted as they are found.
    """

    def __init__(
        self,
        components: Components,
        every: Components,
        other: Components | None,
        contexts: int,
        window: tuple[int, int],
        facts: FactSums | None,
        seed: int,
        outliers: Outliers | None,
    ) -> None:
        n = len(components)
        self._components, self._every, self._other = components, every, other
        self.histograms = HistogramSums(n)
        self.highest, self.lowest = (Extremes(n, contexts, window, sign) for sign in (1, -1))
        self.sample = TokenSample(seed)
        self._within = CrossSums(n, len(every))
        self._across = None if other is None else CrossSums(n, len(other))
        self.facts, self.outliers = facts, outliers
        self.n_tokens = self.n_sequences = 0

    def add(self, batch: Batch, seen: Tensor, elsewhere: Tensor, positions: Positions) -> None:
        """See a batch with its activations at the basis's hook point, and at the other basis's."""
        if batch.inputs.is_floating_point() or batch.inputs.shape != seen.shape[:2]:
            raise ValueError(
                f"The inputs have shape {tuple(batch.inputs.shape)} and the activations "
                f"{tuple(seen.shape)}; cards are of token ids [batch, pos] and one vector a token."
            )
        every = self._every.coordinates(seen).cpu()
        z: Float[Tensor, "batch pos n"] = every[..., : len(self._components)]
        where = selected(positions, batch.mask, (z.shape[0], z.shape[1]))
        counted: Bool[Tensor, "batch pos"] = (
            torch.ones(z.shape[:2], dtype=torch.bool, device="cpu")
            if where is None
            else where.cpu()
        )
        if self.outliers is not None:
            left_out = counted & self.outliers.among(seen, batch.mask).cpu()
            self.outliers.see("", left_out, batch.mask)
            counted = counted & ~left_out
        at_tokens = z[counted]
        self.histograms.add(at_tokens)
        self._within.add(at_tokens, every[counted])
        if self._other is not None and self._across is not None:
            self._across.add(at_tokens, self._other.coordinates(elsewhere).cpu()[counted])
        self.highest.add(batch, z, counted)
        self.lowest.add(batch, z, counted)
        self.sample.add(batch, z, counted)
        if self.facts is not None:
            self.facts.add(batch.sequence_index, z, counted, batch.mask)
        self.n_tokens += int(counted.sum())
        self.n_sequences += len(z)

    def nearest(self, name: str) -> list[list[Neighbour]]:
        """The neighbours of each component: in its own basis, then in the other, which has this name."""
        found = nearest(self._components, self._every, self._within.correlations(), "")
        if self._other is None or self._across is None:
            return found
        others = nearest(self._components, self._other, self._across.correlations(), name)
        return [mine + theirs for mine, theirs in zip(found, others, strict=True)]
