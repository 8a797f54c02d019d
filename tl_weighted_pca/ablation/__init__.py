"""Node ablation: the model's score with the top k components of a basis kept, and curves of it by k."""

from tl_weighted_pca.ablation.bootstrap import Estimate
from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.node_ablation import ablation_curves

__all__ = ["AblationCurves", "Estimate", "ablation_curves"]
