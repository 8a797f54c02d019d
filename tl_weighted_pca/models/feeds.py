"""Whether what a hook hands on is what all the rest of the model reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tl_weighted_pca.models.frozen import run_model
from tl_weighted_pca.models.hook_points import hooked
from tl_weighted_pca.models.run import Run


def check_feeds(model: Any, run: Run, name: str, first: str) -> None:
    """Raise unless what the hook hands on is what all the rest of the model reads.

    An edit is handed on as a copy, then made in place as well, where the same tensor is seen `first`.
    Where the two outputs differ, something reads the tensor past the hook: at the bridge's
    `hook_resid_mid`, the skip path; at its `attn.v.hook_in`, Q and K.
    """
    reference = run.output
    if not isinstance(reference, Tensor):
        return
    # Never write into the weights, nor into the caller's data.
    kept = [*model.parameters(), run.inputs]
    ours = {tensor.untyped_storage().data_ptr() for tensor in kept}

    def shaken(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), device="cpu")
        scale = tensor.float().square().mean().sqrt().clamp(min=1e-6)
        return tensor + (noise.to(tensor.device) * scale).to(tensor.dtype)

    def copied(tensor: Tensor, hook: Any) -> Tensor:
        return shaken(tensor)

    def in_place(tensor: Tensor, hook: Any) -> Tensor:
        repeated = any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))
        if repeated or tensor.untyped_storage().data_ptr() in ours:
            return shaken(tensor)
        return tensor.copy_(shaken(tensor)).view_as(tensor)  # the same would be no edit to a norm

    def output(name: str, hook: Callable[..., Tensor]) -> Any:
        with hooked(model, [(name, hook)]):
            return run_model(model, run.inputs, run.mask)

    everywhere = output(first, in_place)
    reference, by_copy, in_place_too = finite(reference, output(name, copied), everywhere)
    if not reference.numel() or not bool(reference.any()):
        return  # nothing to compare; a model that gives nothing but NaN is for its score to say
    effect = float((in_place_too - reference).abs().max())
    scale = float(reference.abs().max())
    handed_on = float((by_copy - reference).abs().max())
    if handed_on <= 1e-6 * scale:
        raise ValueError(
            f"Hook point {name!r} does not feed the rest of the model: what a hook "
            f"hands on there changes nothing. Ablate at {_alternatives(model, name)}."
        )
    if float((by_copy - in_place_too).abs().max()) > 1e-2 * max(effect, handed_on):
        best, here = _alternatives(model, name), type(model).__name__
        past = "a skip path goes past it"
        if first != name:
            past = f"{first!r} sees it first, and others read it too"
            if torch.equal(output(first, copied), everywhere):
                best = f"{first!r}, which feeds them all"
        raise ValueError(
            f"Hook point {name!r} feeds only a part of what reads that activation on this {here}: "
            f"{past}, so an ablation there would not ablate. Ablate at {best}."
        )


def finite(*outputs: Tensor) -> list[Tensor]:
    """The outputs, zero wherever one of them is not finite."""
    finite = torch.stack([output.isfinite() for output in outputs]).all(0)
    return [output.masked_fill(~finite, 0.0) for output in outputs]


def _alternatives(model: Any, hook_point: str) -> str:
    block = re.match(r"blocks\.\d+\.", hook_point)
    known = model.hook_dict
    names = [f"{block[0]}{name}" for name in ("hook_resid_pre", "hook_resid_post")] if block else []
    names = [name for name in names if name in known and name != hook_point]
    return " or ".join(names) if names else "a hook point on the residual stream"
