"""Pictures of dictionaries. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_biases(
    dictionary: SparseAutoencoder | Float[Tensor, " features"],
    ax: Axes | None = None,
    *,
    bins: int = 50,
    interactive: bool = False,
) -> Any:
    """The histogram of b_enc, in the unit of the activations, with the share below zero in its title.

    Args:
        dictionary: or its biases, as an `Evaluation` keeps them.
        ax: where to draw; a new figure by default.
        bins: of the histogram.
        interactive: a plotly figure, in place of one of matplotlib.

    Returns:
        The figure.

    Raises:
        ImportError: if plotly is not installed, and asked for.
    """
    from tl_weighted_pca.support.figure import canvas
    from tl_weighted_pca.support.interactive import explorable
    from tl_weighted_pca.support.panel import Line, Panel

    biases = dictionary.biases if isinstance(dictionary, SparseAutoencoder) else dictionary
    values = biases.detach().cpu().double()
    title = f"{float((values < 0).double().mean()):.0%} of {values.numel()} biases are negative"
    unit = "encoder bias (unit of the activations)"
    if interactive:
        counts, edges = torch.histogram(values, bins)
        middles = (edges[:-1] + edges[1:]) / 2
        look = {"color": "#4477aa", "drawstyle": "steps-mid"}
        line = Line(middles.tolist(), counts.tolist(), look=look)
        return explorable([Panel(unit, "features", [line])], title=title)
    figure, ax = canvas(ax, (5, 3))
    ax.hist(values.numpy(), bins=bins, color="#4477aa")
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_xlabel(unit)
    ax.set_ylabel("features")
    ax.set_title(title)
    return figure
