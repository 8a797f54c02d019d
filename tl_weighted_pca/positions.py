"""Which positions of a sequence count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

Positions = slice | Sequence[int] | None
"""Which positions count: a slice or indices, from the first real token; None for all."""


def selected(
    positions: Positions, mask: Bool[Tensor, "batch pos"] | None, shape: tuple[int, int]
) -> Bool[Tensor, "batch pos"] | None:
    """Where a position is real and selected; None where every position is.

    Positions count from the first real token of each sequence, negative ones from its last: the
    same tokens are meant with left padding, right padding and none.

    Raises:
        TypeError: if `positions` is neither a slice nor a sequence of integers.
    """
    if positions is None:
        return mask
    if mask is None:
        return _chosen(positions, shape[1]).expand(shape)
    chosen = torch.zeros_like(mask)
    lengths = mask.sum(1)
    for length in lengths.unique().tolist():
        rows = lengths == length
        at = mask[rows].cumsum(1).sub(1).clamp(min=0)
        if length:
            chosen[rows] = _chosen(positions, length).to(mask.device)[at] & mask[rows]
    return chosen


def _chosen(positions: slice | Sequence[int], length: int) -> Bool[Tensor, "pos"]:
    chosen = torch.zeros(length, dtype=torch.bool)
    if isinstance(positions, slice):
        # torch slices take no negative step; a set of positions has no order anyway.
        chosen[list(range(length))[positions]] = True
        return chosen
    if isinstance(positions, (str, bytes)) or not isinstance(positions, Sequence):
        raise TypeError(
            f"positions is {positions!r}; expected a slice such as slice(1, None), "
            "or a sequence of integers."
        )
    chosen[[p for p in positions if -length <= p < length]] = True
    return chosen
