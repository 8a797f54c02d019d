"""One weight matrix beside the gradients on either side of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.ansatz.alignment import (
    captured,
    captured_by_chance,
    centred_cosine,
    centred_cosine_sd,
    cosine,
    participation_ratio,
    power_of,
    principal_angles,
    replaced_cosine,
    support_condition,
)


@dataclass(frozen=True)
class WeightAnsatz:
    """One weight (or several that read one input) and the gradients on either side of it."""

    name: str
    kind: str
    layer: int
    objective: str
    matrix: Float[Tensor, "d_in d_out"] = field(repr=False)
    """W, float64; several weights lie side by side."""
    agop: Float[Tensor, "d_in d_in"] = field(repr=False)
    """E[g gᵀ] at the input, through this weight, per token."""
    before: Float[Tensor, "d_out d_out"] | None = field(repr=False)
    """K = E[g_h g_hᵀ] at the pre-activation, per token: with the activation's derivative."""
    after: Float[Tensor, "d_out d_out"] | None = field(repr=False)
    """The same past the non-linearity: without its derivative."""
    n_tokens: int

    @property
    def gram(self) -> Float[Tensor, "d_in d_in"]:
        """W Wᵀ."""
        return self.matrix @ self.matrix.mT

    def cosine(self, power: float = 1.0) -> float:
        """cos(W Wᵀ, AGOP^power)."""
        return cosine(self.gram, power_of(self.agop, power))

    def captured(self) -> Float[Tensor, " rank"]:
        """The share of the best k directions' gradient variance that W's top k hold, k = 1 … rank."""
        return captured(self.matrix, self.agop)

    def captured_by_chance(self) -> Float[Tensor, " rank"]:
        """The same for random directions, on average."""
        return captured_by_chance(self.matrix, self.agop)

    def principal_angles(self, k: int) -> Float[Tensor, " k"]:
        """Angles, in radians, between W's top k input directions and the AGOP's."""
        return principal_angles(self.matrix, self.agop, k)

    def row(self, others: Sequence[WeightAnsatz], power: float) -> dict[str, Any]:
        """This weight's line of the table; `others` are the same kind in other layers."""
        gram, agop = self.gram, power_of(self.agop, power)
        eye = torch.eye(len(gram), dtype=gram.dtype, device="cpu")
        d_in, d_out = self.matrix.shape
        same = [other.gram for other in others if other.gram.shape == gram.shape]
        k = max(1, min(d_in, d_out) // 8)
        before, after = self.before, self.after
        # Not for an unembedding, which is as wide as the vocabulary.
        kept = self.matrix.mT @ self.matrix if before is not None or d_out < d_in else gram
        nan = math.nan

        def of(gradients: Tensor | None, measure: Callable[[Tensor], float]) -> float:
            return nan if gradients is None else measure(gradients)

        # The frame that W's columns or rows make, whichever there are fewer of.
        small = gram if d_in <= d_out else kept
        return {
            "name": self.name, "kind": self.kind, "layer": self.layer, "objective": self.objective,
            "d_in": d_in, "d_out": d_out,
            "cosine": cosine(gram, agop),
            "identity": cosine(eye, agop),
            "rotated": cosine(eye, agop) * cosine(eye, gram),
            "centred": centred_cosine(gram, agop),
            "centred_sd": centred_cosine_sd(d_in),
            "other_layers": sum(cosine(g, agop) for g in same) / len(same) if same else nan,
            "replaced": of(before if power == 1 else None, partial(replaced_cosine, self.matrix)),
            "left": of(before, partial(cosine, kept)),
            "left_identity": of(before, participation_ratio) ** 0.5,
            "captured": float(self.captured().mean()),
            "captured_by_chance": float(self.captured_by_chance().mean()),
            "angles_k": k,
            "mean_cos2_angle": float(self.principal_angles(k).cos().square().mean()),
            "tight_before": of(before, participation_ratio),
            "condition_before": of(before, support_condition),
            "tight_after": of(after, participation_ratio),
            "condition_after": of(after, support_condition),
            "tight_weight": participation_ratio(small),
            "condition_weight": support_condition(small),
            "n_tokens": self.n_tokens,
        }  # fmt: skip
