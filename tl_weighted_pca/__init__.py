"""Find the directions a transformer uses: PCA that sees gradients, and torch's SVD."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from tl_weighted_pca.ablation import ablation_curves
from tl_weighted_pca.accumulator import MomentAccumulator, NonFiniteError
from tl_weighted_pca.basis import Basis
from tl_weighted_pca.collect import collect
from tl_weighted_pca.collection import Collection
from tl_weighted_pca.curves import AblationCurves
from tl_weighted_pca.moments import Moments, Provenance, SecondMoment
from tl_weighted_pca.objectives import (
    Run,
    hook_probe,
    logit_probe,
    next_token_loss,
    sampled_token_loss,
)
from tl_weighted_pca.pairs import Pairs, stream_pairs
from tl_weighted_pca.principal_components import (
    gradient_pca,
    metric_pca,
    pca,
    random_basis,
    weighted_pca,
)

if TYPE_CHECKING:
    from tl_weighted_pca import embedded as embedded
    from tl_weighted_pca import plots as plots

__version__ = "0.1.0"

__all__ = [
    "AblationCurves",
    "Basis",
    "Collection",
    "MomentAccumulator",
    "Moments",
    "NonFiniteError",
    "Pairs",
    "Provenance",
    "Run",
    "SecondMoment",
    "ablation_curves",
    "collect",
    "gradient_pca",
    "hook_probe",
    "logit_probe",
    "metric_pca",
    "next_token_loss",
    "pca",
    "random_basis",
    "sampled_token_loss",
    "stream_pairs",
    "weighted_pca",
]

_ON_DEMAND = ("embedded", "plots")
"""Submodules that are imported when first used, so that importing the package stays quick."""


def __getattr__(name: str) -> ModuleType:
    if name in _ON_DEMAND:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ON_DEMAND])
