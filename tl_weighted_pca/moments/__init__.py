"""Second moments of activations and gradients: summed over a stream, merged, saved. No models here."""

from tl_weighted_pca.moments.accumulator import MomentAccumulator, NonFiniteError
from tl_weighted_pca.moments.collection import Collection
from tl_weighted_pca.moments.second_moment import Moments, Provenance, SecondMoment

__all__ = [
    "Collection",
    "MomentAccumulator",
    "Moments",
    "NonFiniteError",
    "Provenance",
    "SecondMoment",
]
