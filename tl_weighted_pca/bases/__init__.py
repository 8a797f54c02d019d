"""Bases of a hidden space: the one eigenproblem, how alike two are, how many components to keep."""

from tl_weighted_pca.bases.allocation import allocate_ranks
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.bases.metric import Metric, fisher_metric
from tl_weighted_pca.bases.overlap import principal_angles, subspace_overlap
from tl_weighted_pca.bases.principal_components import (
    gradient_pca,
    metric_pca,
    pca,
    random_basis,
    weighted_pca,
)

__all__ = [
    "Basis",
    "Metric",
    "allocate_ranks",
    "fisher_metric",
    "gradient_pca",
    "metric_pca",
    "pca",
    "principal_angles",
    "random_basis",
    "subspace_overlap",
    "weighted_pca",
]
