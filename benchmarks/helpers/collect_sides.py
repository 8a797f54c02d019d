"""The model that `collect.py` measures on, and the sides that take turns on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

import tl_weighted_pca as wpca

Side = Callable[[HookedTransformer, Tensor, list[str]], Any]

GPT2 = dict(d_model=768, n_layers=12, n_heads=12, d_vocab=50257, n_ctx=1024)
SMALL = dict(d_model=256, n_layers=4, n_heads=4, d_vocab=5000, n_ctx=1024)


def build(shape: dict[str, int], device: str | None = None) -> HookedTransformer:
    """A model of that shape with random weights, seeded; on TransformerLens's own choice of device."""
    torch.manual_seed(0)
    width = shape["d_model"]
    config = HookedTransformerConfig(
        d_head=width // shape["n_heads"],
        d_mlp=4 * width,
        act_fn="gelu_new",
        seed=0,
        device=device,
        **shape,
    )
    return HookedTransformer(config)


def random_tokens(model: HookedTransformer, n: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.cfg.d_vocab, (n, length), generator=generator)


def hook_points(model: HookedTransformer, which: str) -> list[str]:
    """Every block's hook_resid_post, or the one at three quarters of the depth."""
    layers = range(model.cfg.n_layers) if which == "all" else [model.cfg.n_layers * 3 // 4]
    return [f"blocks.{layer}.hook_resid_post" for layer in layers]


def floor(model: HookedTransformer, tokens: Tensor, names: list[str]) -> None:
    leaves = []

    def start(tensor: Tensor, hook: Any) -> Tensor:
        leaves.append(tensor.requires_grad_())
        return tensor.view_as(tensor)

    model.requires_grad_(False)
    with model.hooks(fwd_hooks=[(names[0], start)]):
        # The run is not kept: logits that outlive the loss cost a hundred megabytes of fresh memory.
        loss = wpca.next_token_loss(
            wpca.Run(model(tokens), tokens, None, torch.arange(len(tokens)))
        ).sum()
        torch.autograd.grad(loss, leaves)


def usual(model: HookedTransformer, tokens: Tensor, names: list[str]) -> list[Tensor]:
    model.requires_grad_(True)
    activations, gradients = {}, {}

    def keep_activation(tensor: Tensor, hook: Any) -> None:
        activations[hook.name] = tensor.detach()

    def keep_gradient(tensor: Tensor, hook: Any) -> None:
        gradients[hook.name] = tensor.detach()

    with model.hooks(
        fwd_hooks=[(name, keep_activation) for name in names],
        bwd_hooks=[(name, keep_gradient) for name in names],
    ):
        loss = model(tokens, return_type="loss", loss_per_token=True).sum()
        loss.backward()
    model.zero_grad()
    found = []
    for name in names:
        f, g = activations[name], gradients[name]
        found.append(torch.einsum("bsi,bsj->ij", f, f))
        found.append(torch.einsum("bsi,bsj->ij", g, g))
        metric = torch.einsum("bsk,btk->bst", g, g)
        found.append(torch.einsum("bsi,bsj->ij", f, torch.einsum("bst,btj->bsj", metric, f)))
    return found


def ours(model: HookedTransformer, tokens: Tensor, names: list[str], **options: Any) -> Any:
    options = {"batch_size": len(tokens), "progress": False} | options
    return wpca.collect(model, tokens, names, **options)


def ours_recomputed(model: HookedTransformer, tokens: Tensor, names: list[str]) -> Any:
    return ours(model, tokens, names, recompute=True)


SIDES: dict[str, Side] = {
    "floor": floor, "usual": usual, "ours": ours, "ours, recompute": ours_recomputed,
}  # fmt: skip
