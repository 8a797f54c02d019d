"""The model that `peers.py` compares tools on, in the two forms that they take."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2Config, GPT2LMHeadModel

from tl_weighted_pca.embedded.vocabulary import MODEL_FOLDER


class Map(NamedTuple):
    """A linear map of the model: its module at Hugging Face, the hook points around it at TransformerLens."""

    module: str
    before: str
    after: str


class Subject(NamedTuple):
    """One model in two forms, with the same weights and the same attention in plain matrices."""

    hooked: HookedTransformer
    linear: GPT2LMHeadModel
    maps: list[Map]


def subject(config: GPT2Config | None) -> Subject:
    """GPT-2 of that shape with random weights; without a shape, the embedded model as it was trained."""
    torch.manual_seed(0)
    if config is None:
        model = GPT2LMHeadModel.from_pretrained(
            MODEL_FOLDER, attn_implementation="eager", local_files_only=True
        )
    else:
        config._attn_implementation = "eager"
        model = GPT2LMHeadModel(config)
    model = model.eval()
    maps = [
        Map(f"transformer.h.{i}.mlp.{name}", f"blocks.{i}.{before}", f"blocks.{i}.{after}")
        for i in range(model.config.n_layer)
        for name, before, after in (
            ("c_fc", "ln2.hook_normalized", "mlp.hook_pre"),
            ("c_proj", "mlp.hook_post", "hook_mlp_out"),
        )
    ]
    hooked = _hooked(model)
    for linear in maps:
        _replace_conv1d(model, linear.module)
    return Subject(hooked, model, maps)


def _hooked(model: GPT2LMHeadModel) -> HookedTransformer:
    shape = model.config
    config = HookedTransformerConfig(
        model_name="gpt2", original_architecture="GPT2LMHeadModel", n_layers=shape.n_layer,
        d_model=shape.n_embd, n_ctx=shape.n_positions, n_heads=shape.n_head,
        d_head=shape.n_embd // shape.n_head, d_mlp=shape.n_inner or 4 * shape.n_embd,
        d_vocab=shape.vocab_size, act_fn=shape.activation_function, eps=shape.layer_norm_epsilon,
        normalization_type="LN", init_weights=False, device="cpu",
    )  # fmt: skip
    hooked = HookedTransformer(config)
    weights = {name: w.clone() for name, w in convert_gpt2_weights(model, config).items()}
    hooked.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    return hooked.eval()


def _replace_conv1d(model: nn.Module, name: str) -> None:
    """The same map as `nn.Linear`: kronfluence and curvlinops know no other."""
    conv = model.get_submodule(name)
    d_in, d_out = conv.weight.shape
    linear = nn.Linear(d_in, d_out)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.mT)
        linear.bias.copy_(conv.bias)
    model.set_submodule(name, linear)
