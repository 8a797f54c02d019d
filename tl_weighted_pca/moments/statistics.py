"""Which second moments are summed at a hook point, and the rows that they are sums of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.moments.row_metric import RowMetric

STATISTICS = ("activation", "gradient", "weighted")


def checked_statistics(statistics: str | Sequence[str]) -> tuple[str, ...]:
    """The statistics as a tuple; raises ValueError for none, or for unknown ones."""
    chosen = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    if not chosen or not set(chosen) <= set(STATISTICS):
        raise ValueError(
            f"statistics is {statistics!r}; expected some of {', '.join(map(repr, STATISTICS))}."
        )
    return chosen


def kept_moments(
    statistics: Sequence[str], objectives: Sequence[str], row_metric: RowMetric
) -> list[tuple[str, str]]:
    """Statistic and objective of each second moment that is summed."""
    weighted = "weighted" in statistics and row_metric != "identity"
    # Under M = I the weighted moment is the activations' own, and is not computed twice.
    identity = "weighted" in statistics and not weighted
    names = [("activation", "")] if "activation" in statistics or identity else []
    for objective in objectives:
        if "gradient" in statistics:
            names.append(("gradient", objective))
        if weighted:
            names.append(("weighted", objective))
    return names


def as_rows(
    x: Float[Tensor, "batch pos *head d"], per_head: bool
) -> Float[Tensor, "*head batch pos d"]:
    """Activations or gradients without their graph, in float32 or wider, with heads apart or as one."""
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.ndim == 4:
        return x.movedim(2, 0) if per_head else x.flatten(2)
    return x
