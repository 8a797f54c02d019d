"""What an objective gives: one scalar per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.objectives.losses import Objective, objective_name


def checked_values(
    objective: Objective, values: Any, n: int, hook_points: Sequence[str]
) -> Float[Tensor, "samples batch"]:
    """The values for n sequences; raises ValueError for another shape, or without a gradient."""
    if not isinstance(values, Tensor) or values.ndim not in (1, 2) or values.shape[-1] != n:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"The objective {objective_name(objective)} gave {got}; expected one scalar per sequence, "
            f"shape ({n},), or (samples, {n})."
        )
    if not values.requires_grad:
        raise ValueError(
            f"The objective {objective_name(objective)} carries no gradient to "
            f"{', '.join(hook_points)}: they do not influence it, or it was detached."
        )
    return values if values.ndim == 2 else values[None]
