"""Small networks whose structure is known, to test methods on."""

from tl_weighted_pca.toy.hooked_mlp import HookedMLP
from tl_weighted_pca.toy.small_networks import low_rank_regression, modular_addition, train
from tl_weighted_pca.toy.square_network import SquareNetwork, square_network

__all__ = [
    "HookedMLP",
    "SquareNetwork",
    "low_rank_regression",
    "modular_addition",
    "square_network",
    "train",
]
