"""Pictures of dictionaries. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_biases(
    dictionary: SparseAutoencoder | Float[Tensor, " features"],
    ax: Axes | None = None,
    *,
    bins: int = 50,
) -> Figure:
    """The histogram of b_enc, in the unit of the activations, with the share below zero in its title.

    Args:
        dictionary: or its biases, as an `Evaluation` keeps them.
        ax: where to draw; a new figure by default.
        bins: of the histogram.

    Returns:
        The figure.
    """
    from tl_weighted_pca.support.figure import canvas

    biases = dictionary.biases if isinstance(dictionary, SparseAutoencoder) else dictionary
    figure, ax = canvas(ax, (5, 3))
    ax.hist(biases.detach().cpu().numpy(), bins=bins, color="#4477aa")
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_xlabel("encoder bias (unit of the activations)")
    ax.set_ylabel("features")
    ax.set_title(
        f"{float((biases < 0).double().mean()):.0%} of {biases.numel()} biases are negative"
    )
    return figure
