"""One streaming pass over a model: what is asked of it, and what it gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, overload

from tl_weighted_pca.data.batches import batches, is_share
from tl_weighted_pca.data.positions import Positions, checked_positions
from tl_weighted_pca.data.progress import Progress
from tl_weighted_pca.models.fingerprint import fingerprint, made_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import NamesFilter, hooked, resolve
from tl_weighted_pca.models.recompute import recomputed
from tl_weighted_pca.moments.accumulator import STATISTICS, MomentAccumulator
from tl_weighted_pca.moments.collection import Collection
from tl_weighted_pca.moments.row_metric import RowMetric, row_metric_name
from tl_weighted_pca.objectives.losses import (
    Objective,
    check_objective,
    next_token_loss,
    objective_name,
)
from tl_weighted_pca.streaming.checkpoint import Checkpoint
from tl_weighted_pca.streaming.recorder import Recorder
from tl_weighted_pca.support.callables import codes_of
from tl_weighted_pca.support.whole_numbers import checked_count


@overload
def collect(
    model: Any,
    data: Any,
    hook_points: NamesFilter,
    *,
    objective: Objective | None = ...,
    row_metric: RowMetric = ...,
    statistics: Sequence[str] | None = ...,
    positions: Positions = ...,
    batch_size: int = ...,
    per_head: bool = ...,
    max_tokens: int | None = ...,
    recompute: bool = ...,
    checkpoint: str | os.PathLike[str] | None = ...,
    checkpoint_every: int = ...,
    progress: bool = ...,
) -> Collection: ...
@overload
def collect(
    model: Any,
    data: Any,
    hook_points: NamesFilter,
    *,
    objective: Mapping[str, Objective],
    row_metric: RowMetric = ...,
    statistics: Sequence[str] | None = ...,
    positions: Positions = ...,
    batch_size: int = ...,
    per_head: bool = ...,
    max_tokens: int | None = ...,
    recompute: bool = ...,
    checkpoint: str | os.PathLike[str] | None = ...,
    checkpoint_every: int = ...,
    progress: bool = ...,
) -> dict[str, Collection]: ...


def collect(
    model: Any,
    data: Any,
    hook_points: NamesFilter,
    *,
    objective: Objective | Mapping[str, Objective] | None = next_token_loss,
    row_metric: RowMetric = "gradient",
    statistics: Sequence[str] | None = None,
    positions: Positions = None,
    batch_size: int = 8,
    per_head: bool = False,
    max_tokens: int | None = None,
    recompute: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    progress: bool = True,
) -> Collection | dict[str, Collection]:
    """Σ_x FᵀF, Σ_x gᵀg and Σ_x FᵀM(F, g)F at hook points, in one pass over the data.

    F are the activations of one sequence at a hook point and g = ∂L(x)/∂F the gradients of its
    objective, summed over the sequence's positions and never averaged over the batch: the result
    does not depend on batch size. Parameters get no gradients, the graph starts at the earliest hook
    point, and each gradient is consumed as it arrives. The model runs in eval mode and is left as it
    was, also after an exception or Ctrl-C; an exception then carries what was collected before it
    as its attribute `collection`.

    Args:
        model: a HookedTransformer, a TransformerBridge, or anything with `hook_dict` and `hooks()`.
        data: a tensor [n, pos] of tokens, a DataLoader, an iterable of [batch, pos] tensors or of
            dicts with `input_ids`/`tokens` and `attention_mask`, a Hugging Face dataset, or a `shard`
            of any of these. What it yields goes to the model as it is.
        hook_points: a name, several, or a predicate: TransformerLens's `names_filter`. Activations
            [batch, d] are sequences of length 1; [batch, pos, head, d_head] is one space of
            head·d_head.
        objective: what to differentiate, or a dict of objectives that share one forward pass and
            give a dict of collections. None collects activations only, with no graph, and ends each
            pass at the last hook point: that one fires again with something else goes unseen then.
        row_metric: M of the weighted moment: "gradient" (g gᵀ), "identity", "diagonal"
            (diag ‖g_s‖²) or a callable (F, g) -> [batch, pos, pos] of the rows that count.
        statistics: which of "activation", "gradient" and "weighted" to keep; all by default.
        positions: a slice or indices of the positions that count, from the first real token. Others
            drop out of every sum over positions, but still take part in the model and the objective.
        batch_size: sequences a batch.
        per_head: keep one moment a head at hook points of shape [batch, pos, head, d_head].
        max_tokens: stop before exceeding so many tokens of data.
        recompute: keep only the inputs of each block for the backward pass and compute the rest
            again there: less memory for one more forward pass.
        checkpoint: a file to go on from if it exists, and to write to. The moments are those of a run
            without interruption, to the bit. The file stays when the run is done.
        checkpoint_every: batches between two writes.
        progress: show a progress bar.

    Returns:
        A `Collection`: `Moments` by hook point name.

    Raises:
        ValueError: for an unknown hook point (with the nearest names), one that never fires, carries
            no gradient or is no stream of vectors; for empty data, sequences too short for the
            objective, tokens outside the vocabulary, or an objective of the wrong shape.
            Also for a checkpoint that is damaged, foreign, or of other settings, model or data: it is
            left as it is.
        OSError: if the checkpoint cannot be written; the last one written is still there.
        NonFiniteError: on NaN or infinity, naming the hook point and the batch.
    """
    if isinstance(objective, Mapping):
        objectives: dict[str, Objective] = dict(objective)
        if not objectives:
            raise ValueError("The dict of objectives is empty: pass at least one, or None.")
    else:
        objectives = {} if objective is None else {"": objective}
    for each in objectives.values():
        check_objective(each)
    kept = _checked_statistics(statistics, objectives, row_metric)
    positions = checked_positions(positions)
    batch_size = checked_count("batch_size", batch_size)
    max_tokens = None if max_tokens is None else checked_count("max_tokens", max_tokens)
    # Gradients are what makes the graph: no statistic that needs them, no objective.
    graph = "gradient" in kept or ("weighted" in kept and row_metric != "identity")
    needed = objectives if graph else {}
    names = resolve(model, hook_points)
    # Several names can mean one hook point (the bridge has aliases): it is recorded once.
    points = model.hook_dict
    first_of: dict[int, str] = {}
    leader = {name: first_of.setdefault(id(points[name]), name) for name in names}
    accumulators = {
        name: MomentAccumulator(
            row_metric, statistics=kept, objectives=tuple(needed) or ("",), per_head=per_head
        )
        for name in first_of.values()
    }
    metric, here = row_metric_name(row_metric), made_at(model, "")
    settings = {
        "row_metric": metric,
        "statistics": list(kept),
        "positions": None if positions is None else repr(positions),
        "per_head": per_head,
    }

    def collection(key: str) -> Collection:
        what = objective_name(objectives[key]) if key in needed else ""
        found = {}
        for name in names:
            moments = accumulators[leader[name]].result(key)
            provenance = replace(here, hook_point=name, objective=what, row_metric=metric)
            found[name] = replace(moments, provenance=provenance)
        return Collection(found, settings)

    def result() -> Collection | dict[str, Collection]:
        if isinstance(objective, Mapping):
            return {key: collection(key) for key in objectives}
        return collection("")

    recorder = Recorder(accumulators, needed, positions)
    file = None
    if checkpoint is not None:
        asked = {
            **settings,
            "model": here.model,
            "weights": fingerprint(model),
            "hook_points": names,
            "objective": {key: objective_name(value) for key, value in objectives.items()},
            "batch_size": batch_size,
            "max_tokens": max_tokens,
            "code": codes_of(
                {"row metric": row_metric}
                | {f"objective {key}".strip(): each for key, each in objectives.items()}
            ),
        }
        file = Checkpoint(checkpoint, checkpoint_every, asked, accumulators)
        file.resume()
    blocks = recomputed(model, recorder.again) if recompute and needed else nullcontext()
    try:
        with (
            Progress(data, batch_size, max_tokens, progress) as bar,
            quiet(model, gradients=bool(needed)),
            blocks,
            hooked(model, recorder.hooks(model)),
        ):
            for batch in batches(data, batch_size, max_tokens=max_tokens):
                if file is not None and file.skips(batch):
                    recorder.skip()
                    bar.skip(batch)
                    continue
                recorder.run(model, batch)
                if file is not None:
                    file.advance()
                bar.advance(batch)
            if file is not None:
                file.finish()
        if not is_share(data) and not any(acc.n_tokens for acc in accumulators.values()):
            raise ValueError(
                f"positions={positions!r} selects no token of the data: choose others, or None for all."
            )
    except BaseException as error:
        if any(acc.n_sequences for acc in accumulators.values()):
            error.collection = result()  # type: ignore[attr-defined]
        raise
    return result()


def _checked_statistics(
    statistics: Sequence[str] | None, objectives: Mapping[str, Objective], row_metric: RowMetric
) -> tuple[str, ...]:
    """The statistics to keep; raises ValueError for unknown ones, or ones that lack an objective."""
    row_metric_name(row_metric)
    if statistics is None:
        return STATISTICS if objectives else ("activation",)
    chosen = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    unknown = [name for name in chosen if name not in STATISTICS]
    if unknown or not chosen:
        raise ValueError(
            f"statistics is {statistics!r}; expected some of {', '.join(map(repr, STATISTICS))}."
        )
    wants_gradient = "gradient" in chosen or ("weighted" in chosen and row_metric != "identity")
    if wants_gradient and not objectives:
        raise ValueError(
            f"statistics={chosen!r} needs gradients, but objective is None: pass an objective such as "
            "next_token_loss, or ask for 'activation' alone."
        )
    return chosen
