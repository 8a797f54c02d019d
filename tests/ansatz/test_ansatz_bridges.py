"""The feature ansatz through the bridge: one claim, whatever a family's modules look like."""

from importlib.metadata import version

import pytest
import torch
from formulas import next_token_losses, outer_products

from tl_weighted_pca import collect, next_token_loss, stream_pairs
from tl_weighted_pca.ansatz import feature_ansatz
from tl_weighted_pca.models.weights import model_weights

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"progress": False}
OLD = version("transformer_lens").startswith("3.0.")


def tokens(n=4, length=8, vocabulary=50, seed=0):
    return torch.randint(0, vocabulary, (n, length), generator=torch.Generator().manual_seed(seed))


SMALL = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32, "attn_implementation": "eager", "pad_token_id": 0,
}  # fmt: skip


def bridged(family, folder, **options):
    """A random model of a family of Hugging Face's, and the bridge to it."""
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    from tl_weighted_pca.embedded import load_model

    config = getattr(transformers, f"{family}Config")(**SMALL, **options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.3 * noise if "norm" in name else 0.4 * noise)
    model.save_pretrained(folder)
    tokenizer = load_model("TransformerBridge", device="cpu").tokenizer

    def bridge():
        try:
            return TransformerBridge.boot_transformers(
                str(folder), hf_model=model, tokenizer=tokenizer, device="cpu"
            )
        except AttributeError as error:
            if not OLD:
                raise
            pytest.skip(f"TransformerLens 3.0 and these transformers: {error}")

    return model, bridge


GROUPED = {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4}
FAMILIES = {
    "Bloom": {},
    "GPTJ": {"rotary_dim": 2},
    "GPTNeoX": {"intermediate_size": 24},
    "Gemma": GROUPED,
    "Gemma2": GROUPED,
    "Llama": GROUPED,
    "Mistral": GROUPED,
    "Mixtral": GROUPED | {"num_local_experts": 4},
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "Phi": {"intermediate_size": 24},
    "Phi3": {"intermediate_size": 24, "num_key_value_heads": 2},
    "Qwen2": {"intermediate_size": 24, "num_key_value_heads": 2},
    "Qwen3": GROUPED,
}


PARALLEL = {"GPTJ", "Phi"}
"""Attention and MLP read one norm: no gradient at a hook point is attention's alone."""


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f == "GPTJ" else pytest.mark.slow) for f in FAMILIES],
)
def test_the_gradient_through_q_k_and_v_is_the_chain_rule_s(family, tmp_path):
    """Serial and parallel blocks, joint and separate maps, LayerNorm and RMSNorm, one norm or two."""
    _, boot = bridged(family, tmp_path, **FAMILIES[family])
    bridge, x = boot(), tokens()
    weights = {w.kind: w for w in model_weights(bridge, [1])}
    found = {r.kind: r for r in feature_ansatz(bridge, x, [1], next_token_loss, **QUIET)}
    # Experts have no one input matrix, and TransformerLens 3.0 leaves OPT's, in no module, where it is.
    assert ("W_in" not in found) == (family == "Mixtral" or (OLD and family == "OPT"))
    assert (family in PARALLEL) == ("W_Q+W_K+W_V" not in found)
    qkv = [weights[kind] for kind in ("W_Q", "W_K", "W_V")]
    (pairs,) = stream_pairs(bridge, x, [w.writes for w in qkv])
    through = [pairs[w.writes].gradients[0].double() @ w.matrix.double().mT for w in qkv]
    slow = {w.kind: g for w, g in zip(qkv, through, strict=True)} | {"W_Q+W_K+W_V": sum(through)}
    for kind, g in slow.items():
        if kind in found:
            exact = outer_products(g) / x.numel()
            assert torch.dist(found[kind].agop, exact) < 1e-5 * exact.norm()
    # Folded, it is the gradient at the normalised stream, where that has no other reader.
    normalised = "blocks.1.ln1.hook_normalized"
    folded = feature_ansatz(bridge, x, [1], next_token_loss, folded=True, **QUIET)
    if family not in PARALLEL and not OLD:  # which detaches that hook point in most families
        moments = collect(bridge, x, normalised, statistics=("gradient",), **QUIET)[normalised]
        agop = moments.gradient.second / moments.n_tokens
        if bridge.cfg.normalization_type == "LN":  # the folded weight is centred over d_model
            centring = torch.eye(16, dtype=torch.float64) - 1 / 16
            agop = centring @ agop @ centring
        ours = folded["blocks.1.attn.W_Q+W_K+W_V"].agop
        assert torch.dist(ours, agop) < 1e-5 * agop.norm()


