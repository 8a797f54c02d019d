"""What is done with a user's model: find its hook points, freeze it, run it, edit it, load it."""

from tl_weighted_pca.models.run import Run

__all__ = ["Run"]
