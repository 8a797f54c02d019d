"""On a GPU: the same moments, beside the activations or off the GPU, and bases made where they are."""

import pytest
import torch

import tl_weighted_pca as wpca

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
NAMES = ["blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"]
KINDS = ("activation", "gradient", "weighted")
QUIET = {"progress": False, "batch_size": 4}


def close(a, b, tolerance):
    return float((a.cpu() - b.cpu()).norm() / b.cpu().norm()) <= tolerance


def same(a, b, tolerance):
    return all(
        close(getattr(a[n], kind).second, getattr(b[n], kind).second, tolerance)
        for n in a
        for kind in KINDS
    )


@pytest.fixture(scope="module")
def on_gpu():
    return wpca.embedded.load_model().to("cuda")


@pytest.fixture(scope="module")
def on_cpu(tokens):
    return wpca.collect(wpca.embedded.load_model(), tokens, NAMES, **QUIET)


def test_moments_are_those_of_the_cpu_and_stay_on_the_gpu(on_gpu, on_cpu, tokens):
    found = wpca.collect(on_gpu, tokens, NAMES, **QUIET)
    assert same(found, on_cpu, 1e-5)
    assert found[NAMES[0]].activation.packed_second.flat.is_cuda
    assert not found.to("cpu")[NAMES[0]].activation.packed_second.flat.is_cuda


@pytest.mark.parametrize("sums_dtype", ["float64", "float32"])
def test_sums_on_the_cpu_are_those_on_the_gpu(on_gpu, tokens, sums_dtype):
    many = tokens.repeat(20, 1)
    options = {**QUIET, "batch_size": 60}
    there = wpca.collect(on_gpu, many, NAMES, **options)
    here = wpca.collect(on_gpu, many, NAMES, sums_device="cpu", sums_dtype=sums_dtype, **options)
    assert here[NAMES[0]].weighted.packed_second.flat.device.type == "cpu"
    assert same(here, there, 1e-7 if sums_dtype == "float64" else 5e-6)


def test_a_checkpoint_goes_on_on_the_gpu_to_the_bit(on_gpu, tokens, tmp_path):
    for device in (None, "cpu"):
        options = {**QUIET, "sums_device": device}
        path = tmp_path / str(device)
        wpca.collect(on_gpu, tokens[:4], NAMES, checkpoint=path, **options)
        resumed = wpca.collect(on_gpu, tokens, NAMES, checkpoint=path, **options)
        assert same(resumed, wpca.collect(on_gpu, tokens, NAMES, **options), 0.0)


def test_tf32_is_asked_for_and_otherwise_not_used():
    F, g = (x.cuda() for x in torch.randn(2, 8, 512, 384))
    exact = torch.einsum("bsi,bsj->ij", F.double(), F.double())
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        errors = {}
        for precision in ("highest", "tf32"):
            m = wpca.MomentAccumulator(precision=precision).update(F, g).result()
            errors[precision] = float((m.activation.second - exact).norm() / exact.norm())
            assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert errors["highest"] < 1e-6
    assert errors["tf32"] < 2e-3
    if torch.cuda.get_device_capability()[0] >= 8:
        assert errors["tf32"] > 10 * errors["highest"]


def test_bases_of_moments_on_the_gpu_are_those_of_the_cpu(on_gpu, tokens):
    found = wpca.collect(on_gpu, tokens, NAMES[0], objective=wpca.sampled_token_loss(), **QUIET)[
        NAMES[0]
    ]
    x = torch.randn(5, 64, dtype=torch.float64)
    for make in (wpca.pca, wpca.weighted_pca, wpca.gradient_pca, wpca.metric_pca):
        a, b = make(found), make(found.to("cpu"))
        assert a.encoder.device.type == "cpu"
        torch.testing.assert_close(a.eigenvalues, b.eigenvalues, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(a.project(x, 8), b.project(x, 8), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.to("cuda").project(x.cuda(), 8).cpu(), a.project(x, 8))


def test_the_default_device_may_be_the_gpu(on_gpu, tokens, on_cpu):
    with torch.device("cuda"):
        found = wpca.collect(on_gpu, tokens.cpu(), NAMES, **QUIET)
        curves = wpca.ablation_curves(
            on_gpu, tokens.cpu(), {"pca": wpca.pca(found[NAMES[0]])}, NAMES[0], ranks=[8, 64],
            progress=False,
        )  # fmt: skip
    assert same(found, on_cpu, 1e-5)
    assert curves.scores["pca"][1] == pytest.approx(curves.baseline, rel=1e-3)
