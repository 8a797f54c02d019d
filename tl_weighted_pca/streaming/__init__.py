"""The one pass over a model: hooks that record activations and gradients, and what they stream into."""

from tl_weighted_pca.streaming.one_pass import collect
from tl_weighted_pca.streaming.pairs import Pairs, stream_pairs

__all__ = ["Pairs", "collect", "stream_pairs"]
