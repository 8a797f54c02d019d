"""What a pass will take, before it is run: bytes of weights, sums and graph, and tokens a second."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tl_weighted_pca.models.frozen import device_of, parameters_of, quiet, run_model
from tl_weighted_pca.models.hook_points import check_activation, never_fired, passing
from tl_weighted_pca.models.recompute import SecondRun, recomputed
from tl_weighted_pca.moments.packed import packed_size
from tl_weighted_pca.moments.running_sums import home_of
from tl_weighted_pca.moments.statistics import as_rows, kept_moments
from tl_weighted_pca.streaming.graph import Graph
from tl_weighted_pca.streaming.one_pass import collect
from tl_weighted_pca.streaming.request import Asked


@dataclass(frozen=True)
class Plan:
    """Bytes by device."""

    weights: Counter[torch.device]
    sums: Counter[torch.device]
    """Over all tokens."""
    products: Counter[torch.device]
    """Of one batch, until it is whole."""
    graph: Counter[torch.device]
    """Activations of one batch that the backward pass needs."""


def plan(
    model: Any,
    asked: Mapping[str, Asked],
    shape: tuple[int, int],
    *,
    n_objectives: int = 1,
    sums_dtype: torch.dtype = torch.float64,
    sums_device: torch.device | None = None,
    recompute: bool = False,
) -> Plan:
    """Bytes that `collect` will hold at once; activations that pass through come on top.

    The model runs once, or twice to recompute, on tokens [batch, pos] of that shape. On the device
    "meta" that takes neither time nor memory, and a model of any size can be asked.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        asked: what is asked of each hook point.
        shape: sequences a batch, and their length.
        n_objectives: how many there are; the graph is that of the next-token loss.
        sums_dtype, sums_device: as for `collect`.
        recompute: keep the inputs of each block alone, and the inside of one.
    """
    tokens = torch.zeros(shape, dtype=torch.long, device=device_of(model))
    shapes, graph, n_blocks = _run(model, asked, tokens, recompute=False)
    if recompute:
        outer = _run(model, asked, tokens, recompute=True)[1]
        # Blocks are alike, and one is whole at a time.
        graph = Counter({d: outer[d] + (graph[d] - outer[d]) // max(1, n_blocks) for d in graph})
    sums: Counter[torch.device] = Counter()
    products: Counter[torch.device] = Counter()
    for name, seen in shapes.items():
        rows, each = as_rows(seen, asked[name].per_head), asked[name]
        kept = kept_moments(each.statistics, [""] * n_objectives, each.row_metric)
        n = len(kept) * rows.shape[:-3].numel() * packed_size(rows.shape[-1])
        sums[sums_device or home_of(seen.device)] += n * sums_dtype.itemsize
        products[seen.device] += n * rows.itemsize
    weights: Counter[torch.device] = Counter()
    for parameter in parameters_of(model):
        weights[parameter.device] += parameter.nbytes
    return Plan(weights, sums, products, graph)


def _run(
    model: Any, asked: Mapping[str, Asked], tokens: Tensor, *, recompute: bool
) -> tuple[dict[str, Tensor], Counter[torch.device], int]:
    """What passes each hook point, as a hook gets it; bytes of the graph; blocks that are in it."""
    points, shapes = model.hook_dict, dict[str, Tensor]()
    own = {p.untyped_storage()._cdata for p in parameters_of(model)}  # what torch tells storages by
    kept: dict[int, tuple[torch.device, int]] = {}
    inside: list[bool] = []
    graded = {name for name, each in asked.items() if each.gradients}
    started = Graph(copies=False)

    def see(name: str, tensor: Tensor) -> Tensor | None:
        conversion = getattr(points[name], "hook_conversion", None)
        shown = tensor if conversion is None else conversion.convert(tensor)
        check_activation(name, shown, *tokens.shape)
        shapes[name] = shown.detach()
        return started.view(tensor) if name in graded else None

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor.device, storage.nbytes()
        return tensor

    def enter(module: Any, args: Any) -> None:
        inside.append(any(isinstance(x, Tensor) and x.requires_grad for x in args))

    blocks = getattr(model, "blocks", [])
    handles = [block.register_forward_pre_hook(enter) for block in blocks]
    try:
        with (
            quiet(model, gradients=bool(graded)),
            recomputed(model, SecondRun()) if recompute and graded else nullcontext(),
            saved_tensors_hooks(keep, lambda tensor: tensor),
            passing(points, {name: partial(see, name) for name in asked}),
        ):
            logits = run_model(model, tokens, None)
            loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    finally:
        started.end()
        for handle in handles:
            handle.remove()
    for name in asked:
        if name not in shapes:
            raise ValueError(never_fired(model, name))
    graph: Counter[torch.device] = Counter()
    for device, size in kept.values():
        graph[device] += size
    del loss  # until here, so that no storage was another's before
    return shapes, graph, sum(inside)


def tokens_per_second(
    model: Any, shape: tuple[int, int], hook_points: Any, **options: Any
) -> float:
    """Of `collect` on such batches, the first one aside; random tokens."""
    most = int(getattr(model.cfg, "d_vocab", 2))
    asked: list[float] = []  # when each batch was, which is when the one before it was done

    def data() -> Iterator[Tensor]:
        for _ in range(3):
            asked.append(time.perf_counter())
            yield torch.randint(most, shape, device="cpu")

    collect(model, data(), hook_points, progress=False, **options)
    return 2 * shape[0] * shape[1] / (time.perf_counter() - asked[1])
