"""Ablation is a hook by hand: of TransformerLens's own, on random models of many families."""

import random

import families
import pytest
import torch
from formulas import next_token_losses, reconstructed

import tl_weighted_pca as wpca

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ["GPT2", "GPTJ", "Llama", "Olmo2", "gpt2", "gemma2"]
# Seen to hold at every hook point; the other families of the sweep are not all looked at yet.
MORE = [
    "Apertus",
    "Cohere",
    "Exaone4",
    "GPTBigCode",
    "GPTNeoX",
    "Glm",
    "Phi3",
    "Qwen3Moe",
]
FROM = 2
"""The first position that is ablated."""


def losses(model, tokens, name, edit):
    """−log p of each token, with f ↦ edit(f) handed on at a hook point."""

    def hook(f, hook):
        return edit(f.flatten(2)).reshape(f.shape).to(f.dtype)

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, hook)]):
        return next_token_losses(model(tokens).double(), tokens)


def slope(model, tokens, name, delta, step=1e-3):
    """d/dε Σ −log p at f + ε δ, by a central difference of fourth order."""

    def at(epsilon):
        return float(losses(model, tokens, name, lambda f: f + epsilon * delta).sum())

    near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
    return (8 * near - far) / (12 * step)


def ablated(f, basis, k):
    return torch.cat([f[:, :FROM], reconstructed(f[:, FROM:], basis, k)], 1)


@families.sweep(*QUICK, more=MORE)
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
        delta = torch.randn(F.shape, generator=torch.Generator().manual_seed(1), dtype=F.dtype)
        delta *= F.norm() / delta.norm()
        expected = float((g * delta).sum())
        scale = float(g.norm() * delta.norm())
        found = slope(model, tokens, name, delta)
        curves, refusal = None, ""
        try:
            curves = wpca.ablation_curves(
                model, tokens, basis, ranks=[k], positions=slice(FROM, None), progress=False
            )
        except ValueError as error:
            refusal = str(error)
        if curves is None:
            assert "feeds only a part" in refusal or "does not feed" in refusal, (name, refusal)
            assert abs(found - expected) > 1e-4 * scale, name
            continue
        by_hand = losses(model, tokens, name, lambda f, b=basis, k=k: ablated(f, b, k))
        assert float(curves.scores["pca"][0]) == pytest.approx(float(by_hand.mean()), rel=1e-6), (
            name
        )
        assert abs(found - expected) < 1e-4 * scale, name
        compared += 1
    assert compared >= 4
