"""One streaming pass over a model: what is asked of it, and what it gives."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, overload

import torch
from tqdm.auto import tqdm

from tl_weighted_pca.data.batches import Batch, batches, is_share
from tl_weighted_pca.data.positions import Outliers, Positions, checked_positions
from tl_weighted_pca.data.progress import Progress
from tl_weighted_pca.models.frozen import device_of, quiet
from tl_weighted_pca.models.hook_points import NamesFilter, resolve
from tl_weighted_pca.models.recompute import recomputed
from tl_weighted_pca.moments.accumulator import SumsDtype
from tl_weighted_pca.moments.collection import Collection
from tl_weighted_pca.moments.row_metric import RowMetric
from tl_weighted_pca.moments.running_sums import Precision
from tl_weighted_pca.objectives.losses import Objective, ObjectiveName
from tl_weighted_pca.streaming.checkpoint import Checkpoint
from tl_weighted_pca.streaming.gathered import Gathered
from tl_weighted_pca.streaming.recorder import Recorder
from tl_weighted_pca.streaming.request import Statistics, asked_of, checked_objectives
from tl_weighted_pca.support.whole_numbers import checked_count

_FEW_TOKENS = 1024
"""Of a batch, below which float32 sums are rounded too often."""


@overload
def collect(
    model: Any, data: Any, hook_points: NamesFilter, *,
    objective: Mapping[str, Objective | ObjectiveName], **options: Any,
) -> dict[str, Collection]: ...  # fmt: skip
@overload
def collect(
    model: Any, data: Any, hook_points: NamesFilter, *,
    objective: Objective | ObjectiveName | None = ..., **options: Any,
) -> Collection: ...  # fmt: skip


def collect(  # type: ignore[misc]
    model: Any,
    data: Any,
    hook_points: NamesFilter,
    *,
    objective: Objective | ObjectiveName | Mapping[str, Objective | ObjectiveName] | None = "loss",
    row_metric: RowMetric | Mapping[str, RowMetric] = "gradient",
    statistics: Statistics | Mapping[str, Statistics] = None,
    positions: Positions = None,
    outliers: float | None = None,
    batch_size: int = 16,
    per_head: bool | Mapping[str, bool] = False,
    max_tokens: int | None = None,
    recompute: bool = False,
    precision: Precision = "highest",
    sums_dtype: SumsDtype = "float64",
    sums_device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    progress: bool = True,
) -> Collection | dict[str, Collection]:
    """Σ_x FᵀF, Σ_x gᵀg and Σ_x FᵀM(F, g)F at hook points, in one pass over the data.

    F are the activations of one sequence at a hook point and g = ∂L(x)/∂F the gradients of its
    objective, summed over the sequence's positions and never averaged over the batch: the result
    does not depend on batch size. F is the tensor that passes the hook point, and g counts everything
    that reads it, whatever other hook points are collected. Parameters get no gradients, the graph
    starts at the earliest hook point, and each gradient is consumed as it arrives. The model runs in
    eval mode and is left as it was, also after an exception or Ctrl-C; an exception then carries what
    was collected before it as its attribute `collection`.

    Args:
        model: a HookedTransformer, a TransformerBridge, or anything with `hook_dict` and `hooks()`.
        data: a tensor [n, pos] of tokens, a DataLoader, an iterable of [batch, pos] tensors or of
            dicts with `input_ids`/`tokens` and `attention_mask`, a Hugging Face dataset, or a `shard`
            of any of these. What it yields goes to the model as it is.
        hook_points: a name, a glob such as "blocks.*.hook_resid_post", several, or a predicate:
            TransformerLens's `names_filter`. Activations [batch, d] are sequences of length 1;
            [batch, pos, head, d_head] is one space of head·d_head.
        objective: what to differentiate: "loss" (`next_token_loss`), "fisher" (`sampled_token_loss()`),
            "logits" (`logit_probe()`) or a callable of a `Run`; or a dict of them that share one forward
            pass and give a dict of collections. None collects activations only, with no graph, and ends each
            pass at the last hook point (a later, different firing of a hook point is then not seen).
        row_metric: M of the weighted moment: "gradient" (g gᵀ), "identity", "diagonal"
            (diag ‖g_s‖²) or a callable (F, g) -> [batch, pos, pos] of the rows that count. This, `statistics`
            and `per_head` may be mappings from hook points, or globs of them, to values.
        statistics: which of "activation", "gradient" and "weighted" to keep; all by default.
        positions: a slice or indices of the positions that count, from the first real token. Others
            drop out of every sum over positions, but still take part in the model and the objective.
        outliers: leave out, hook point by hook point, positions whose norm exceeds so many medians of
            the norms of their own sequence, wherever they are; `settings["left_out"]` counts them.
        batch_size: sequences per batch.
        per_head: keep one moment per head at hook points of shape [batch, pos, head, d_head].
        max_tokens: stop before exceeding so many tokens of data.
        recompute: keep only the inputs of each block for the backward pass and compute the rest
            again there: less memory for one more forward pass.
        precision: of a batch's products: "highest" (float32 or wider) or "tf32", which has three
            digits, on GPUs that have it.
        sums_dtype: "float64", or "float32" for half the memory: within 5e-6 over 10⁶ tokens, as long as
            batches have 1,024 tokens or more.
        sums_device: where the sums are: None for beside the activations, or "cpu" to spare a GPU's memory.
        checkpoint: a file to continue from if it exists, and to write to. The moments are bit-identical to
            those of an uninterrupted run. The file stays when the run is done.
        checkpoint_every: batches between two writes.
        progress: show a progress bar.

    Returns:
        A `Collection`: `Moments` by hook point name.

    Raises:
        ValueError: for an unknown hook point (with the nearest names), one that never fires, carries
            no gradient or is not a stream of vectors; for empty data, sequences too short for the
            objective, tokens outside the vocabulary, or an objective of the wrong shape.
            Also for a checkpoint that is damaged, foreign, or of other settings, model or data: it is
            left as it is.
        MemoryError: if the sums take more than there is, before the first batch is added.
        OSError: if the checkpoint cannot be written; the last one written is still there.
        NonFiniteError: on NaN or infinity, naming the hook point and the batch.
    """
    objectives = checked_objectives(objective)
    positions, left_out = checked_positions(positions), Outliers.checked(outliers)
    batch_size = checked_count("batch_size", batch_size)
    max_tokens = None if max_tokens is None else checked_count("max_tokens", max_tokens)
    names = resolve(model, hook_points)
    asked = asked_of(
        names, objectives, statistics=statistics, row_metric=row_metric, per_head=per_head
    )
    # Gradients are what makes the graph: no statistic that needs them, no objective.
    needed = objectives if any(each.gradients for each in asked.values()) else {}
    options = {
        "precision": precision, "sums_dtype": sums_dtype, "sums_device": sums_device,
        "told": partial(tqdm.write, file=sys.stderr) if progress else None,
    }  # fmt: skip
    gathered = Gathered.of(model, asked, (positions, left_out), objectives, needed, options)
    ungraded = {name for name, each in asked.items() if not each.gradients}
    recorder = Recorder(
        gathered.accumulators, needed, positions, left_out, activations_only=ungraded, note=True
    )
    file = None
    if checkpoint is not None:
        settings = gathered.to_agree_with(model, batch_size, max_tokens)
        file = Checkpoint(checkpoint, checkpoint_every, settings, gathered.accumulators, left_out)
        file.resume()
        recorder.recounted = file.recounted
    restored = gathered.n_tokens
    blocks = recomputed(model, recorder.again) if recompute and needed else nullcontext()
    try:
        with (
            Progress(data, batch_size, max_tokens, progress) as bar,
            quiet(model, gradients=bool(needed)),
            blocks,
            recorder.attached(model),
        ):
            for batch in batches(data, batch_size, max_tokens=max_tokens):
                if file is not None and file.skips(batch):
                    recorder.skip()
                    bar.skip(batch)
                    continue
                if not gathered.n_tokens:
                    _check_size(batch, sums_dtype)
                recorder.run(model, batch)
                if file is not None:
                    file.advance(recorder.recounted)
                bar.advance(batch)
            if not is_share(data) and not gathered.n_tokens:  # nothing to keep
                raise ValueError(
                    f"positions={positions!r} selects no token of the data: choose others, or leave "
                    "positions out."
                )
            if file is not None:
                file.finish()
            if gathered.n_tokens == restored:  # no batch has brought the sums to the model's device
                for accumulator in gathered.accumulators.values():
                    accumulator.move(device_of(model))
    except BaseException as error:
        if any(each.n_sequences for each in gathered.accumulators.values()):
            error.collection = gathered.result(objective, recorder.recounted)  # type: ignore[attr-defined]
        raise
    return gathered.result(objective, recorder.recounted)


def _check_size(batch: Batch, sums_dtype: SumsDtype) -> None:
    """Warn of float32 sums that are rounded too often."""
    if sums_dtype == "float32" and batch.n_tokens < _FEW_TOKENS:
        warnings.warn(
            f"The first batch has {batch.n_tokens} tokens, and float32 sums want {_FEW_TOKENS:,} or more in "
            "each: raise batch_size, or leave sums_dtype at 'float64'.",
            stacklevel=3,
        )
