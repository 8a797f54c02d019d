"""The whole model at once: how many directions each hook point uses, and where gradients tell them apart."""

from tl_weighted_pca.model_map.dimensions import DimensionMap
from tl_weighted_pca.model_map.measurement import dimension_map

__all__ = ["DimensionMap", "dimension_map"]
