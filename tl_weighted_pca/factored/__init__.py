"""The SVD of factored matrices in torch.linalg's convention; needs torch and TransformerLens alone."""

from tl_weighted_pca.factored.decompose import SVD
from tl_weighted_pca.factored.factored_matrix import FactoredMatrix
from tl_weighted_pca.factored.svd_switch import use_linalg_svd
from tl_weighted_pca.factored.thin_svd import svd, svdvals

__all__ = ["SVD", "FactoredMatrix", "svd", "svdvals", "use_linalg_svd"]
