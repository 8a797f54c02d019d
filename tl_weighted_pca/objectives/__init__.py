"""What to differentiate: scalars of a model run, one per sequence."""

from tl_weighted_pca.objectives.losses import (
    hook_probe,
    logit_probe,
    next_token_loss,
    sampled_token_loss,
)
from tl_weighted_pca.objectives.supervised import classification_loss, squared_error

__all__ = [
    "classification_loss",
    "hook_probe",
    "logit_probe",
    "next_token_loss",
    "sampled_token_loss",
    "squared_error",
]
