"""What lies between a hook point and the stream, or between a norm and a weight, is what the model does."""

import families
import pytest
import torch
from conftest import KINDS

from tl_weighted_pca.feature_cards.direct_logits import direct_logits
from tl_weighted_pca.models.pushes import scale_to_stream
from tl_weighted_pca.models.weights import model_weights

POST_NORM = ["Olmo2", "Olmo3", "Exaone4"]
INSIDE = ["blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"]


def matrix_at(model, hook_point):
    block = model.blocks[1]
    matrix = block.attn.W_O if "attn" in hook_point else block.mlp.W_out
    return matrix.flatten(0, 1) if matrix.ndim == 3 else matrix


def olmo2_hooked(monkeypatch):
    if "HookedTransformer" not in KINDS:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    option = {"normalization_type": "RMS", "positional_embedding_type": "rotary",
              "original_architecture": "Olmo2ForCausalLM", "gated_mlp": True}  # fmt: skip
    monkeypatch.setitem(families.HOOKED, "olmo2", option)
    return families.hooked("olmo2")


@pytest.mark.parametrize("family", POST_NORM)
@pytest.mark.parametrize("hook_point", INSIDE)
def test_a_norm_behind_attention_or_mlp_is_no_linear_map(family, hook_point):
    model = families.bridged(family)
    width = len(matrix_at(model, hook_point))
    with pytest.raises(ValueError, match="a norm lies between"):
        direct_logits(model, hook_point, torch.eye(width)[:2])
    added = "blocks.1.hook_attn_out" if "attn" in hook_point else "blocks.1.hook_mlp_out"
    assert scale_to_stream(model, added, None) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("hook_point", INSIDE)
def test_the_same_of_hooked_transformer(monkeypatch, hook_point):
    model = olmo2_hooked(monkeypatch)
    width = len(matrix_at(model, hook_point))
    with pytest.raises(ValueError, match="a norm lies between"):
        direct_logits(model, hook_point, torch.eye(width)[:2])


@pytest.mark.parametrize(
    ("family", "scale"), [("Llama", 1), ("Bloom", 1), ("Mpt", 1), ("GPTJ", 1), ("Granite", 0.7)]
)
@pytest.mark.parametrize("hook_point", INSIDE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_multiplier_is_measured(family, scale, hook_point, dtype):
    """Beside attention that adds the stream itself, parallel blocks, and residual multipliers."""
    model = families.bridged(family, dtype)
    measured = scale_to_stream(model, hook_point, matrix_at(model, hook_point))
    assert measured == pytest.approx(scale, abs=1e-4 if dtype == torch.float64 else 0.02)


@pytest.mark.parametrize("family", [*POST_NORM, "Llama"])
def test_folded_weights_take_the_gain_of_a_norm_before_them_only(family):
    model = families.bridged(family)
    for weight in model_weights(model, [0, 1], folded=True):
        if family != "Llama":
            assert weight.change is None
            continue
        norm = (
            model.blocks[weight.layer].ln1
            if ".attn." in weight.name
            else model.blocks[weight.layer].ln2
        )
        assert torch.allclose(weight.change, norm.weight.detach().double().diag())


@pytest.mark.parametrize("folded", [False, True])
def test_weights_without_a_norm_before_them_stay_as_stored(monkeypatch, folded):
    model = olmo2_hooked(monkeypatch)
    block = model.blocks[0]
    for weight in model_weights(model, [0], folded=folded):
        assert weight.change is None
        assert weight.reads == f"blocks.0.hook_resid_{'pre' if '.attn.' in weight.name else 'mid'}"
        if weight.kind == "W_in":
            assert torch.equal(weight.matrix, block.mlp.W_in)
        if weight.kind == "W_Q":
            assert torch.equal(weight.matrix, block.attn.W_Q.movedim(0, 1).flatten(1))
