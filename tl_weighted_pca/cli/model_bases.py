"""More passes over the text: what 'path', 'joint' and 'trained' need beyond the moments."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tl_weighted_pca.cli.model_options import ModelOptions
from tl_weighted_pca.cli.options import CountedOptions, ObjectiveName, objective
from tl_weighted_pca.cli.text_options import DataOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tl_weighted_pca.bases.basis import Basis
    from tl_weighted_pca.data.positions import Positions
    from tl_weighted_pca.moments.collection import Collection
    from tl_weighted_pca.moments.second_moment import Moments
    from tl_weighted_pca.objectives.losses import Objective
    from tl_weighted_pca.runs.run_folder import RunFolder
    from tl_weighted_pca.streaming.pairs import Pairs

_OBJECTIVES = {
    "next_token_loss": ObjectiveName.loss,
    "sampled_token_loss": ObjectiveName.fisher,
    "logit_probe": ObjectiveName.logits,
}
"""By the function that the moments name."""


@dataclass(frozen=True)
class FurtherPass:
    """The model, the text, and how to go over it."""

    model: Any
    data: Any
    options: dict[str, Any]

    @classmethod
    def of(
        cls,
        source: ModelOptions,
        text: DataOptions,
        run: RunFolder,
        collection: Collection,
        how: CountedOptions,
    ) -> FurtherPass:
        """What the options say, loaded; at the positions of the collection, if they say nothing of these."""
        options = {**how.options, "max_tokens": text.max_tokens}
        options["positions"] = options["positions"] or _positions_of(collection)
        made = [moments.provenance for moments in collection.values()]
        return cls(*text.read(source, run, made=made), options)

    def path(self, moments: Moments, *, center: Any, damping: float, rounds: int) -> Basis:
        """PCA in the metric met along PCA's ablations, and along those of each basis that comes of it."""
        from tl_weighted_pca.bases.principal_components import metric_pca, pca
        from tl_weighted_pca.fitted.path_gradients import path_metric

        basis, metrics = pca(moments, center=center), list[Any]()
        for _ in range(rounds):
            place = moments.provenance.hook_point
            metrics.append(path_metric(self.model, self.data, place, basis, **self.options))
            basis = metric_pca(moments, sum(metrics), center=center, damping=damping)
        return basis

    def joint(self, moments: Moments, *, center: Any, seed: int) -> Basis:
        """The joint basis, of the objective that the moments are of."""
        from tl_weighted_pca.fitted.joint import joint_pca

        options = {"center": center, "seed": seed, "progress": self.options["progress"]}
        return joint_pca(moments, self._pairs(moments, seed), **options)

    def trained(self, moments: Moments, *, center: Any, steps: int, seed: int) -> Basis:
        """The basis trained through the model, from that in the gradients' metric, or from PCA's."""
        from tl_weighted_pca.bases.principal_components import metric_pca, pca
        from tl_weighted_pca.fitted.trained import optimize_basis

        start = (pca if moments.gradient is None else metric_pca)(moments, center=center)
        return optimize_basis(self.model, self.data, start, steps=steps, seed=seed, **self.options)

    def _pairs(self, moments: Moments, seed: int) -> Iterator[dict[str, Pairs]]:
        from tl_weighted_pca.data.batches import Batch, batches
        from tl_weighted_pca.data.progress import Progress
        from tl_weighted_pca.streaming.pairs import stream_pairs

        size, limit = self.options["batch_size"], self.options["max_tokens"]

        def told() -> Iterator[Batch]:
            for batch in batches(self.data, size, max_tokens=limit):
                yield batch
                bar.advance(batch)

        with Progress(self.data, size, limit, self.options["progress"], title="Pairs") as bar:
            yield from stream_pairs(
                self.model,
                told(),
                moments.provenance.hook_point,
                objective=_objective_of(moments, seed),
                positions=self.options["positions"],
                outliers=self.options["outliers"],
                batch_size=size,
                max_tokens=limit,
            )


def objective_of(moments: Moments) -> ObjectiveName | None:
    """The objective of the moments' gradients, if the command line has a word for it."""
    return _OBJECTIVES.get(moments.provenance.objective.partition("(")[0])


def _positions_of(collection: Collection) -> Positions:
    """The positions at which moments were collected."""
    kept = collection.settings.get("positions")
    if kept is None:
        return None
    found = re.fullmatch(r"slice\((\S+), (\S+), (\S+)\)", kept)
    if found is None:
        raise ValueError(
            f"The moments were collected at positions={kept}: say which a further pass is to use with "
            "--positions."
        )
    return slice(*map(ast.literal_eval, found.groups()))


def _objective_of(moments: Moments, seed: int) -> Objective | None:
    """The objective of the moments' gradients, one label or probe a sequence.

    Raises:
        ValueError: if the moments are of another than the command line knows.
    """
    name = objective_of(moments)
    if name is None:
        made = moments.provenance.objective
        raise ValueError(
            f"The moments have gradients of {made or 'nothing'}, and a joint basis takes pairs of the same "
            "objective: collect with --objective fisher, or call wpca.joint_pca from Python."
        )
    return objective(name, 1, seed)
