"""Whether one hook point carries all that reaches another: asked of the model itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.models.frozen import device_of, quiet, run_model
from tl_weighted_pca.models.hook_points import hooked


def note_what_goes_past(
    model: Any, data: Any, names: Sequence[str], batch_size: int, max_tokens: int | None
) -> None:
    """Warn unless each hook point carries all of the input that reaches the next.

    Asked on the first batch: other inputs are run with the activations of these put in at the one hook
    point, and the next then has to be what it was. A skip path past the first shows in the difference.
    """
    batch = next(iter(batches(data, batch_size, max_tokens=max_tokens)), None)
    if batch is None:
        return
    inputs = batch.inputs.detach().to(device_of(model))
    mask = None if batch.mask is None else batch.mask.to(inputs.device)
    others = inputs.flip(tuple(range(inputs.ndim)))  # as many, of the same vocabulary
    with quiet(model, gradients=False):
        clean = _seen(model, inputs, mask, names)
        for here, there in pairwise(names):
            if here not in clean or there not in clean:
                continue  # for the collector to say
            put_in = (here, lambda tensor, hook, kept=clean[here]: kept.clone())
            found = _seen(model, others, mask, [there], put_in)[there]
            expected = clean[there]
            counted = slice(None) if mask is None or expected.ndim == 2 else mask
            error = (found - expected)[counted].double().square().mean()
            if float(error) > 1e-4 * float(expected[counted].double().var(correction=0)):
                warnings.warn(
                    f"Hook point {here!r} does not carry all that reaches {there!r}: something goes past it, "
                    "such as a skip path. What is found is about the part that goes through it; the residual "
                    "stream carries all.",
                    stacklevel=3,
                )


def _seen(
    model: Any,
    inputs: Tensor,
    mask: Tensor | None,
    names: Sequence[str],
    *hooks: tuple[str, Callable[..., Tensor]],
) -> dict[str, Tensor]:
    """What passes at hook points the first time, copied, with other hooks at work."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> tuple[str, Callable[..., None]]:
        def hook(tensor: Tensor, hook: Any) -> None:
            if name not in seen:
                seen[name] = tensor.clone()

        return name, hook

    with torch.no_grad(), hooked(model, [*hooks, *map(keep, names)]):
        run_model(model, inputs, mask)
    return seen
