"""What `collect` will take: bytes by device, and tokens a second."""

from __future__ import annotations

from typing import Any

from tl_weighted_pca.cli.console import show
from tl_weighted_pca.cli.model_options import ModelOptions
from tl_weighted_pca.cli.text_options import DataOptions

META = "meta"
"""torch's device without memory: shapes alone."""


def show_plan(
    source: ModelOptions,
    text: DataOptions,
    hook: list[str],
    objectives: dict[str, Any],
    batch_size: int,
    recompute: bool,
    statistics: dict[str, Any],
    sums: dict[str, Any],
) -> None:
    """Load the model, or on "meta" its configuration, and tell what a pass will take."""
    import torch

    from tl_weighted_pca.models.hook_points import resolve
    from tl_weighted_pca.models.pretrained import load_unweighted
    from tl_weighted_pca.moments.memory import in_bytes
    from tl_weighted_pca.streaming.plan import plan, tokens_per_second
    from tl_weighted_pca.streaming.request import asked_of

    unweighted = source.device == META
    model = (
        load_unweighted(source.model, getattr(torch, source.dtype))
        if unweighted
        else source.load(None)
    )
    shape = batch_size, min(text.context_length, getattr(model.cfg, "n_ctx", text.context_length))
    points = resolve(model, hook)
    found = plan(
        model, asked_of(points, objectives, statistics=None, **statistics), shape,
        n_objectives=max(1, len(objectives)), recompute=recompute,
        sums_dtype=getattr(torch, sums["sums_dtype"]),
        sums_device=sums["sums_device"] and torch.device(sums["sums_device"]),
    )  # fmt: skip
    parts = {
        "weights": found.weights,
        f"sums at {len(points)} hook point{'s' * (len(points) > 1)}": found.sums,
        "products of a batch": found.products,
        f"graph of a batch, {shape[0]} \u00d7 {shape[1]} tokens": found.graph,
    }
    for device in dict.fromkeys(device for part in parts.values() for device in part):
        for what, part in parts.items():
            show(f"{what:<48}{in_bytes(part[device]):>10}  {device}", highlight=False)
        total = sum(part[device] for part in parts.values())
        show(f"{'together':<48}{in_bytes(total):>10}  {device}", highlight=False)
    if unweighted:
        return
    chosen = objectives or None
    speed = tokens_per_second(
        model, shape, points, objective=chosen, recompute=recompute, **statistics, **sums
    )
    show(
        f"{speed:,.0f} tokens a second, so {text.max_tokens:,} tokens take about "
        f"{_duration(text.max_tokens / speed)}.",
        highlight=False,
    )


def _duration(seconds: float) -> str:
    """Such as "12 minutes"."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
