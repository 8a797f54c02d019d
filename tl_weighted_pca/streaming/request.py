"""What is asked of a pass: which statistics at which hook points, and what gradients are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from tl_weighted_pca.moments.row_metric import RowMetric, row_metric_name
from tl_weighted_pca.moments.statistics import STATISTICS, checked_statistics
from tl_weighted_pca.objectives.losses import Objective, ObjectiveName, checked_objective

T = TypeVar("T")

Statistics = str | Sequence[str] | None
"""Some of "activation", "gradient" and "weighted"; None for all that there can be."""


@dataclass(frozen=True)
class Asked:
    """What is kept at one hook point."""

    statistics: tuple[str, ...]
    row_metric: RowMetric
    per_head: bool

    @property
    def gradients(self) -> bool:
        """Whether any of it takes gradients."""
        weighted = "weighted" in self.statistics and self.row_metric != "identity"
        return weighted or "gradient" in self.statistics


def checked_objectives(
    objective: Objective | ObjectiveName | Mapping[str, Objective | ObjectiveName] | None,
) -> dict[str, Objective]:
    """The objectives by key; a single one has the key "".

    Raises:
        ValueError: for an empty dict.
        TypeError: for what is no objective.
    """
    if isinstance(objective, Mapping) and not objective:
        raise ValueError("The dict of objectives is empty: pass at least one, or None.")
    if objective is None:
        return {}
    given = objective if isinstance(objective, Mapping) else {"": objective}
    return {key: checked_objective(each) for key, each in given.items()}


def asked_of(
    names: Sequence[str],
    objectives: Mapping[str, Objective],
    *,
    statistics: Statistics | Mapping[str, Statistics],
    row_metric: RowMetric | Mapping[str, RowMetric],
    per_head: bool | Mapping[str, bool],
) -> dict[str, Asked]:
    """What is asked of each hook point.

    Raises:
        ValueError: for unknown statistics or row metrics, ones that lack an objective, or a mapping's key
            that is none of the hook points and matches none.
    """
    metrics: dict[str, RowMetric] = by_name("row_metric", row_metric, names, "gradient")
    heads = by_name("per_head", per_head, names, False)
    chosen = by_name("statistics", statistics, names, None)
    return {
        name: Asked(
            _checked_statistics(chosen[name], objectives, metrics[name]),
            metrics[name],
            bool(heads[name]),
        )
        for name in names
    }


def by_name(
    option: str, given: T | Mapping[str, T], names: Sequence[str], default: T
) -> dict[str, T]:
    """A value for each hook point: one for all, or what a mapping has for its name or a glob of it.

    The name itself comes first, then the first glob that matches it, then the default.

    Raises:
        ValueError: for a key that is none of the names and matches none.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    for key in given:
        if not any(fnmatchcase(name, key) for name in names):
            raise ValueError(
                f"{option} has the key {key!r}, which is none of the hook points collected and matches "
                f"none: {', '.join(names[:5])}{', …' * (len(names) > 5)}."
            )
    return {
        name: given[name]
        if name in given
        else next((value for key, value in given.items() if fnmatchcase(name, key)), default)
        for name in names
    }


def recorded(values: Mapping[str, Any]) -> Any:
    """For a file's header: the one value, or the values by hook point where they differ."""
    first = next(iter(values.values()))
    return first if all(value == first for value in values.values()) else dict(values)


def _checked_statistics(
    statistics: Statistics, objectives: Mapping[str, Objective], row_metric: RowMetric
) -> tuple[str, ...]:
    row_metric_name(row_metric)
    if statistics is None:
        return STATISTICS if objectives else ("activation",)
    chosen = checked_statistics(statistics)
    if Asked(chosen, row_metric, False).gradients and not objectives:
        raise ValueError(
            f"statistics={chosen!r} needs gradients, but objective is None: pass an objective such as "
            "next_token_loss, or ask for 'activation' alone."
        )
    return chosen
