"""What must not be computed is not, and what is kept does not grow."""

import pytest
import torch
import torch.nn.functional as F

import tl_weighted_pca as wpca


def fired(model, tokens, names, **options) -> list[int]:
    """The layers whose MLP ran in a collection."""
    layers: list[int] = []
    hooks = [
        (
            f"blocks.{layer}.ln2.hook_normalized",
            lambda tensor, hook, layer=layer: layers.append(layer),
        )
        for layer in range(model.cfg.n_layers)
    ]
    with model.hooks(fwd_hooks=hooks):
        wpca.collect(model, tokens, names, progress=False, batch_size=len(tokens), **options)
    return sorted(set(layers))


def test_activations_alone_stop_after_the_last_hook_point(model, tokens):
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert fired(model, tokens, names, objective=None) == [0, 1]
    assert fired(model, tokens, names, statistics="activation") == [0, 1]
    assert fired(model, tokens, names) == list(range(model.cfg.n_layers))


def test_the_graph_starts_at_the_earliest_hook_point_and_no_parameter_is_in_it(model, tokens):
    seen = {}

    def objective(run):
        seen["start"] = run.activations["blocks.2.hook_resid_post"].is_leaf
        seen["parameters"] = any(p.requires_grad for p in model.parameters())
        return wpca.next_token_loss(run)

    wpca.collect(model, tokens, "blocks.2.hook_resid_post", objective=objective, progress=False)
    assert seen == {"start": True, "parameters": False}
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_the_loss_that_copies_no_logits_is_the_loss(padding):
    torch.manual_seed(0)
    logits = torch.randn(3, 6, 11, requires_grad=True)
    tokens = torch.randint(11, (3, 6))
    mask = torch.ones(3, 6, dtype=torch.bool)
    if padding != "none":
        mask[1, :2] = mask[2, :4] = False
        mask = mask if padding == "left" else mask.flip(1)
    run = wpca.Run(logits, tokens, None if padding == "none" else mask, torch.arange(3))
    slow = F.cross_entropy(
        logits[:, :-1].reshape(-1, 11), tokens[:, 1:].reshape(-1), reduction="none"
    ).view(3, 5)
    slow = (slow * (mask[:, 1:] & mask[:, :-1])).sum(1)
    fast = wpca.next_token_loss(run)
    torch.testing.assert_close(fast, slow)
    gradients = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (fast, slow)]
    torch.testing.assert_close(*gradients)
