"""Pictures. Each function returns a matplotlib figure, to restyle or save as you like."""

from tl_weighted_pca.ablation.picture import plot_ablation_curves, plot_relative_excess
from tl_weighted_pca.bases.overlap_picture import basis_overlap
from tl_weighted_pca.plots.spectra import eigenvalue_spectra, singular_value_spectra
from tl_weighted_pca.support.figure import MARKERS, PALETTE, Picture, styles

__all__ = [
    "MARKERS",
    "PALETTE",
    "Picture",
    "basis_overlap",
    "eigenvalue_spectra",
    "plot_ablation_curves",
    "plot_relative_excess",
    "singular_value_spectra",
    "styles",
]
