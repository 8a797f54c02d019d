"""A graph of features and of the strengths with which they interact, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis

if TYPE_CHECKING:
    import networkx
    import pandas as pd


@dataclass(frozen=True, eq=False)
class InteractionGraph:
    """Features by hook point, and the edges between those of neighbouring hook points."""

    variances: Mapping[str, Float[Tensor, " k"]]
    """Var(z_i) of each feature's coordinate, by hook point from first to last."""
    edges: Mapping[tuple[str, str], Float[Tensor, "k_here k_there"]]
    """Strengths by pair of hook points: variance of z'_j that z_i accounts for, to first order."""
    bases: Mapping[str, Basis]
    """What the features are: component i of the basis at each hook point."""
    n_tokens: int = 0
    """Positions that the edges were averaged over."""

    def __repr__(self) -> str:
        layers = " → ".join(f"{name} ({len(v)})" for name, v in self.variances.items())
        return f"InteractionGraph({layers}; n_tokens={self.n_tokens})"

    def n_edges(self, share: float = 0.99) -> dict[tuple[str, str], int]:
        """The fewest edges that hold so much of each pair's total strength."""
        return {pair: int(mask.sum()) for pair, mask in self.strongest(share).items()}

    def strongest(self, share: float = 0.99) -> dict[tuple[str, str], Bool[Tensor, "here there"]]:
        """Masks of the strongest edges that together hold `share` of each pair's total.

        Raises:
            ValueError: if `share` is outside 0..1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; expected a number from 0 to 1.")
        masks = {}
        for pair, strengths in self.edges.items():
            order = strengths.flatten().argsort(descending=True, stable=True)
            held = strengths.flatten()[order].cumsum(0)
            # Those before the share is reached, and the one that reaches it.
            reaching = share > 0 and held[-1] > 0
            needed = int((held < share * held[-1] * (1 - 1e-12)).sum()) + bool(reaching)
            masks[pair] = top_edges(strengths, needed)
        return masks

    def to_pandas(self, share: float = 1.0) -> pd.DataFrame:
        """A tidy table of edges, strongest first: layers, features, strength, share of the pair's total."""
        import pandas as pd

        rows = []
        for pair, mask in self.strongest(share).items():
            total = float(self.edges[pair].sum())
            for i, j in mask.nonzero().tolist():
                strength = float(self.edges[pair][i, j])
                rows.append((*pair, i, j, strength, strength / total if total else 0.0))
        columns = ["from_hook_point", "to_hook_point", "from", "to", "strength", "share"]
        return pd.DataFrame(rows, columns=columns).sort_values(
            "strength", ascending=False, ignore_index=True
        )

    def to_networkx(self, share: float = 1.0) -> networkx.Graph:
        """An undirected graph with nodes (hook_point, i), for `networkx.community` and its modularity.

        Edges have `weight`, their share of the pair's total, so that every pair of layers counts
        alike; nodes have `variance` and `layer`.
        """
        import networkx

        graph = networkx.Graph()
        for layer, (name, variances) in enumerate(self.variances.items()):
            for i, variance in enumerate(variances.tolist()):
                graph.add_node((name, i), variance=variance, layer=layer)
        for row in self.to_pandas(share).itertuples(index=False):
            here, there, i, j, _, weight = row
            if weight > 0:
                graph.add_edge((here, i), (there, j), weight=weight)
        return graph

    def plot(self, **options: Any) -> Any:
        """A figure of the graph, layers from left to right: see `plot_interaction_graph`."""
        from tl_weighted_pca.interaction.picture import plot_interaction_graph

        return plot_interaction_graph(self, **options)


def top_edges(strengths: Float[Tensor, "here there"], n: int) -> Bool[Tensor, "here there"]:
    """A mask of the n strongest edges; equal ones in the order of their places."""
    mask = torch.zeros(strengths.numel(), dtype=torch.bool, device="cpu")
    mask[strengths.flatten().argsort(descending=True, stable=True)[:n]] = True
    return mask.view(strengths.shape)
