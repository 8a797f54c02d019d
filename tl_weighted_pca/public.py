"""The names that `import tl_weighted_pca` offers; imported when the first of them is used."""

from tl_weighted_pca.ablation import ablation_curves
from tl_weighted_pca.accumulator import MomentAccumulator, NonFiniteError
from tl_weighted_pca.ansatz import FeatureAnsatz, feature_ansatz
from tl_weighted_pca.basis import Basis
from tl_weighted_pca.circuits import use_linalg_svd
from tl_weighted_pca.collect import collect
from tl_weighted_pca.collection import Collection
from tl_weighted_pca.curves import AblationCurves, Estimate
from tl_weighted_pca.edge_ablation import edge_ablation_curves
from tl_weighted_pca.factored import FactoredMatrix
from tl_weighted_pca.feature_cards import FeatureCards, cards
from tl_weighted_pca.interaction import interaction_edges, local_interaction_basis
from tl_weighted_pca.joint import joint_pca
from tl_weighted_pca.moments import Moments, Provenance, SecondMoment
from tl_weighted_pca.objectives import (
    Run,
    hook_probe,
    logit_probe,
    next_token_loss,
    sampled_token_loss,
)
from tl_weighted_pca.optimize import optimize_basis
from tl_weighted_pca.overlap import principal_angles, subspace_overlap
from tl_weighted_pca.pairs import Pairs, stream_pairs
from tl_weighted_pca.path_metric import path_metric
from tl_weighted_pca.principal_components import (
    gradient_pca,
    metric_pca,
    pca,
    random_basis,
    weighted_pca,
)
from tl_weighted_pca.sharding import shard
from tl_weighted_pca.svd import SVD, svd, svdvals

__all__ = [
    "SVD",
    "AblationCurves",
    "Basis",
    "Collection",
    "Estimate",
    "FactoredMatrix",
    "FeatureAnsatz",
    "FeatureCards",
    "MomentAccumulator",
    "Moments",
    "NonFiniteError",
    "Pairs",
    "Provenance",
    "Run",
    "SecondMoment",
    "ablation_curves",
    "cards",
    "collect",
    "edge_ablation_curves",
    "feature_ansatz",
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
    "sampled_token_loss",
    "shard",
    "stream_pairs",
    "subspace_overlap",
    "svd",
    "svdvals",
    "use_linalg_svd",
    "weighted_pca",
]
