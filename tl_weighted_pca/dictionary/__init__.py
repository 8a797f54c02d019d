"""Sparse dictionaries on the stream of activations and gradients: more directions than dimensions."""

from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder
from tl_weighted_pca.dictionary.evaluation import Evaluation, evaluate_dictionary
from tl_weighted_pca.dictionary.picture import plot_biases
from tl_weighted_pca.dictionary.prolu import prolu
from tl_weighted_pca.dictionary.recipe import Recipe, Units
from tl_weighted_pca.dictionary.sae_lens import to_sae_lens
from tl_weighted_pca.dictionary.scores import Scores
from tl_weighted_pca.dictionary.trainer import Trainer
from tl_weighted_pca.dictionary.training import train_dictionary

__all__ = [
    "Evaluation",
    "Recipe",
    "Scores",
    "SparseAutoencoder",
    "Trainer",
    "Units",
    "evaluate_dictionary",
    "plot_biases",
    "prolu",
    "to_sae_lens",
    "train_dictionary",
]
