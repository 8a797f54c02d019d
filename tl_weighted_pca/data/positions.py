"""Which positions of a sequence count."""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
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
    if isinstance(positions, slice):  # torch's take no negative step
        positions = list(range(length))[positions]
    chosen[[p for p in positions if -length <= p < length]] = True
    return chosen


NOTED = 20.0
"""Medians above which a position's norm is worth a note."""


def outlying(
    activations: Float[Tensor, "batch pos ..."],
    mask: Bool[Tensor, "batch pos"] | None,
    times: float,
) -> Bool[Tensor, "batch pos"]:
    """‖f_s‖ > times · median_t ‖f_t‖, over the real tokens t of the same sequence.

    The median is the sequence's own, so that the answer depends neither on the batch nor on padding.
    """
    norms = activations.detach().flatten(2).double().norm(dim=-1)
    if mask is not None:
        norms = norms.masked_fill(~mask.to(norms.device), torch.nan)
    return norms > times * norms.nanmedian(1, keepdim=True).values


@dataclass
class Outliers:
    """The positions that a run leaves out for their norm, and how many it has found where."""

    times: float
    """Positions of a norm above so many medians of their sequence's norms are left out."""
    found: dict[str, Counter[int]] = field(default_factory=dict)
    """How often, by hook point and by position from the first real token."""

    @classmethod
    def checked(cls, times: float | Outliers | None) -> Outliers | None:
        """Those of an argument `outliers=`; raises ValueError for what is no number above one."""
        if times is None or isinstance(times, Outliers):
            return times
        if isinstance(times, bool) or not isinstance(times, (int, float)) or not times > 1:
            raise ValueError(
                f"outliers is {times!r}; expected a number above 1, such as 10.0: positions whose norm "
                "exceeds so many medians of their sequence are left out."
            )
        return cls(float(times))

    def among(
        self, activations: Tensor, mask: Bool[Tensor, "batch pos"] | None
    ) -> Bool[Tensor, "batch pos"]:
        """Which positions of a batch [batch, pos, …] are left out."""
        return outlying(activations, mask, self.times)

    def see(
        self,
        hook_point: str,
        left_out: Bool[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"] | None,
    ) -> None:
        """Count the positions that a batch leaves out."""
        first = 0 if mask is None else mask.int().argmax(1).cpu()[:, None]
        places = (torch.arange(left_out.shape[1], device="cpu") - first).expand(left_out.shape)
        counter = self.found.setdefault(hook_point, Counter())
        counter.update(places[left_out.cpu()].tolist())

    def report(self) -> dict[str, dict[str, int]]:
        """Counts by hook point and position; keys are text, as in JSON."""
        return {
            name: {str(place): count for place, count in sorted(counter.items())}
            for name, counter in self.found.items()
        }

    def restore(self, report: Mapping[str, Mapping[str, int]]) -> None:
        """Go on from what `report` gave."""
        self.found = {
            name: Counter({int(place): count for place, count in counts.items()})
            for name, counts in report.items()
        }

    def note(self) -> None:
        """Warn of what was found, if anything was."""
        counts = {name: counter for name, counter in self.found.items() if counter}
        if counts:
            name, counter = max(counts.items(), key=lambda item: item[1].total())
            places = ", ".join(str(place) for place, _ in counter.most_common(3))
            warnings.warn(
                f"In the first batch {counter.total()} positions at hook point {name!r} (most often "
                f"{places}) have more than {self.times:g} times the median norm of their sequence: pass "
                f"outliers={self.times:g} to leave such positions out, or choose positions=.",
                stacklevel=5,
            )
