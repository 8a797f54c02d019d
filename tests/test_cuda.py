"""On a GPU: the same moments, beside the activations or off the GPU, and what is made of them.

Each test runs on the CPU too, so that its own mistakes show before there is a GPU; `pytest -m cuda` runs the
others.
"""

import dataclasses

import pytest
import torch
import transformer_lens
from conftest import KINDS as CLASSES
from test_default_device import USES, Setting, parts

import tl_weighted_pca as wpca

NAMES = ["blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"]
KINDS = ("activation", "gradient", "weighted")
QUIET = {"progress": False, "batch_size": 4}


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a, b, tolerance):
    return float((a.cpu() - b.cpu()).norm()) <= tolerance * float(b.cpu().norm())


def same(a, b, tolerance):
    return all(
        close(getattr(a[n], kind).second, getattr(b[n], kind).second, tolerance)
        for n in a
        for kind in KINDS
    )


@pytest.fixture(scope="module", params=CLASSES)
def there(device, request):
    return wpca.embedded.load_model(request.param).to(device)


@pytest.fixture(scope="module")
def on_cpu(tokens):
    return wpca.collect(wpca.embedded.load_model(device="cpu"), tokens, NAMES, **QUIET)


def test_moments_are_those_of_the_cpu_and_stay_on_the_device(device, there, on_cpu, tokens):
    found = wpca.collect(there, tokens, NAMES, **QUIET)
    assert same(found, on_cpu, 1e-5)
    assert found[NAMES[0]].activation.packed_second.flat.device.type == device
    assert found.to("cpu")[NAMES[0]].activation.packed_second.flat.device.type == "cpu"


def test_masks_positions_and_outliers_are_those_of_the_cpu(there, tokens):
    mask = torch.ones_like(tokens[:4], dtype=torch.bool)
    mask[1, 15:] = mask[2, :6] = False
    data = [{"input_ids": tokens[:4], "attention_mask": mask}]
    options = {**QUIET, "positions": slice(1, None), "outliers": 5.0}
    found, right = (
        wpca.collect(model, data, NAMES, **options)
        for model in (there, wpca.embedded.load_model(device="cpu"))
    )
    assert same(found, right, 1e-5)
    assert found.settings == right.settings
    assert found[NAMES[0]].n_tokens == right[NAMES[0]].n_tokens


@pytest.mark.parametrize("sums_dtype", ["float64", "float32"])
def test_sums_on_the_cpu_are_those_beside_the_activations(device, sums_dtype):
    """Of the same activations and gradients: the model's own rounding may differ from run to run."""
    accumulators = [
        wpca.MomentAccumulator(sums_dtype=sums_dtype, sums_device=home) for home in (None, "cpu")
    ]
    F, g = random(2, 6, 4, 256, 64).to(device) + 3
    for accumulator in accumulators:
        for batch in zip(F, g, strict=True):
            accumulator.update(*batch)
    beside, away = (accumulator.result() for accumulator in accumulators)
    assert away.weighted.packed_second.flat.device.type == "cpu"
    for kind in KINDS:
        assert close(away.held[kind].second, beside.held[kind].second, 1e-7)


def test_a_collection_with_sums_on_the_cpu(there, on_cpu, tokens):
    assert same(wpca.collect(there, tokens, NAMES, sums_device="cpu", **QUIET), on_cpu, 1e-5)


@pytest.mark.parametrize("sums_device", [None, "cpu"])
def test_a_checkpoint_goes_on(device, there, tokens, tmp_path, sums_device):
    options, path = {**QUIET, "sums_device": sums_device}, tmp_path / "checkpoint"
    wpca.collect(there, tokens[:4], NAMES, checkpoint=path, **options)
    resumed = wpca.collect(there, tokens, NAMES, checkpoint=path, **options)
    # Nothing is left to do, and what is made of the moments is the same to the bit.
    again = wpca.collect(there, tokens, NAMES, checkpoint=path, **options)
    for found in (resumed, again):
        second = found[NAMES[0]].activation.packed_second.flat
        assert second.device.type == (sums_device or device)
    assert wpca.pca(again[NAMES[0]]).digest == wpca.pca(resumed[NAMES[0]]).digest
    # A model's backward pass on a GPU need not repeat to the bit.
    whole = wpca.collect(there, tokens, NAMES, **options)
    assert same(resumed, whole, 0.0 if device == "cpu" else 1e-5)


def test_tf32_is_asked_for_and_otherwise_not_used(device):
    F, g = random(2, 8, 512, 384).to(device)
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
    if device == "cuda" and torch.cuda.get_device_capability()[0] >= 8:
        assert errors["tf32"] > 10 * errors["highest"]


