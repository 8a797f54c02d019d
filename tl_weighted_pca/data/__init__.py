"""The user's data as batches of tokens with masks, from tensors, loaders, data sets and text files."""

from tl_weighted_pca.data.sharding import Shard, shard

__all__ = ["Shard", "shard"]
