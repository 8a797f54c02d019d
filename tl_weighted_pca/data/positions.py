"""Which positions of a sequence count."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

Positions = slice | Sequence[int] | None
"""Which positions count: a slice or indices, from the first real token; None for all."""


def checked_positions(positions: Any) -> slice | list[int] | None:
    """Positions as a slice or an ascending list; a tensor or an array of whole numbers is one, too.

    Raises:
        TypeError: if they are neither a slice nor a sequence of whole numbers.
    """
    if positions is None:
        return None
    try:
        if isinstance(positions, slice):
            bounds = (positions.start, positions.stop, positions.step)
            chosen = slice(*(None if b is None else operator.index(b) for b in bounds))
            return None if chosen == slice(None) else chosen
        if isinstance(positions, (str, bytes)):
            raise TypeError
        numbers = positions.tolist() if hasattr(positions, "tolist") else list(positions)
        if any(isinstance(number, bool) for number in numbers):
            raise TypeError
        return sorted({operator.index(number) for number in numbers})
    except (TypeError, ValueError):
        raise TypeError(
            f"positions is {positions!r}; expected a slice such as slice(1, None), or a sequence of whole "
            "numbers."
        ) from None


def selected(
    positions: Positions, mask: Bool[Tensor, "batch pos"] | None, shape: tuple[int, int]
) -> Bool[Tensor, "batch pos"] | None:
    """Where a position is real and selected; None where every position is.

    Positions count from the first real token of each sequence, negative ones from its last: the
    same tokens are meant with left padding, right padding and none.
    """
    positions = checked_positions(positions)
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


def _chosen(positions: slice | list[int], length: int) -> Bool[Tensor, " pos"]:
    chosen = torch.zeros(length, dtype=torch.bool, device="cpu")
    if isinstance(positions, slice):
        # torch slices take no negative step; a set of positions has no order anyway.
        chosen[list(range(length))[positions]] = True
        return chosen
    chosen[[p for p in positions if -length <= p < length]] = True
    return chosen
