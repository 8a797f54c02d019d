"""The ablation-path metric: what the model's gradient is on the way down, not only at the top."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.bases.metric import Metric
from tl_weighted_pca.data.batches import Batch, batches, check_rereadable
from tl_weighted_pca.data.positions import Outliers, Positions
from tl_weighted_pca.data.progress import Progress
from tl_weighted_pca.models.downstream import Downstream, edited_at
from tl_weighted_pca.models.fingerprint import made_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import hooked, resolve_one
from tl_weighted_pca.objectives.losses import (
    Objective,
    ObjectiveName,
    checked_objective,
    objective_name,
)
from tl_weighted_pca.streaming.one_pass import collect
from tl_weighted_pca.support.whole_numbers import checked_counts


def path_metric(
    model: Any,
    data: Any,
    hook_point: str | Basis | None = None,
    basis: Basis | None = None,
    *,
    ranks: Sequence[int] | None = None,
    objective: Objective | ObjectiveName = "loss",
    positions: Positions = None,
    outliers: float | None = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    progress: bool = True,
) -> Metric:
    """Q = mean_k Q_k / tr Q_k with Q_k = E[g gᵀ], g = ∂L/∂f at f̂_k: a column metric for `metric_pca`.

    f̂_k are the activations ablated to rank k in `basis`. The Fisher metric is a second-order picture at
    the unablated model, where a confident model has hardly any gradient; far down an ablation curve
    that picture fails. Here the gradients are those met along the curve, each rank with equal weight.
    Use it as `metric_pca(moments, path_metric(model, data, pca(moments)))`; it may be
    repeated with the basis that results. One collection per rank.

    Args:
        model: as for `collect`.
        data: as for `collect`, read once per rank: nothing that can be read only once.
        hook_point: one name; left out, `path_metric(model, data, basis)`, it is where the basis was made.
        basis: whose ablations make the path; PCA is a good start.
        ranks: k; by default 0, r/8, … 5r/8 of r components: what lies above hardly differs from the
            unablated model.
        objective: what to differentiate. With labels from the data this is the empirical Fisher
            information of the ablated model.
        positions: which to ablate, and to take gradients at; others are left as they are.
        outliers: leave as they are, and out of the gradients, also positions whose norm in the unablated
            run exceeds so many medians of their own sequence.
        batch_size: sequences per batch.
        max_tokens: stop before exceeding so many tokens at each rank.
        progress: show a progress bar.

    Returns:
        A `Metric` named "path" with a trace of one: its `matrix` is Q.

    Raises:
        TypeError: for a dict of objectives: this takes one; without a basis.
        ValueError: for a basis of another hook point or model, ranks outside 0..d, an iterator, or a hook
            point whose value the rest of the model does not read, or reads past the hook.
    """
    if isinstance(objective, Mapping):
        raise TypeError(
            "path_metric takes one objective, not a dict of them: call it once for each, and average."
        )
    objective = checked_objective(objective)
    place, basis = _place_of(hook_point, basis)
    hook_point = resolve_one(model, place)
    basis.check_place(made_at(model, hook_point))
    check_rereadable(data, "every rank takes a pass")
    most = basis.n_components
    chosen = (
        [round(i * most / 8) for i in range(6)]
        if ranks is None
        else list(map(basis.check_rank, checked_counts("ranks", ranks)))
    )
    if not chosen:
        raise ValueError("No ranks were given; name at least one, or None for the default.")
    # A hook point past which a skip path goes has another gradient ablated than it has in the model.
    with quiet(model, gradients=False):
        first = next(batches(data, batch_size, max_tokens=max_tokens, may_be_empty=False))
        Downstream(model, hook_point, positions).start(first)
    mask: Tensor | None = None
    limit = Outliers.checked(outliers)
    left_out = None if limit is None else _Unablated(limit.times)

    def told() -> Iterator[Batch]:
        """The data, batch by batch, its mask known to the hook."""
        nonlocal mask
        for batch in batches(data, batch_size, max_tokens=max_tokens):
            mask = batch.mask
            yield batch
            bar.advance(batch)

    def ablation(k: int) -> Callable[..., Tensor]:
        project = partial(basis.hook(k), hook=None)

        def edit(tensor: Tensor, hook: Any) -> Tensor:
            edited = edited_at(project, tensor, positions, mask)
            return edited if left_out is None else left_out.kept(tensor, edited, mask)

        return edit

    bar = Progress(
        data, batch_size, max_tokens, progress, title="Down the path", passes=len(chosen)
    )
    total: Tensor | None = None
    with bar:
        for k in chosen:
            # Entered before the collector's own hooks, so what these see is ablated already.
            with hooked(model, [(hook_point, ablation(k))]):
                moments = collect(
                    model,
                    told(),
                    hook_point,
                    objective=objective,
                    statistics=["gradient"],
                    positions=positions,
                    outliers=left_out,
                    per_head=basis.per_head,
                    progress=False,
                )[hook_point]
            second = moments.require("gradient").second
            trace = second.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
            share = second / trace.where(trace > 0, 1)  # no gradient has no say
            total = share if total is None else total + share
    assert total is not None
    trace = total.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    if not bool((trace > 0).any()):
        raise ValueError(
            f"The objective has no gradient at {hook_point!r} at any of the ranks {chosen}: name others, or "
            "another objective."
        )
    made = made_at(model, hook_point, objective_name(objective))
    return Metric(total / trace.where(trace > 0, 1), made, "path")


def _place_of(hook_point: str | Basis | None, basis: Basis | None) -> tuple[str, Basis]:
    """Where, and in which basis: the basis may come in the hook point's place, and say where."""
    if basis is None and isinstance(hook_point, Basis):
        hook_point, basis = None, hook_point
    if not isinstance(basis, Basis):
        raise TypeError(
            f"basis is {basis!r}; expected a Basis whose ablations make the path, such as wpca.pca(moments)."
        )
    place = basis.provenance.hook_point if hook_point is None else hook_point
    if not isinstance(place, str) or not place:
        raise ValueError("The basis does not say where it was made: pass hook_point=.")
    return place, basis


@dataclass
class _Unablated(Outliers):
    """Outlying positions by the norms of the unablated run, which the ablation sees before the collector."""

    at: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool, device="cpu"))

    def kept(self, tensor: Tensor, edited: Tensor, mask: Tensor | None) -> Tensor:
        """The edited activations, with the outlying ones as they were."""
        if tensor.ndim == 2:
            return edited
        self.at = super().among(tensor, mask)
        return torch.where(self.at.view(*self.at.shape, *[1] * (tensor.ndim - 2)), tensor, edited)

    def among(self, activations: Tensor, mask: Tensor | None) -> Tensor:
        return self.at
