"""Near-equal values of a spectrum, whose single directions are arbitrary: they are subspaces."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor


def near_equal(values: Float[Tensor, "*batch k"], rtol: float) -> list[Any]:
    """Runs of a descending spectrum with v_i − v_{i+1} ≤ rtol · |v_i|: ranges that partition 0..k.

    What rounding or sampling adds to the matrix turns a direction by about its size over the gap to the
    next value: within a run, only the subspace is a property of the matrix.

    Returns:
        A list of ranges; for leading dimensions, nested lists of them.
    """
    if values.ndim > 1:
        return [near_equal(each, rtol) for each in values]
    if not rtol >= 0:
        raise ValueError(f"rtol is {rtol}; expected at least 0.")
    gaps = values[:-1] - values[1:] > rtol * values[:-1].abs()
    ends = [int(i) + 1 for i in gaps.nonzero()] + [len(values)] * bool(len(values))
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
