"""Models that are offloaded, compiled, or have hook points switched off."""

import accelerate
import families
import pytest
import torch
import transformers
from conftest import KINDS

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.models.frozen import device_of

HOOK = "blocks.1.hook_resid_post"


@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_model_gives_what_a_whole_one_does(kind, monkeypatch):
    def offload(model):
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))

    if kind == "HookedTransformer":
        whole, model = families.hooked("llama"), offload(families.hooked("llama"))
    else:
        whole = families.bridged("Llama")
        save = transformers.LlamaForCausalLM.save_pretrained

        def saved_then_offloaded(model, folder):
            save(model, folder)
            offload(model.model)  # without lm_head, to which TransformerLens 3.9 adds a bias

        monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", saved_then_offloaded)
        model = families.bridged("Llama")
    assert any(parameter.is_meta for parameter in model.parameters())
    assert device_of(model) == torch.device("cpu")
    x = families.tokens()
    ours, theirs = (wpca.collect(each, x, HOOK, progress=False)[HOOK] for each in (model, whole))
    for a, b in ((ours.activation, theirs.activation), (ours.gradient, theirs.gradient)):
        assert torch.allclose(a.second, b.second, rtol=1e-9)


def test_a_compiled_hooked_transformer_is_told_apart(tokens):
    if "HookedTransformer" not in KINDS:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    model = embedded.load_model("HookedTransformer")
    with pytest.raises(ValueError, match=r"the model is compiled.*model\._orig_mod"):
        wpca.collect(torch.compile(model, backend="eager"), tokens[:2], HOOK, progress=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "switch"),
    [("attn.hook_result", "use_attn_result"), ("hook_attn_in", "use_attn_in"),
     ("hook_q_input", "use_split_qkv_input"), ("hook_mlp_in", "use_hook_mlp_in")],
)  # fmt: skip
def test_a_hook_point_that_is_switched_off_names_its_switch(kind, name, switch, tokens):
    model = embedded.load_model(kind)
    with pytest.raises(ValueError, match=rf"set_{switch}\(True\) first"):
        wpca.collect(model, tokens[:2], f"blocks.1.{name}", progress=False)
