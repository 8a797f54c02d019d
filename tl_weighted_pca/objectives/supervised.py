"""Objectives and scores of networks that give one output an input, with targets known by index.

Both are callables of a `Run` giving [batch]: an objective for `collect`, a score for
`ablation_curves`. The target of an input is found by its place in the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tl_weighted_pca.models.run import Run
from tl_weighted_pca.support.digest import digest_of

_NO_LABEL = -100


@dataclass(frozen=True, eq=False, repr=False)
class squared_error:
    """L(x) = ½ ‖f(x) − y‖², whose gradient is the residual times the Jacobian.

    For outputs [batch, pos, outputs] the norm is over the positions too, without padding.

    Args:
        targets: y, one row for each row of the data.
    """

    targets: Float[Tensor, "n *pos outputs"]

    def __post_init__(self) -> None:
        _check_tensor("targets", self.targets)

    def __repr__(self) -> str:
        return f"squared_error(targets={digest_of(self.targets)})"

    def __call__(self, run: Run) -> Float[Tensor, " batch"]:
        """Raises ValueError where outputs and targets differ in shape."""
        output = _wide(run.output)
        y = _of(self.targets, run).to(output)
        if y.shape != output.shape:
            raise ValueError(
                f"The model gave {tuple(run.output.shape)}, but the targets of this batch have shape "
                f"{tuple(y.shape)}: pass targets [n, outputs], one row for each input."
            )
        residual = output - y
        if run.mask is not None and y.ndim > 2 and y.shape[:2] == run.mask.shape:
            residual = residual.flatten(2).masked_fill(~run.mask[..., None].to(y.device), 0.0)
        return 0.5 * residual.flatten(1).square().sum(1)


@dataclass(frozen=True, eq=False, repr=False)
class classification_loss:
    """L(x) = −log p(y | x) in nats, from logits [batch, classes] or those of the last real position.

    Args:
        labels: y, one whole number for each row of the data; −100 where there is nothing to learn.
    """

    labels: Int[Tensor, " n"]

    def __post_init__(self) -> None:
        _check_tensor("labels", self.labels)
        if self.labels.ndim != 1 or self.labels.is_floating_point():
            raise ValueError(
                f"labels is {self.labels.dtype} of shape {tuple(self.labels.shape)}; expected whole "
                "numbers [n], one for each row of the data."
            )

    def __repr__(self) -> str:
        return f"classification_loss(labels={digest_of(self.labels)})"

    def __call__(self, run: Run) -> Float[Tensor, " batch"]:
        """Raises ValueError for a label that is none of the model's classes."""
        logits = _wide(run.output if run.output.ndim == 2 else _at_last(run))
        y = _of(self.labels, run).to(logits.device).long()
        wrong = ((y < 0) & (y != _NO_LABEL)) | (y >= logits.shape[-1])
        if bool(wrong.any()):
            raise ValueError(
                f"The labels hold {int(y[wrong][0])}, but the model has the classes "
                f"0..{logits.shape[-1] - 1}."
            )
        return F.cross_entropy(logits, y, reduction="none", ignore_index=_NO_LABEL)


def _wide(output: Tensor) -> Tensor:
    """In float32 or wider: half precision has three digits, or overflows."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _at_last(run: Run) -> Float[Tensor, "batch classes"]:
    """The output at each sequence's last real position."""
    if run.mask is None or run.mask.shape != run.output.shape[:2]:
        return run.output[:, -1]
    mask = run.mask.to(run.output.device)
    last = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(1)
    return run.output[torch.arange(len(last), device=last.device), last]


def _check_tensor(name: str, values: Tensor) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(
            f"{name} is a {type(values).__name__}; expected a tensor, one row an input."
        )


def _of(values: Tensor, run: Run) -> Tensor:
    """The rows that belong to this batch."""
    last = int(run.sequence_index.max())
    if last >= len(values):
        raise ValueError(
            f"There are {len(values)} targets, but the data has a row {last}: pass one target a row."
        )
    return values[run.sequence_index.to(values.device)]
