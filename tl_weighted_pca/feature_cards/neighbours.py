"""The components nearest to each: by the cosine of decoders, and the correlation of coordinates."""

from __future__ import annotations

import torch
from fancy_einsum import einsum
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.feature_cards.card import Neighbour
from tl_weighted_pca.feature_cards.components import Components

SOUGHT = 512
"""Leading components of a basis among which neighbours are sought."""

_EACH = 3
"""Neighbours by either measure."""

_NOTHING = 0.005
"""Cosines and correlations below this are no nearness."""


class CrossSums:
    """Σ z, Σ z′, Σ z², Σ z′² and Σ z z′ over tokens: what the correlations of all pairs take."""

    def __init__(self, n: int, others: int) -> None:
        self._n_tokens = 0
        self._sums = [
            torch.zeros(2, width, dtype=torch.float64, device="cpu") for width in (n, others)
        ]
        self._products = torch.zeros(n, others, dtype=torch.float64, device="cpu")

    def add(self, z: Float[Tensor, "tokens n"], others: Float[Tensor, "tokens m"]) -> None:
        """See the coordinates of some tokens."""
        z, others = z.double(), others.double()
        self._n_tokens += len(z)
        for sums, x in zip(self._sums, (z, others), strict=True):
            sums += torch.stack([x.sum(0), x.square().sum(0)])
        self._products += einsum("token n, token m -> n m", z, others)

    def correlations(self) -> Float[Tensor, "n m"]:
        """r = cov(z, z′) / √(var z var z′); 0 where one of them is constant."""
        n = self._n_tokens
        (left, left_squares), (right, right_squares) = self._sums
        covariance = self._products / n - left[:, None] * right / n**2
        variances = [
            squares / n - (sums / n).square()
            for sums, squares in ((left, left_squares), (right, right_squares))
        ]
        scale = (variances[0][:, None] * variances[1]).clamp(min=0).sqrt()
        return torch.where(scale > 0, covariance / scale, 0.0).clamp(-1, 1)


def cosines(mine: Components, others: Components) -> Float[Tensor, "n m"] | None:
    """D·D′ / ‖D‖‖D′‖ of all pairs of decoders; None where their spaces differ in width."""
    if mine.basis.width != others.basis.width:
        return None
    left, right = (
        torch.nn.functional.normalize(each.basis.decoder, dim=-1) for each in (mine, others)
    )
    return einsum("n d, m d -> n m", left, right)


def nearest(
    mine: Components,
    others: Components,
    correlations: Float[Tensor, "n m"],
    name: str,
) -> list[list[Neighbour]]:
    """For each of mine, those of the others that are nearest by correlation, and by cosine.

    Args:
        mine: the components that have cards.
        others: among which to look; where they are the same basis, none is its own neighbour.
        correlations: from `CrossSums`.
        name: of the others' basis; "" where it is the same.
    """
    angles = cosines(mine, others)
    measures = [correlations] if angles is None else [correlations, angles]
    found = []
    for i, place in enumerate(mine.places):
        chosen: dict[int, None] = {}
        for measure in measures:
            size = measure[i].abs()
            order = size.argsort(descending=True, stable=True).tolist()
            near = [j for j in order if name or others.places[j] != place]
            chosen |= dict.fromkeys(j for j in near[:_EACH] if float(size[j]) >= _NOTHING)
        neighbours = []
        for j in chosen:
            head, component = others.places[j]
            cosine = None if angles is None else float(angles[i, j])
            neighbours.append(Neighbour(name, component, head, cosine, float(correlations[i, j])))
        found.append(neighbours)
    return found
