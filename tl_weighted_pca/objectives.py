"""What to differentiate: scalars of a model run, one a sequence.

An objective is a callable `objective(run) -> Tensor [batch]`, or [samples, batch], whose gradients at
the hook points are what the collector keeps. It is a sum over the positions of its own sequence, so
that nothing depends on the batch size; a padded target contributes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """One forward pass over a batch, as an objective or a score sees it."""

    output: Any
    """What the model returned: logits [batch, pos, vocab] for a language model."""
    inputs: Shaped[Tensor, "batch ..."]
    """What the model was fed."""
    mask: Bool[Tensor, "batch pos"] | None
    """True at real tokens; None where there is no padding."""
    sequence_index: Int[Tensor, "batch"]
    """The place of each sequence in the data: the seed of what is random."""
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    """Activations by hook point, as part of the graph."""


Objective = Callable[[Run], Float[Tensor, "*samples batch"]]


def next_token_loss(run: Run) -> Float[Tensor, "batch"]:
    """L(x) = −Σ_s log p(x_{s+1} | x_{≤s}), in nats, summed over each sequence.

    Its gradient second moment is the *empirical* Fisher information: labels come from the data.
    Targets that are padding, or follow padding, contribute nothing.

    Raises:
        ValueError: if the model gave no logits [batch, pos, vocab], or sequences are shorter than 2.
    """
    return target_losses(run).sum(1)


def target_losses(run: Run) -> Float[Tensor, "batch pos-1"]:
    """−log p(x_{s+1} | x_{≤s}) for each target, zero where the target is padding or follows it."""
    logits = language_logits(run)
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), run.inputs[:, 1:].flatten(), reduction="none"
    ).view(len(run.inputs), -1)
    counted = counted_targets(run)
    return losses if counted is None else losses.masked_fill(~counted, 0.0)


def counted_targets(run: Run) -> Bool[Tensor, "batch pos-1"] | None:
    """Where a next token counts: both it and the token before it are real; None if all do."""
    return None if run.mask is None else run.mask[:, 1:] & run.mask[:, :-1]


def language_logits(run: Run) -> Float[Tensor, "batch pos vocab"]:
    """The run's logits in float32 or wider, checked to be those of a language model."""
    logits = run.output
    if not isinstance(logits, Tensor) or logits.ndim != 3 or run.inputs.is_floating_point():
        what = (
            f"a tensor of shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else type(logits).__name__
        )
        raise ValueError(
            f"The model gave {what}; a token loss needs token ids in and logits [batch, pos, vocab] "
            "out: for another kind of model pass your own objective(run) -> [batch]."
        )
    if run.inputs.shape[1] < 2:
        raise ValueError(
            f"The sequences have length {run.inputs.shape[1]}; a next-token loss needs at least 2 tokens."
        )
    return logits if logits.dtype == torch.float64 else logits.float()


def objective_name(objective: Objective) -> str:
    """A name for files and messages: the function's, or the repr of a configured objective."""
    return getattr(objective, "__name__", None) or repr(objective)
