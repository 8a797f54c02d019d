"""What a pass has summed, hook point by hook point, and what it was asked for."""

from __future__ import annotations

from collections.abc import Container, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from tl_weighted_pca.data.positions import Outliers, Positions
from tl_weighted_pca.models.fingerprint import fingerprint, made_at
from tl_weighted_pca.moments.accumulator import MomentAccumulator
from tl_weighted_pca.moments.collection import Collection
from tl_weighted_pca.moments.memory import Budget
from tl_weighted_pca.moments.row_metric import row_metric_name
from tl_weighted_pca.moments.second_moment import Provenance
from tl_weighted_pca.objectives.losses import Objective, objective_name
from tl_weighted_pca.streaming.request import Asked, recorded
from tl_weighted_pca.support.callables import codes_of, source_of


@dataclass(frozen=True)
class Gathered:
    """What a pass has summed, hook point by hook point."""

    asked: dict[str, Asked]
    accumulators: dict[str, MomentAccumulator]
    leader: dict[str, str]
    """Several names can mean one hook point (the bridge has aliases): the one that it is recorded under."""
    objectives: dict[str, Objective]
    graded: bool
    """Whether gradients are taken."""
    here: Provenance
    settings: dict[str, Any]
    left_out: Outliers | None

    @classmethod
    def of(
        cls,
        model: Any,
        asked: dict[str, Asked],
        counted: tuple[Positions, Outliers | None],
        objectives: dict[str, Objective],
        needed: dict[str, Objective],
        options: dict[str, Any],
    ) -> Gathered:
        points, first_of = model.hook_dict, dict[int, str]()
        leader = {name: first_of.setdefault(id(points[name]), name) for name in asked}
        for name, first in leader.items():
            if asked[name] != asked[first]:
                raise ValueError(
                    f"{first!r} and {name!r} are one hook point, and are asked for different statistics: "
                    "name it once."
                )
        told = options.pop("told") or (lambda line: None)
        budget = Budget(len(first_of), told)
        accumulators = {
            name: MomentAccumulator(
                asked[name].row_metric,
                statistics=asked[name].statistics,
                objectives=tuple(needed) or ("",),
                per_head=asked[name].per_head,
                budget=budget,
                **options,
            )
            for name in first_of.values()
        }
        settings = {
            "row_metric": recorded({n: row_metric_name(a.row_metric) for n, a in asked.items()}),
            "statistics": recorded({n: list(a.statistics) for n, a in asked.items()}),
            "positions": None if counted[0] is None else repr(counted[0]),
            "outliers": None if counted[1] is None else counted[1].times,
            "per_head": recorded({n: a.per_head for n, a in asked.items()}),
        }
        here = made_at(model, "")
        return cls(
            asked, accumulators, leader, objectives, bool(needed), here, settings, counted[1]
        )

    @property
    def n_tokens(self) -> int:
        """Of the hook point that has most; all have the same."""
        return max(each.n_tokens for each in self.accumulators.values())

    def to_agree_with(self, model: Any, batch_size: int, max_tokens: int | None) -> dict[str, Any]:
        """What a checkpoint must have been made with."""
        alike = len({each.row_metric for each in self.asked.values()}) == 1
        metrics = {
            "row metric" if alike else f"row metric at {name}": each.row_metric
            for name, each in self.asked.items()
        }
        named = {f"objective {key}".strip(): each for key, each in self.objectives.items()}
        return {
            **self.settings,
            "model": self.here.model,
            "weights": fingerprint(model),
            "hook_points": list(self.asked),
            "objective": {key: objective_name(value) for key, value in self.objectives.items()},
            "batch_size": batch_size,
            "max_tokens": max_tokens,
            "code": codes_of(metrics | named),
        }

    def result(
        self, objective: Any, recounted: Set[str] | None
    ) -> Collection | dict[str, Collection]:
        """The collection, or one for each objective of a dict."""
        if isinstance(objective, Mapping):
            return {key: self._collection(key, recounted or ()) for key in self.objectives}
        return self._collection("", recounted or ())

    def _collection(self, key: str, recounted: Container[str]) -> Collection:
        found = {}
        for name, asked in self.asked.items():
            graded = self.graded and key in self.objectives and asked.gradients
            what = objective_name(self.objectives[key]) if graded else ""
            made = replace(
                self.here,
                hook_point=name,
                objective=what,
                row_metric=row_metric_name(asked.row_metric),
                readers="all" if graded and self.leader[name] in recounted else "",
                objective_code=source_of(self.objectives[key]) if graded else "",
                row_metric_code=source_of(asked.row_metric),
            )
            moments = self.accumulators[self.leader[name]].result(key)
            found[name] = replace(moments, provenance=made)
        report = {} if self.left_out is None else {"left_out": self.left_out.report()}
        return Collection(found, self.settings | report)