@pytest.mark.parametrize(("family", "offset"), [("Llama", 0), ("Gemma", 1)])
def test_a_bridge_s_folded_claim_is_that_of_weights_folded_by_hand(family, offset, tmp_path):
    """Gemma's norms multiply by 1 + w, Llama's by w."""
    model, bridge = bridged(family, tmp_path, **GROUPED)
    x = tokens()
    ours = feature_ansatz(bridge(), x, [0, 1], next_token_loss, folded=True, **QUIET)
    before = model(x).logits
    with torch.no_grad():
        for layer in model.model.layers:
            for norm, readers in (
                (layer.input_layernorm, [getattr(layer.self_attn, f"{c}_proj") for c in "qkv"]),
                (layer.post_attention_layernorm, [layer.mlp.gate_proj, layer.mlp.up_proj]),
            ):
                for linear in readers:
                    linear.weight *= norm.weight + offset
                norm.weight.fill_(1 - offset)
    assert torch.dist(model(x).logits, before) < 1e-4 * before.norm()
    theirs = feature_ansatz(bridge(), x, [0, 1], next_token_loss, **QUIET)
    assert len(ours) == len(theirs) == 14
    for one, other in zip(ours, theirs, strict=True):
        assert one.name == other.name
        assert torch.dist(one.matrix, other.matrix) < 1e-5 * one.matrix.norm()
        assert torch.dist(one.agop, other.agop) < 1e-4 * one.agop.norm()


@pytest.mark.skipif(OLD, reason="TransformerLens 3.0 has no bridge to such an MLP")
def test_a_bridge_whose_mlp_is_no_module_of_its_own(tmp_path):
    """OPT's layers hold fc1 and fc2 themselves, so that nothing goes through `mlp.hook_in`."""
    model, bridge = bridged("OPT", tmp_path, ffn_dim=24, word_embed_proj_dim=16)
    x = tokens()
    found = feature_ansatz(bridge(), x, [1], next_token_loss, **QUIET)["blocks.1.mlp.W_in"]
    seen = []

    def keep(module, arguments, output):
        output.retain_grad()
        seen.append(output)

    model.requires_grad_(True)
    linear = model.model.decoder.layers[1].fc1
    handle = linear.register_forward_hook(keep)
    logits = model(x).logits
    handle.remove()
    next_token_losses(logits, x).sum().backward()
    g = (seen[0].grad.flatten(0, -2) @ linear.weight).double().detach()
    assert torch.dist(found.agop, g.mT @ g / x.numel()) < 1e-5 * found.agop.norm()


def test_a_bridge_with_grouped_queries_and_gated_mlps(tmp_path):
    """A Llama: the whole gradient past the norm is that of W_gate and W_in together."""
    llama, boot = bridged("Llama", tmp_path, **GROUPED)
    bridge = boot()
    x = tokens()
    found = feature_ansatz(bridge, x, [1], next_token_loss, **QUIET)
    shapes = {row.kind: tuple(row.matrix.shape) for row in found}
    assert shapes["W_K"] == (16, 8) and shapes["W_Q+W_K+W_V"] == (16, 32)
    assert shapes["W_gate+W_in"] == (16, 48)
    seen = []

    def keep(module, arguments, output):
        output.retain_grad()
        seen.append(output)

    llama.requires_grad_(True)
    handle = llama.model.layers[1].post_attention_layernorm.register_forward_hook(keep)
    logits = bridge(x)
    handle.remove()
    next_token_losses(logits, x).sum().backward()
    g = seen[0].grad.double()
    slow = outer_products(g) / x.numel()
    assert torch.dist(found["blocks.1.mlp.W_gate+W_in"].agop, slow) < 1e-5 * slow.norm()
