"""Find the directions a transformer uses: PCA that sees gradients, and torch's SVD."""

from tl_weighted_pca.accumulator import MomentAccumulator, NonFiniteError
from tl_weighted_pca.basis import Basis
from tl_weighted_pca.collect import collect
from tl_weighted_pca.collection import Collection
from tl_weighted_pca.moments import Moments, Provenance, SecondMoment
from tl_weighted_pca.objectives import Run, next_token_loss
from tl_weighted_pca.principal_components import gradient_pca, metric_pca, pca, weighted_pca

__version__ = "0.1.0"

__all__ = [
    "Basis",
    "Collection",
    "MomentAccumulator",
    "Moments",
    "NonFiniteError",
    "Provenance",
    "Run",
    "SecondMoment",
    "collect",
    "gradient_pca",
    "metric_pca",
    "next_token_loss",
    "pca",
    "weighted_pca",
]
