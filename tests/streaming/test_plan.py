"""What a pass will take is what it takes."""

import time
from collections import Counter

import pytest
import torch

import tl_weighted_pca as wpca
from tl_weighted_pca.models.pretrained import load_unweighted
from tl_weighted_pca.streaming.plan import plan, tokens_per_second
from tl_weighted_pca.streaming.request import asked_of

NAMES = ["blocks.1.hook_resid_post", "blocks.2.attn.hook_z"]
CPU, META = torch.device("cpu"), torch.device("meta")


def asked(names=NAMES, **options):
    options = {"statistics": None, "row_metric": "gradient", "per_head": False} | options
    return asked_of(names, {"": wpca.next_token_loss}, **options)


@pytest.fixture(scope="module")
def bridge():
    return wpca.embedded.load_model("TransformerBridge", device="cpu")


@pytest.mark.parametrize("sums_dtype", ["float64", "float32"])
def test_the_sums_are_those_of_the_pass(bridge, tokens, sums_dtype):
    options = {"per_head": {NAMES[1]: True}, "statistics": {NAMES[0]: ["gradient"]}}
    many = tokens[:4].repeat(13, 1)
    stats = wpca.collect(
        bridge, many, NAMES, sums_dtype=sums_dtype, batch_size=52, progress=False, **options
    )
    kinds = ("activation", "gradient", "weighted")
    moments = [getattr(m, kind) for m in stats.values() for kind in kinds]
    held = sum(m.packed_second.flat.nbytes for m in moments if m is not None)
    dtype = getattr(torch, sums_dtype)
    found = plan(bridge, asked(**options), tuple(tokens[:4].shape), sums_dtype=dtype)
    assert found.sums == Counter({CPU: held})
    assert found.products == Counter({CPU: held * 4 // dtype.itemsize})
    assert found.weights == Counter(
        {CPU: sum(p.nbytes for p in bridge.original_model.parameters())}
    )


def test_the_shape_alone_tells_the_same(bridge):
    unweighted = load_unweighted()
    for recompute in (False, True):
        real, shape = (
            plan(model, asked(), (3, 32), recompute=recompute) for model in (bridge, unweighted)
        )
        for part in ("weights", "sums", "products", "graph"):
            assert getattr(shape, part)[META] == getattr(real, part)[CPU] > 0


def test_the_graph_grows_with_the_batch_and_shrinks_when_computed_again():
    model = load_unweighted()
    small, large, late, again, none = (
        plan(model, asked(names, **options), (size, 32), recompute=recompute).graph[META]
        for names, size, recompute, options in [
            (NAMES[:1], 2, False, {}), (NAMES[:1], 4, False, {}),
            (["blocks.3.hook_resid_post"], 2, False, {}), (NAMES[:1], 2, True, {}),
            (NAMES[:1], 2, False, {"statistics": "activation"}),
        ]
    )  # fmt: skip
    assert large == pytest.approx(2 * small, rel=0.02)
    assert late < again < small and none == 0


def test_the_tensors_that_pass_are_left_as_they_were(bridge):
    """One may be a buffer of the model's."""
    passed = []
    point = bridge.hook_dict[NAMES[0]]
    handle = point.register_forward_hook(lambda module, inputs, output: passed.extend(inputs))
    try:
        plan(bridge, asked(), (2, 8))
    finally:
        handle.remove()
    assert passed and not any(tensor.is_leaf and tensor.requires_grad for tensor in passed)


def test_a_configuration_that_is_not_there():
    with pytest.raises(ValueError, match="Cannot load the model '/nowhere'"):
        load_unweighted("/nowhere")


def test_speed_is_of_the_pass(bridge):
    assert 10 < tokens_per_second(bridge, (2, 16), NAMES) < 1e7
    with bridge.hooks(fwd_hooks=[(NAMES[0], lambda tensor, hook: time.sleep(0.1))]):
        assert 10 < tokens_per_second(bridge, (2, 16), NAMES) <= 2 * 16 / 0.1