@pytest.mark.parametrize("make", ["pca", "weighted_pca", "gradient_pca", "metric_pca"])
def test_bases_are_made_where_the_moments_are(device, there, tokens, make, monkeypatch):
    (name, *_), make = NAMES, getattr(wpca, make)
    found = wpca.collect(there, tokens, name, objective="fisher", **QUIET)[name]
    eigh, seen = torch.linalg.eigh, set()
    monkeypatch.setattr(torch.linalg, "eigh", lambda X: (seen.add(X.device.type), eigh(X))[1])
    a = make(found)
    assert seen == {device} and a.encoder.device.type == "cpu"
    b = make(found.to("cpu"))
    largest = float(b.eigenvalues.max())
    torch.testing.assert_close(a.eigenvalues, b.eigenvalues, rtol=0, atol=1e-9 * largest)
    x = random(5, 64, dtype=torch.float64) + a.center
    torch.testing.assert_close(a.project(x, 8), b.project(x, 8), rtol=1e-5, atol=1e-5)
    moved = a.to(device).project(x.to(device), 8)
    assert moved.device.type == device
    torch.testing.assert_close(moved.cpu(), a.project(x, 8))


SHAPES = {
    "heads": ((5, 768, 64), (5, 64, 768)),
    "one head": ((768, 64), (64, 700)),
    "too small for a GPU": ((3, 2), (2, 4)),
    "inner dimension largest": ((2, 40, 300), (2, 300, 50)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("skewed", [False, True])
def test_the_svd_is_right_and_stays_on_the_device(device, shape, dtype, skewed):
    A, B = (random(*s, dtype=dtype, seed=i) for i, s in enumerate(SHAPES[shape]))
    if skewed:  # one of the batch: its columns are nearly parallel
        A[..., -1] = A[..., 0] + 1e-3 * A[..., -1]
    parts = wpca.svd(A.to(device), B.to(device))
    assert all(part.device.type == device and part.dtype == dtype for part in parts)
    U, S, V_T = (part.cpu().double() for part in parts)
    product = A.double() @ B.double()
    largest = float(torch.linalg.matrix_norm(product).max())
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(U * S[..., None, :] @ V_T, product, rtol=0, atol=tolerance * largest)
    eye = torch.eye(S.shape[-1], dtype=torch.float64).expand(*S.shape, -1)
    for gram in (U.mT @ U, V_T @ V_T.mT):
        torch.testing.assert_close(gram, eye, rtol=0, atol=10 * tolerance)
    assert (S[..., 1:] <= S[..., :-1]).all()


def test_gradients_of_the_svd_stay_on_the_device(device):
    A, B = (random(*s, dtype=torch.float64) for s in ((6, 4), (4, 5)))
    grads = []
    for place in (device, "cpu"):
        left = A.to(place).requires_grad_()
        U, S, V_T = wpca.svd(left, B.to(place))
        (S.log().sum() + (U[0] @ V_T[:, 0]).square()).backward()
        grads.append(left.grad)
    assert grads[0].device.type == device
    torch.testing.assert_close(grads[0].cpu(), grads[1])


def test_the_default_device_may_be_the_gpu(device, there, tokens, on_cpu):
    with torch.device(device):
        found = wpca.collect(there, tokens, NAMES, **QUIET)
        curves = wpca.ablation_curves(
            there, tokens, {"pca": wpca.pca(found[NAMES[0]])}, NAMES[0], ranks=[8, 64],
            progress=False,
        )  # fmt: skip
    assert same(found, on_cpu, 1e-5)
    assert curves.scores["pca"][1] == pytest.approx(curves.baseline, rel=1e-3)


@pytest.fixture(scope="module")
def settings(device, best_model, tokens, tmp_path_factory):
    """What the uses of public names share: on the device, and on the CPU."""
    there = wpca.embedded.load_model().to(device)
    return [Setting(m, tokens, tmp_path_factory.mktemp("files")) for m in (there, best_model)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", USES)
def test_every_public_name_takes_a_model_on_the_device(settings, name):
    """Its results are of the same kinds and shapes, and finite; rounding may turn single components."""
    found, right = (parts(USES[name](setting)) for setting in settings)
    assert [shape_of(x) for x in found] == [shape_of(x) for x in right]


def shape_of(part):
    if isinstance(part, torch.Tensor):
        return part.dtype, tuple(part.shape), bool(part.isfinite().all())
    return type(part)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
@pytest.mark.skipif(len(CLASSES) < 2, reason="TransformerLens 4 has no HookedTransformer")
def test_moments_of_a_model_on_two_gpus_are_beside_its_layers(tokens):
    config = transformer_lens.HookedTransformerConfig(
        n_layers=4, d_model=32, n_heads=4, d_head=8, n_ctx=32, d_vocab=1000, act_fn="gelu", seed=0,
        device="cpu",
    )  # fmt: skip
    model = transformer_lens.HookedTransformer(config)
    spread = transformer_lens.HookedTransformer(
        dataclasses.replace(config, device="cuda", n_devices=2)
    )
    spread.load_state_dict(model.state_dict())
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(4)]
    found = wpca.collect(spread, tokens % 1000, names, **QUIET)
    homes = [found[name].activation.packed_second.flat.device for name in names]
    layers = [next(block.parameters()).device for block in spread.blocks]
    assert homes == layers and len(set(homes)) == 2
    assert same(found, wpca.collect(model, tokens % 1000, names, **QUIET), 1e-5)
