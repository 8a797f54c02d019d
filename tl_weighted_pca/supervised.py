"""Objectives and scores of networks that give one output an input, with targets known by index.

Both are callables of a `Run` giving [batch]: an objective for `collect`, a score for
`ablation_curves`. The target of an input is found by its place in the data.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tl_weighted_pca.objectives import Run


@dataclass(frozen=True)
class squared_error:
    """L(x) = ½ ‖f(x) − y‖², whose gradient is the residual times the Jacobian.

    Args:
        targets: y, one row for each row of the data.
    """

    targets: Float[Tensor, "n outputs"] = field(repr=False)

    def __call__(self, run: Run) -> Float[Tensor, "batch"]:
        """Raises ValueError where outputs and targets differ in shape."""
        y = _of(self.targets, run).to(run.output)
        if y.shape != run.output.shape:
            raise ValueError(
                f"The model gave {tuple(run.output.shape)}, but the targets of this batch have shape "
                f"{tuple(y.shape)}: pass targets [n, outputs], one row for each input."
            )
        return 0.5 * (run.output - y).square().flatten(1).sum(1)


@dataclass(frozen=True)
class classification_loss:
    """L(x) = −log p(y | x) in nats, from logits [batch, classes] or those of the last position.

    Args:
        labels: y, one for each row of the data.
    """

    labels: Int[Tensor, "n"] = field(repr=False)

    def __call__(self, run: Run) -> Float[Tensor, "batch"]:
        logits = run.output if run.output.ndim == 2 else run.output[:, -1]
        y = _of(self.labels, run).to(logits.device)
        return F.cross_entropy(logits, y, reduction="none")


def _of(values: Tensor, run: Run) -> Tensor:
    """The rows that belong to this batch."""
    last = int(run.sequence_index.max())
    if last >= len(values):
        raise ValueError(
            f"There are {len(values)} targets, but the data has a row {last}: pass one target a row."
        )
    return values[run.sequence_index.to(values.device)]
