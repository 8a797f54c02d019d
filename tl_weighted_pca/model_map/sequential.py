"""Bases made one hook point after the other, each of activations that the earlier ablations have changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from tl_weighted_pca.ablation.placed_bases import Rank, check_apart, components_at
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.bases.principal_components import metric_pca
from tl_weighted_pca.data.batches import batches, check_rereadable
from tl_weighted_pca.data.positions import Positions, checked_positions
from tl_weighted_pca.data.progress import Progress
from tl_weighted_pca.models.downstream import Downstream, Edit, edited_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import NamesFilter, hooked, resolve
from tl_weighted_pca.moments.accumulator import MomentAccumulator
from tl_weighted_pca.moments.second_moment import SecondMoment
from tl_weighted_pca.objectives.losses import sampled_token_loss
from tl_weighted_pca.streaming.one_pass import collect
from tl_weighted_pca.streaming.recorder import Recorder


def sequential_bases(
    model: Any,
    data: Any,
    hook_points: NamesFilter,
    ranks: Rank,
    *,
    positions: Positions = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    progress: bool = True,
) -> dict[str, Basis]:
    """Fisher-metric PCA of f̃_l, what arrives at hook point l while those before it are ablated.

    E_l, D_l are those of `metric_pca` with the mean and covariance of f̃_l, and Q_l the Fisher metric of the
    unablated model; f̃_{l+1} is what follows from f̃_l ↦ μ + (f̃_l − μ)E_lD_l, at its rank in `ranks`. For
    ablating at all hook points together:

        bases = sequential_bases(model, data, "blocks.*.hook_resid_post", 0.5)
        ablation_curves(model, heldout, {"sequential": bases}, ranks=[0.5])

    One pass with gradients at all n hook points; then one forward pass for each but the first, which ends at
    that hook point: some n/2 forward passes where they are spread over the layers. Memory is flat in tokens.
    The model is left as it was.

    Args:
        model: as for `collect`.
        data: as for `collect`; nothing that can be read only once.
        hook_points: as for `collect`.
        ranks: the components that will be kept: the same number (int) or share of the width (float) at each
            hook point, or a dict of either by hook point, as `allocate_ranks` gives.
        positions: which positions count, and are ablated.
        batch_size: sequences a batch.
        max_tokens: stop before exceeding so many tokens of data.
        progress: show progress bars.

    Returns:
        A complete basis by hook point, in the order of the forward pass. At other ranks than `ranks` the
        later ones are of activations that do not occur.

    Raises:
        ValueError: for ranks outside 0..d, two names of one hook point, and what `collect` and
            `ablation_curves` refuse: before anything is collected.
    """
    check_rereadable(data, "it is read once for each hook point")
    names = resolve(model, hook_points)
    check_apart(model, names)
    positions = checked_positions(positions)
    options: dict[str, Any] = {"batch_size": batch_size, "max_tokens": max_tokens}
    with quiet(model, gradients=False):
        downstream = Downstream(model, names, positions)
        downstream.start(next(batches(data, **options, may_be_empty=False)))
    kept = components_at(ranks, downstream.widths)
    clean = collect(
        model, data, names, objective=sampled_token_loss(), statistics=["activation", "gradient"],
        positions=positions, progress=progress, **options,
    )  # fmt: skip
    first, *later = downstream.order
    bases = {first: metric_pca(clean[first])}
    bar = Progress(data, batch_size, max_tokens, progress, title="Ablating", passes=len(later))
    with bar, quiet(model, gradients=False):
        for name in later:
            edits = {s: partial(basis.project, k=kept[s]) for s, basis in bases.items()}
            arrives = _arriving(model, data, name, edits, positions, bar, options)
            bases[name] = metric_pca(dataclasses.replace(clean[name], activation=arrives))
    return bases


def _arriving(
    model: Any,
    data: Any,
    hook_point: str,
    edits: Mapping[str, Edit],
    positions: Positions,
    bar: Progress,
    options: dict[str, Any],
) -> SecondMoment | None:
    """Σ f̃ᵀf̃ at a hook point of the edited model, over the positions that count."""
    accumulator = MomentAccumulator(statistics="activation")
    recorder = Recorder({hook_point: accumulator}, {}, positions)
    with recorder.attached(model):
        for batch in batches(data, **options):

            def hook(tensor: Any, hook: Any, edit: Edit, mask: Any = batch.mask) -> Any:
                return edited_at(edit, tensor, positions, mask)

            with hooked(model, [(s, partial(hook, edit=edit)) for s, edit in edits.items()]):
                recorder.run(model, batch)
            bar.advance(batch)
    return accumulator.result().activation
