"""Ablation is a hook by hand: of TransformerLens's own, on random models of many families."""

import random

import families
import pytest
import torch
from formulas import next_token_losses, reconstructed

import tl_weighted_pca as wpca

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ["GPT2", "GPTJ", "Llama", "Olmo2", "gpt2", "gemma2"]
FROM = 2
"""The first position that is ablated."""


def losses(model, tokens, name, edit):
    """−log p of each token, with f ↦ edit(f) handed on at a hook point."""

    def hook(f, hook):
        return edit(f.flatten(2)).reshape(f.shape).to(f.dtype)

    with model.hooks(fwd_hooks=[(name, hook)]):
        return next_token_losses(model(tokens).double(), tokens)


def handed_on(model, tokens, name, like):
    """∂/∂ε Σ −log p at f + ε, for ε = 0: of what the hook hands on, not what it gets."""
    epsilon = torch.zeros_like(like, requires_grad=True)
    total = losses(model, tokens, name, lambda f: f + epsilon).sum()
    (found,) = torch.autograd.grad(total, epsilon, allow_unused=True)
    return torch.zeros_like(like) if found is None else found


def ablated(f, basis, k):
    return torch.cat([f[:, :FROM], reconstructed(f[:, FROM:], basis, k)], 1)


@families.sweep(*QUICK)
def test_it_is_a_hook_by_hand_and_edits_what_the_gradient_is_of(family):
    model, tokens, chance = families.built(family), families.tokens(4), random.Random(family)
    names = families.sound(family, families.distinct(model))
    if family in QUICK:
        names = sorted(chance.sample(names, 10))
    pairs = {name: families.autograd(model, tokens, name) for name in names}
    pairs = {name: pair for name, pair in pairs.items() if pair is not None}
    stats = wpca.collect(model, tokens, list(pairs), objective=None, progress=False)
    compared = 0
    for name, (F, g) in pairs.items():
        basis = wpca.pca(stats[name])
        k = basis.n_components // 2
        error = torch.dist(handed_on(model, tokens, name, F), g) / g.norm()
        curves, refusal = None, ""
        try:
            curves = wpca.ablation_curves(
                model, tokens, basis, ranks=[k], positions=slice(FROM, None), progress=False
            )
        except ValueError as told:
            refusal = str(told)
        if curves is None:
            assert "feeds only a part" in refusal or "does not feed" in refusal, (name, refusal)
            assert error > 1e-3, name
            continue
        with torch.no_grad():
            by_hand = losses(model, tokens, name, lambda f, b=basis, k=k: ablated(f, b, k))
        assert float(curves.scores["pca"][0]) == pytest.approx(float(by_hand.mean()), rel=1e-6), (
            name
        )
        assert error < 1e-4, name
        compared += 1
    assert compared >= 4
