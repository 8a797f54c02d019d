"""The deep neural feature ansatz: do weights W satisfy W Wᵀ ∝ Σ g gᵀ, beyond its controls?"""

from tl_weighted_pca.ansatz.model_ansatz import FeatureAnsatz, feature_ansatz
from tl_weighted_pca.ansatz.weight_ansatz import WeightAnsatz

__all__ = ["FeatureAnsatz", "WeightAnsatz", "feature_ansatz"]
