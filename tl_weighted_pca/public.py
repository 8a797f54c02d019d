"""The names that `import tl_weighted_pca` offers; imported when the first of them is used."""

from tl_weighted_pca.ablation import AblationCurves, Estimate, ablation_curves
from tl_weighted_pca.ansatz import FeatureAnsatz, feature_ansatz
from tl_weighted_pca.bases import (
    Basis,
    Metric,
    allocate_ranks,
    fisher_metric,
    gradient_pca,
    metric_pca,
    pca,
    principal_angles,
    random_basis,
    subspace_overlap,
    weighted_pca,
)
from tl_weighted_pca.data import shard
from tl_weighted_pca.factored import SVD, FactoredMatrix, svd, svdvals, use_linalg_svd
from tl_weighted_pca.feature_cards import FeatureCards, cards
from tl_weighted_pca.fitted import joint_pca, optimize_basis, path_metric
from tl_weighted_pca.interaction import (
    edge_ablation_curves,
    interaction_edges,
    local_interaction_basis,
)
from tl_weighted_pca.model_map import DimensionMap, dimension_map
from tl_weighted_pca.models import Run
from tl_weighted_pca.moments import (
    Collection,
    MomentAccumulator,
    Moments,
    NonFiniteError,
    Provenance,
    SecondMoment,
)
from tl_weighted_pca.objectives import (
    hook_probe,
    logit_probe,
    next_token_loss,
    sampled_token_loss,
)
from tl_weighted_pca.runs import report
from tl_weighted_pca.streaming import Pairs, collect, stream_pairs

__all__ = [
    "SVD",
    "AblationCurves",
    "Basis",
    "Collection",
    "DimensionMap",
    "Estimate",
    "FactoredMatrix",
    "FeatureAnsatz",
    "FeatureCards",
    "Metric",
    "MomentAccumulator",
    "Moments",
    "NonFiniteError",
    "Pairs",
    "Provenance",
    "Run",
    "SecondMoment",
    "ablation_curves",
    "allocate_ranks",
    "cards",
    "collect",
    "dimension_map",
    "edge_ablation_curves",
    "feature_ansatz",
    "fisher_metric",
    "gradient_pca",
    "hook_probe",
    "interaction_edges",
    "joint_pca",
    "local_interaction_basis",
    "logit_probe",
    "metric_pca",
    "next_token_loss",
    "optimize_basis",
    "path_metric",
    "pca",
    "principal_angles",
    "random_basis",
    "report",
    "sampled_token_loss",
    "shard",
    "stream_pairs",
    "subspace_overlap",
    "svd",
    "svdvals",
    "use_linalg_svd",
    "weighted_pca",
]
