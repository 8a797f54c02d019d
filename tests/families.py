"""Small random models of many families, in float64, on both of TransformerLens's classes."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import KINDS

from tl_weighted_pca.models.hook_points import check_activation

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32, "attn_implementation": "eager", "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4}
WIDE = {"intermediate_size": 24}
EXPERTS = {
    "experts_implementation": "eager", "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2
}  # fmt: skip

BRIDGED: dict[str, dict[str, Any]] = {
    "Apertus": GROUPED,
    "Bloom": {},
    "Cohere": GROUPED,
    "Cohere2": GROUPED,
    "DeepseekV3": WIDE | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 4,
                          "qk_nope_head_dim": 4, "first_k_dense_replace": 2},
    "Ernie4_5": GROUPED,
    "Exaone4": GROUPED,
    "Falcon": {"new_decoder_architecture": False, "parallel_attn": True, "alibi": False},
    "GPT2": {"n_inner": 24},
    "GPTBigCode": {"n_inner": 24},
    "GPTJ": {"rotary_dim": 2},
    "GPTNeo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
    "GPTNeoX": WIDE,
    "Gemma": GROUPED,
    "Gemma2": GROUPED,
    "Gemma3Text": GROUPED,
    "Glm": GROUPED,
    "Glm4": GROUPED,
    "GptOss": GROUPED | EXPERTS,
    "Granite": GROUPED | {"residual_multiplier": 0.7},
    "HunYuanDenseV1": GROUPED,
    "Llama": GROUPED,
    "Mistral": GROUPED,
    "Mixtral": GROUPED | EXPERTS,
    "Mpt": {"expansion_ratio": 2},
    "Mamba": {"state_size": 4},
    "OpenAIGPT": {},
    "Nemotron": GROUPED,
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "Olmo": GROUPED,
    "Olmo2": GROUPED,
    "Olmo3": GROUPED,
    "Olmoe": GROUPED | EXPERTS,
    "Phi": WIDE,
    "Phi3": WIDE | {"num_key_value_heads": 2},
    "Qwen2": WIDE | {"num_key_value_heads": 2},
    "Qwen2Moe": GROUPED | EXPERTS | {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 8},
    "Qwen3": GROUPED,
    "Qwen3Moe": GROUPED | EXPERTS | {"moe_intermediate_size": 12},
    "SmolLM3": GROUPED,
    "StableLm": WIDE | {"num_key_value_heads": 2},
    "Starcoder2": WIDE | {"num_key_value_heads": 2},
}  # fmt: skip
"""Configurations of transformers, by the family's name there."""

HOOKED: dict[str, dict[str, Any]] = {
    "gpt2": {"normalization_type": "LN"},
    "pre-norm": {"normalization_type": "LNPre"},
    "no norm": {"normalization_type": None},
    "llama": {"normalization_type": "RMS", "positional_embedding_type": "rotary", "gated_mlp": True,
              "act_fn": "silu", "n_key_value_heads": 2, "final_rms": True},
    "gpt-j": {"parallel_attn_mlp": True, "positional_embedding_type": "rotary"},
    "bloom": {"positional_embedding_type": "alibi", "post_embedding_ln": True},
    "gemma2": {"normalization_type": "RMS", "use_normalization_before_and_after": True,
               "positional_embedding_type": "rotary", "gated_mlp": True},
    "qk norm": {"normalization_type": "RMS", "use_qk_norm": True, "positional_embedding_type": "rotary"},
    "attention only": {"attn_only": True},
    "short": {"positional_embedding_type": "shortformer"},
    "split": {"use_split_qkv_input": True, "use_hook_mlp_in": True, "use_attn_result": True},
    "solu": {"act_fn": "solu_ln"},
}  # fmt: skip
"""Configurations of HookedTransformer, by what is special about them."""


def tokens(n: int = 2, length: int = 6, vocabulary: int = 50, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, vocabulary, (n, length), generator=torch.Generator().manual_seed(seed))


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn anew: gains about one, the rest about zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(1 + 0.3 * noise if "norm" in name or "ln" in name else 0.4 * noise)
    return model


def bridged(family: str, dtype: torch.dtype = torch.float64) -> Any:
    """A TransformerBridge to a random model of a family of Hugging Face's."""
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    from tl_weighted_pca.embedded import load_model

    options = SMALL | BRIDGED[family]
    config = getattr(transformers, f"{family}Config")(**options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = randomised(model.to(dtype)).eval()
    tokenizer = load_model("TransformerBridge", device="cpu").tokenizer
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return TransformerBridge.boot_transformers(
            folder, hf_model=model, tokenizer=tokenizer, device="cpu", dtype=dtype
        ).eval()


def hooked(family: str, dtype: torch.dtype = torch.float64) -> Any:
    """A random HookedTransformer."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        **{"n_layers": 2, "d_model": 16, "n_ctx": 32, "d_head": 4, "n_heads": 4, "d_mlp": 24, "d_vocab": 50,
           "act_fn": "gelu", "normalization_type": "LN", "device": "cpu", "dtype": dtype, "seed": 0}
        | HOOKED[family]
    )  # fmt: skip
    return randomised(HookedTransformer(config)).eval()


def built(family: str, dtype: torch.dtype = torch.float64) -> Any:
    """The random model of a family, in the class that has it."""
    if family in HOOKED:
        return hooked(family, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bridged(family, dtype)


def sweep(*quick: str) -> Callable[[Callable], Callable]:
    """A test of every family that the installed TransformerLens has; quick for some."""
    names = [name for name in (*BRIDGED, *HOOKED) if len(KINDS) > 1 or name in BRIDGED]
    whole = (pytest.mark.slow, pytest.mark.sweep)
    marked = [pytest.param(n, marks=() if n in quick else whole) for n in names]
    return pytest.mark.parametrize("family", marked)


def distinct(model: Any) -> list[str]:
    """A name for each hook point."""
    names = {id(point): name for name, point in reversed(model.hook_dict.items())}
    return list(names.values())[::-1]


def sound(family: str, names: list[str]) -> list[str]:
    """Hook points at which looking changes nothing: TransformerLens 3.9 gets norms of two families wrong."""
    wrong = ("hook_normalized", "hook_scale") if family in ("Nemotron", "Olmo") else ()
    return [name for name in names if not name.endswith(wrong)]


def autograd(
    model: Any, tokens: torch.Tensor, name: str
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """F and ∂L/∂F at a hook point, the plain way; None where that has no gradient or is no stream."""
    point, passed = model.hook_dict[name], []

    def keep(point, inputs, output):
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return None
        if all(output is not known for known in passed):
            if not output.requires_grad:
                output.requires_grad_()
            output.retain_grad()
            passed.append(output)
        return output.view_as(output)

    handle = point.register_forward_hook(keep)
    try:
        # Norms of the bridge take another way where TransformerLens's own hooks are on.
        with model.hooks(fwd_hooks=[(name, lambda tensor, hook: None)]):
            logits = model(tokens)
    except (AssertionError, ValueError):  # switched off
        return None
    finally:
        handle.remove()
    log_probs = logits[:, :-1].log_softmax(-1)
    (-log_probs.gather(-1, tokens[:, 1:, None]).sum()).backward()
    model.zero_grad()
    found = [tensor.grad for tensor in passed if tensor.grad is not None]
    if not found:
        return None
    convert = getattr(point.hook_conversion, "convert", lambda tensor: tensor)
    F, g = convert(passed[0].detach()), convert(sum(found))
    try:
        check_activation(name, F, len(tokens), tokens.shape[1])
    except ValueError:
        return None
    return F.flatten(2), g.flatten(2)
