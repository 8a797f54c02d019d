"""Pictures of dictionaries. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_biases(
    dictionary: SparseAutoencoder | Float[Tensor, "features"],
    ax: Axes | None = None,
    *,
    bins: int = 50,
) -> Axes:
    """The histogram of b_enc, in the unit of the activations, with the share below zero in its title.

    Args:
        dictionary: or its biases, as an `Evaluation` keeps them.
        ax: where to draw; a new figure by default.
        bins: of the histogram.

    Returns:
        The axes.
    """
    biases = dictionary.biases if isinstance(dictionary, SparseAutoencoder) else dictionary
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    ax.hist(biases.detach().cpu().numpy(), bins=bins, color="#4477aa")
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_xlabel("encoder bias (unit of the activations)")
    ax.set_ylabel("features")
    ax.set_title(
        f"{float((biases < 0).double().mean()):.0%} of {biases.numel()} biases are negative"
    )
    return ax
