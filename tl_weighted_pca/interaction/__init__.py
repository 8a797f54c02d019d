"""The local interaction basis of several layers, the graph of their interactions, and its ablation."""

from tl_weighted_pca.interaction.edge_ablation import edge_ablation_curves
from tl_weighted_pca.interaction.graph import InteractionGraph
from tl_weighted_pca.interaction.local_basis import interaction_edges, local_interaction_basis, used

__all__ = [
    "InteractionGraph",
    "edge_ablation_curves",
    "interaction_edges",
    "local_interaction_basis",
    "used",
]
