"""A column metric Q on hidden directions, and where it is from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.moments.second_moment import Moments, Provenance

METRIC_NAMES = {"sampled_token_loss": "fisher", "next_token_loss": "empirical"}
"""Of the metrics that gradients make, by what the gradients are of; others have their objective's name."""


@dataclass(frozen=True, eq=False, repr=False)
class Metric:
    """Q, symmetric and positive semi-definite: ‖f − f̂‖² in it is (f − f̂)ᵀ Q (f − f̂).

    What `metric_pca` measures errors in. Metrics of one hook point add, and scale by numbers:
    `path_metric(…) + 0.3 * fisher_metric(m)`. `metric_pca` refuses one of another hook point or model.

    Args:
        matrix: Q, one per head in a metric per head.
        provenance: model, hook point and objective; what is left empty is unknown, and fits anywhere.
        name: "fisher", "empirical" (the Fisher information of the data's own labels), "path", …: goes into
            `Basis.method`.
    """

    matrix: Float[Tensor, "*head d d"]
    """Q."""
    provenance: Provenance = Provenance()
    """Model, hook point and objective, where they are known."""
    name: str = ""
    """Which metric: "fisher", "empirical", "path", …"""

    def __post_init__(self) -> None:
        shape = getattr(self.matrix, "shape", None)
        if shape is None or len(shape) not in (2, 3) or shape[-1] != shape[-2]:
            given = type(self.matrix).__name__ if shape is None else f"of shape {tuple(shape)}"
            raise ValueError(
                f"The metric's matrix is {given}; expected a tensor [d, d], or [head, d, d] per head."
            )
        device = getattr(self.matrix, "device", "cpu")  # numpy's arrays say "cpu"
        matrix = torch.as_tensor(self.matrix, device=device).detach()
        object.__setattr__(self, "matrix", matrix)

    def __repr__(self) -> str:
        place = f" at {self.provenance.hook_point!r}" if self.provenance.hook_point else ""
        return f"Metric({self.name or 'unnamed'}{place}: shape {tuple(self.matrix.shape)})"

    def __add__(self, other: Metric) -> Metric:
        if isinstance(other, (int, float)) and other == 0:  # where `sum` begins
            return self
        if not isinstance(other, Metric):
            return NotImplemented
        mine, theirs = self.provenance, other.provenance
        if different := _place(mine).differences(_place(theirs)):
            raise ValueError(f"Cannot add metrics of different things: they differ in {different}.")
        if self.matrix.shape != other.matrix.shape:
            raise ValueError(
                f"Cannot add metrics of shapes {tuple(self.matrix.shape)} and "
                f"{tuple(other.matrix.shape)}: they must be of one hook point."
            )
        return Metric(
            self.matrix + other.matrix.to(self.matrix),
            Provenance(
                mine.model or theirs.model,
                mine.hook_point or theirs.hook_point,
                _joined(mine.objective, theirs.objective),
                weights=mine.weights or theirs.weights,
            ),
            _joined(self.name, other.name),
        )

    __radd__ = __add__

    def __mul__(self, factor: float) -> Metric:
        if not isinstance(factor, Real):
            return NotImplemented
        name = f"({self.name})" if " + " in self.name else self.name
        return dataclasses.replace(
            self, matrix=self.matrix * float(factor), name=name and f"{float(factor):g}*{name}"
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Metric:
        return self * (1 / divisor) if isinstance(divisor, Real) else NotImplemented

    def to(self, device: torch.device | str) -> Metric:
        """The same metric on another device."""
        return dataclasses.replace(self, matrix=self.matrix.to(device))


def fisher_metric(moments: Moments) -> Metric:
    """Q = Σ g gᵀ / n: the gradients' second moment per token, as a column metric.

    With labels sampled from the model (`sampled_token_loss`) this is the token-averaged Fisher information,
    named "fisher"; with those of the data (`next_token_loss`) the empirical one, "empirical"; of another
    objective, it has that one's name.

    Args:
        moments: with gradient statistics.

    Raises:
        ValueError: without gradients, or where all are zero.
    """
    gradient = require_gradient(moments, "gradient")
    objective = moments.provenance.objective.partition("(")[0]
    return Metric(
        gradient.second / moments.n_tokens,
        dataclasses.replace(moments.provenance, row_metric=""),
        METRIC_NAMES.get(objective, objective),
    )


def checked_place(metric: Metric, moments: Moments) -> Metric:
    """The metric; raises ValueError if it was made at another hook point, or of another model."""
    if different := _place(metric.provenance).differences(_place(moments.provenance)):
        raise ValueError(
            f"The metric and the moments are of different things: they differ in {different}. Make the "
            "metric at the moments' hook point, or pass metric.matrix if it is meant."
        )
    return metric


def require_gradient(moments: Moments, kind: str) -> Any:
    """The statistic `kind`, of gradients; raises ValueError where no gradient reached what counts."""
    moment = moments.require(kind)
    nothing = not bool(moment.packed_second.flat.any() | moment.weight.any())
    if moments.gradient is not None:
        nothing = nothing or not bool(moments.gradient.packed_second.flat.any())
    if nothing:
        raise ValueError(
            f"The gradients at {moments.provenance.hook_point or 'this hook point'!r} are all zero: the "
            "objective does not depend on the positions that count (the loss not on the last of a sequence, "
            "which has no next token)."
        )
    return moment


def _place(made: Provenance) -> Provenance:
    """The provenance, but for what the gradients are of."""
    empty = dict.fromkeys(("objective", "row_metric", "objective_code", "row_metric_code"), "")
    return dataclasses.replace(made, **empty)


def _joined(mine: str, theirs: str) -> str:
    """Both names: one if they are the same, "" if either is unknown."""
    if mine == theirs or not (mine and theirs):
        return mine if mine == theirs else ""
    return f"{mine} + {theirs}"
