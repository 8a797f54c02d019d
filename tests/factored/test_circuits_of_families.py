"""OV and QK of random models: their SVD, the dense products of the heads, and what the heads do.

Measured on sequences of one token, where a head attends to itself alone and rotary embeddings turn nothing.
"""

import families
import pytest
import torch

import tl_weighted_pca as wpca

pytestmark = pytest.mark.usefixtures("one_thread")

LAYER, HEADS = 1, range(4)


def group_of(head, weights):
    """The keys and values that a head uses, of those that groups of heads share."""
    return head // (len(HEADS) // len(weights))


def dense(model, circuit):
    """W_V W_O and W_Q W_Kᵀ [layer, head, d_model, d_model], head by head."""
    layers = []
    for block in model.blocks:
        Q, K, V, O = (getattr(block.attn, f"W_{x}").detach() for x in "QKVO")
        if circuit == "OV":
            layers.append([V[group_of(h, V)] @ O[h] for h in HEADS])
        else:
            layers.append([Q[h] @ K[group_of(h, K)].T for h in HEADS])
    return torch.stack([torch.stack(heads) for heads in layers])


def passed(model, edits=()):
    """What attention of a layer reads and writes, and its queries and keys, one token a sequence."""
    attn, at, seen = model.blocks[LAYER].attn, f"blocks.{LAYER}.attn.", {}

    def reads(module, args, kwargs):
        streams = (x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        x = next(x for x in streams if x.is_floating_point() and x.shape[-1] == model.cfg.d_model)
        seen["in"] = x[:, 0, 0] if x.ndim == 4 else x[:, 0]  # an input for each head, all alike

    def writes(module, inputs, output):
        seen["out"] = (output if isinstance(output, torch.Tensor) else output[0])[:, 0]

    def keep(name):
        return lambda x, hook: seen.update(
            {name: x[:, 0].unflatten(-1, (-1, 4)) if x.ndim == 3 else x[:, 0]}
        )

    handles = [
        attn.register_forward_pre_hook(reads, with_kwargs=True),
        attn.register_forward_hook(writes),
    ]
    looks = [(f"{at}hook_{x}", keep(x)) for x in "qk"]
    with torch.no_grad(), model.hooks(fwd_hooks=[*looks, *edits]):
        model(torch.arange(3, 50)[:, None])
    for handle in handles:
        handle.remove()
    return {name: x.double() for name, x in seen.items()}


def only(head):
    """The pass with the values of one head alone, or of none."""

    def edit(z, hook):
        kept = torch.zeros(len(HEADS), 1, dtype=z.dtype)
        kept[HEADS if head is None else head] = head is not None
        return (z.unflatten(-1, (-1, 4)) * kept).reshape(z.shape) if z.ndim == 3 else z * kept

    return [(f"blocks.{LAYER}.attn.hook_z", edit)]


def without_biases(x):
    return x[1:] - x[0]


@families.sweep("GPT2", "GPTJ", "Llama", "Gemma2", "Olmo2", "gpt2", "llama", "gemma2")
def test_circuits_are_dense_products_and_what_heads_do(family):
    model = families.built(family)
    if family in ("DeepseekV3", "Mamba"):  # compressed keys and values, and no attention
        assert not isinstance(getattr(type(model.blocks[0]), "attn", None), property)
        with wpca.use_linalg_svd(), pytest.raises((AttributeError, NotImplementedError)):
            model.OV  # noqa: B018
        return
    with wpca.use_linalg_svd():
        OV, QK = model.OV, model.QK
        blocks = [(block.attn.OV, block.attn.QK) for block in model.blocks]
    for circuit, M, parts in zip(("OV", "QK"), (OV, QK), zip(*blocks, strict=True), strict=True):
        exact = dense(model, circuit)
        U, S, V_T = M.svd()
        for found in (M.AB, U @ S.diag_embed() @ V_T, torch.stack([part.AB for part in parts])):
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(S, torch.linalg.svdvals(exact)[..., : S.shape[-1]])
        torch.testing.assert_close(U.mT @ U, torch.eye(4).double().expand(2, 4, 4, 4))

    clean, none = passed(model), passed(model, only(None))["out"]
    x = without_biases(clean["in"])
    for h in HEADS:
        written = without_biases(passed(model, only(h))["out"] - none)
        if family != "GptOss":  # whose sinks take a share of the attention
            torch.testing.assert_close(x @ OV[LAYER, h].AB, written, rtol=1e-5, atol=1e-6)
        if family != "qk norm":  # between the weights and these hook points
            q, k = (without_biases(clean[name]) for name in "qk")
            scores = q[:, h] @ k[:, group_of(h, k[0])].T
            torch.testing.assert_close(x @ QK[LAYER, h].AB @ x.T, scores, rtol=1e-5, atol=1e-6)
