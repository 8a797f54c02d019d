"""The numerical contract: float64 sums of float32 products, about a shift, in any order."""

import pytest
import torch
from formulas import outer_products, relative, row_metric, second_moment

import tl_weighted_pca as wpca


def reference(activations, gradients, center):
    """The three second moments about a centre by two passes in float64, the slow obvious way."""
    f, g = activations.double(), gradients.double()
    return {
        "activation": outer_products(f - center),
        "gradient": outer_products(g),
        "weighted": second_moment(f, row_metric("gradient", f, g), center),
    }


@pytest.mark.parametrize("d", [24, 500])  # whole products, and those by strips
@pytest.mark.parametrize("n_positions", [16, 40])  # both contractions, at the narrow width
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_within_1e5_of_two_passes_in_float64(d, n_positions, mean):
    torch.manual_seed(0)
    activations = torch.randn(12, n_positions, d) + mean * torch.randn(d).sign()
    gradients = torch.randn(12, n_positions, d)
    accumulator = wpca.MomentAccumulator("gradient")
    for start in range(0, 12, 5):
        accumulator.update(activations[start : start + 5], gradients[start : start + 5])
    moments = accumulator.result()
    center = activations.double().mean((0, 1))
    expected = reference(activations, gradients, center)
    assert relative(moments.activation.mean, center) < 1e-6
    for kind in ("activation", "weighted"):
        assert relative(getattr(moments, kind).about(center), expected[kind]) < 1e-5
    assert relative(moments.gradient.second, expected["gradient"]) < 1e-5
    for kind in expected:
        second = getattr(moments, kind).shifted_second
        assert torch.equal(second, second.mT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_as_what_it_is(dtype):
    torch.manual_seed(0)
    activations, gradients = torch.randn(2, 6, 10, 24).to(dtype)
    moments = wpca.MomentAccumulator("gradient").update(activations, gradients).result()
    center = activations.double().mean((0, 1))
    for kind, expected in reference(activations, gradients, center).items():
        about = center if kind != "gradient" else torch.zeros_like(center)
        assert relative(getattr(moments, kind).about(about), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_gives_float64_moments(dtype):
    from tl_weighted_pca import embedded

    model = embedded.load_model().to(dtype)
    tokens = torch.arange(4 * 10).view(4, 10) % model.cfg.d_vocab
    name = "blocks.1.hook_resid_post"
    (pairs,) = wpca.stream_pairs(model, tokens, name)
    moments = wpca.collect(model, tokens, name, progress=False)[name]
    assert pairs[name].activations.dtype == dtype
    expected = reference(pairs[name].activations, pairs[name].gradients[0], 0.0)
    for kind in expected:
        assert getattr(moments, kind).second.dtype == torch.float64
        assert relative(getattr(moments, kind).second, expected[kind]) < 1e-6


@pytest.mark.parametrize("splits", [[12], [1] * 12, [5, 7], [3, 8, 1]])
def test_any_split_gives_the_same_moments(splits):
    torch.manual_seed(0)
    activations, gradients = torch.randn(2, 12, 16, 24)
    activations += 30
    whole = wpca.MomentAccumulator("gradient").update(activations, gradients).result()
    parts = wpca.MomentAccumulator("gradient")
    for f, g in zip(activations.split(splits), gradients.split(splits), strict=True):
        parts.update(f, g)
    for kind in ("activation", "gradient", "weighted"):
        x, y = (getattr(m, kind).about(whole.activation.mean) for m in (parts.result(), whole))
        assert relative(x, y) < 1e-6


def test_merging_is_associative():
    torch.manual_seed(0)
    a, b, c = (
        wpca.MomentAccumulator("gradient").update(f + 10 * i, g).result()
        for i, (f, g) in enumerate(torch.randn(3, 2, 4, 8, 12))
    )
    for kind in ("activation", "gradient", "weighted"):
        x, y = (getattr(m, kind).second for m in ((a + b) + c, a + (b + c)))
        assert relative(x, y) < 1e-12


def test_one_run_after_another_keeps_no_memory_of_tokens():
    accumulator = wpca.MomentAccumulator("gradient")
    for _ in range(3):
        accumulator.update(*torch.randn(2, 2, 5, 8))
        assert not any(sums._pending for sums in accumulator._sums.values())
        assert accumulator._batch is None
