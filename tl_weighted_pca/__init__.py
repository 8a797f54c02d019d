"""Find the directions a transformer uses: PCA that sees gradients, and SVD the way torch does it."""

__version__ = "0.1.0"
