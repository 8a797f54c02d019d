"""A stream of (activation, gradient) pairs, for what needs more than their second moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_weighted_pca.data.batches import batches, is_share
from tl_weighted_pca.data.positions import Outliers, Positions
from tl_weighted_pca.models.fingerprint import made_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import NamesFilter, resolve
from tl_weighted_pca.moments.second_moment import Provenance
from tl_weighted_pca.objectives.losses import (
    Objective,
    ObjectiveName,
    checked_objective,
    objective_name,
)
from tl_weighted_pca.streaming.recorder import Recorder
from tl_weighted_pca.streaming.sink import counted_sum
from tl_weighted_pca.support.whole_numbers import checked_count


@dataclass(frozen=True, eq=False, repr=False)
class Pairs:
    """F and g = ∂L/∂F of one batch at one hook point, in the model's dtype."""

    activations: Float[Tensor, "batch pos d"]
    """F; heads are flattened to head·d_head."""
    gradients: Float[Tensor, "samples batch pos d"]
    """g, one for each sample of the objective."""
    mask: Bool[Tensor, "batch pos"] | None
    """True where a position counts; None where all do."""
    sequence_index: Int[Tensor, " batch"]
    """The place of each sequence in the data."""
    provenance: Provenance = Provenance()
    """Model, hook point and objective, where they are known."""

    def __repr__(self) -> str:
        shapes = (
            f"activations {list(self.activations.shape)}, gradients {list(self.gradients.shape)}"
        )
        return f"Pairs({shapes} at {self.provenance.hook_point!r})"

    @property
    def n_tokens(self) -> int:
        """How many positions count."""
        return self.activations[..., 0].numel() if self.mask is None else int(self.mask.sum())

    def rows(self) -> tuple[Float[Tensor, "tokens d"], Float[Tensor, "samples tokens d"]]:
        """Activations and gradients at the positions that count, flattened over the batch."""
        if self.mask is None:
            return self.activations.flatten(0, 1), self.gradients.flatten(1, 2)
        return self.activations[self.mask], self.gradients[:, self.mask]


def stream_pairs(
    model: Any,
    data: Any,
    hook_points: NamesFilter,
    *,
    objective: Objective | ObjectiveName | None = "loss",
    positions: Positions = None,
    outliers: float | None = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    skip: int = 0,
) -> Iterator[dict[str, Pairs]]:
    """(F, g) at hook points, batch by batch: what `collect` folds into moments, unfolded.

    Between batches the model is as it was. Arguments and errors are those of `collect`; with
    `objective=None` gradients have no samples, and `skip` batches are left out at the start, the
    model: this is how a run that stopped continues. One objective, not a dict of them.

    Yields:
        `Pairs` by hook point name.
    """
    if isinstance(objective, Mapping):
        raise TypeError(
            "stream_pairs takes one objective, not a dict of them: call it once for each."
        )
    objective = None if objective is None else checked_objective(objective)
    skip = checked_count("skip", skip, least=0)
    names = resolve(model, hook_points)
    what = "" if objective is None else objective_name(objective)
    here = made_at(model, "", what)
    made = {name: replace(here, hook_point=name) for name in names}
    n_tokens = 0
    sinks = {name: _PairSink() for name in names}
    objectives = {} if objective is None else {"": objective}
    recorder = Recorder(sinks, objectives, positions, Outliers.checked(outliers))
    for batch in islice(batches(data, batch_size, max_tokens=max_tokens), skip, None):
        # Entered anew for each batch: a suspended generator must not hold the caller's grad mode.
        with quiet(model, gradients=objective is not None), recorder.attached(model):
            recorder.run(model, batch)
        made |= {name: replace(made[name], readers="all") for name in recorder.recounted or ()}
        found = {name: sink.taken(batch.sequence_index, made[name]) for name, sink in sinks.items()}
        n_tokens += next(iter(found.values())).n_tokens
        yield found
    if not (n_tokens or skip or is_share(data)):
        raise ValueError(
            f"positions={positions!r} selects no token of the data: choose others, or leave positions out."
        )


@dataclass
class _PairSink:
    """Keeps one batch as it is."""

    activations: Tensor | None = None
    mask: Tensor | None = None
    gradients: list[Tensor] = field(default_factory=list)

    def begin(
        self,
        activations: Tensor,
        mask: Tensor | None = None,
        n_tokens: int | None = None,
        *,
        gradients_to_come: int = 0,
    ) -> None:
        # Without a graph nothing keeps the model from writing over them in the rest of its pass.
        self.activations = activations if gradients_to_come else activations.clone()
        self.mask, self.gradients = mask, []

    def gradient(self, gradients: Tensor, objective: str = "", scale: float = 1.0) -> None:
        self.gradients.append(gradients)

    def check(self) -> list[Tensor]:
        assert self.activations is not None
        kept = [self.activations, *self.gradients]
        return [counted_sum(x, self.mask) for x in kept]

    def commit(self) -> None:
        """Nothing to do: `taken` reads it."""

    def discard(self) -> None:
        self.activations, self.mask, self.gradients = None, None, []

    def taken(self, sequence_index: Tensor, provenance: Provenance) -> Pairs:
        assert self.activations is not None
        flat = self.activations.flatten(2)
        gradients = [g.flatten(2) for g in self.gradients]
        stacked = torch.stack(gradients) if gradients else flat.new_zeros((0, *flat.shape))
        pairs = Pairs(flat, stacked, self.mask, sequence_index, provenance)
        self.discard()
        return pairs
