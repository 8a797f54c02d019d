"""What lies between the parts of a model, asked of a pass on a few tokens: names differ between families."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.models.frozen import device_of, quiet, run_model
from tl_weighted_pca.models.hook_points import hooked

_TOKENS = 8


def scale_to_stream(
    model: Any, hook_point: str, matrix: Float[Tensor, "d d_model"] | None
) -> float | None:
    """c, where adding δ at the hook point adds c·δW to the stream at every position; None where no c does.

    δ is random, of three sizes, so that a norm in between shows: it does not grow with δ. What the block
    adds later is frozen to what it is without δ.

    Args:
        hook_point: an embedding, or what a block adds to the stream or makes that of.
        matrix: W; the identity by default.
    """
    at = re.match(r"blocks\.(\d+)\.", hook_point)
    if at is None:
        return _scale(model, hook_point, matrix, "blocks.0.hook_resid_pre", set())
    block = at[0]
    stream = f"{block}hook_resid_post"
    if ".mlp." in hook_point or "mlp_out" in hook_point:
        return _scale(model, hook_point, matrix, stream, set())
    # Some MLPs (Bloom's) add the stream themselves, others (experts) have no single hook_post.
    for later in (("mlp.hook_out", "hook_mlp_out"), ("mlp.hook_post",)):
        frozen = {block + name for name in later} & set(model.hook_dict)
        scale = _scale(model, hook_point, matrix, stream, frozen)
        if scale is not None:
            return scale
    return None


def _scale(
    model: Any, hook_point: str, matrix: Tensor | None, stream: str, later: set[str]
) -> float | None:
    """c at the hook point named `stream`, with what passes the `later` ones frozen."""
    clean: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor, hook: Any) -> None:
        clean[name] = tensor.detach().clone()

    names = {hook_point, stream, *later}
    with quiet(model, gradients=False):
        with hooked(model, [(name, partial(keep, name)) for name in names]):
            run_model(model, _few_tokens(model), None)
        if not names - later <= set(clean):
            return None
        f, x = clean[hook_point], clean[stream][0].float()
        if f.numel() % len(x):
            return None
        generator = torch.Generator("cpu").manual_seed(0)
        delta = torch.randn(len(x), f.numel() // len(x), generator=generator, device="cpu")
        delta = delta.to(x.device)
        written = delta if matrix is None else delta @ matrix.detach().to(x.device, torch.float32)
        if written.shape != x.shape:
            return None
        # Beside the stream, so that a short float format still tells what was added.
        size = x.square().mean(1) / written.square().mean(1).clamp(min=1e-30)
        growth = 2.0 ** (torch.arange(len(x), device=x.device) % 3)
        factor = (size.sqrt() * growth)[:, None]
        delta, written = factor * delta, factor * written
        moved: list[Tensor] = []

        def push(tensor: Tensor, hook: Any) -> Tensor:
            return tensor + delta.reshape(tensor.shape).to(tensor.device, tensor.dtype)

        def freeze(name: str, tensor: Tensor, hook: Any) -> Tensor:
            return clean[name]

        def see(tensor: Tensor, hook: Any) -> None:
            moved.append(tensor.detach()[0].float())

        edits = [(name, partial(freeze, name)) for name in later & set(clean)]
        with hooked(model, [(hook_point, push), *edits, (stream, see)]):
            run_model(model, _few_tokens(model), None)
    change = moved[0] - x
    scale = float((change * written).sum() / written.square().sum())
    missing = float((change - scale * written).norm() / written.norm())
    return scale if missing < 0.05 * abs(scale) else None


def feeding(model: Any, norms: Mapping[str, tuple[Any, Any]]) -> set[str]:
    """Those names whose norm's output is what the module beside it, or a part of that, reads.

    Args:
        norms: by name, a norm and the module that may read it.
    """
    given: dict[int, list[Tensor]] = {}
    found: set[str] = set()
    with ExitStack() as stack:
        for name, (norm, module) in norms.items():

            def gives(norm: Any, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    given.setdefault(id(norm), []).append(output.detach())

            def reads(
                module: Any, args: Any, kwargs: Any, name: str = name, norm: Any = norm
            ) -> None:
                for each in (*args, *kwargs.values()):
                    if not isinstance(each, Tensor) or not each.is_floating_point():
                        continue
                    if any(_along(each, known) for known in given.get(id(norm), [])):
                        found.add(name)

            stack.callback(norm.register_forward_hook(gives).remove)
            for part in module.modules():
                stack.callback(part.register_forward_pre_hook(reads, with_kwargs=True).remove)
        with quiet(model, gradients=False):
            run_model(model, _few_tokens(model), None)
    return found


def _along(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, up to a factor: some families scale what a norm gives."""
    if one.numel() != other.numel():
        return False
    a, b = one.detach().flatten().double(), other.flatten().to(one.device).double()
    return bool(a @ b > 0.9999 * a.norm() * b.norm())


def _few_tokens(model: Any) -> Tensor:
    size = getattr(model.cfg, "d_vocab", None)
    length = min(_TOKENS, getattr(model.cfg, "n_ctx", None) or _TOKENS)
    tokens = torch.arange(length, device="cpu")
    return (tokens % size if size and size > 0 else tokens)[None].to(device_of(model))
