"""Bases and metrics that go back to the model once the moments are there."""

from tl_weighted_pca.fitted.joint import joint_pca
from tl_weighted_pca.fitted.path_gradients import path_metric
from tl_weighted_pca.fitted.trained import optimize_basis

__all__ = ["joint_pca", "optimize_basis", "path_metric"]
