"""Dictionaries as SAELens keeps them."""

from __future__ import annotations

from typing import Any

import torch

from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder


def to_sae_lens(dictionary: SparseAutoencoder) -> Any:
    """The same map as a SAELens JumpReLU SAE, JumpReLU_θ(m) = m · H(m − θ) with m = x W_enc + b.

    With m = (x − b_in) W_enc, and so −b_in W_enc in SAELens's encoder bias:

        ProLU(m, b_enc)                     θ = max(0, −b_enc), nothing else in the encoder bias
        … with ReLU where b_enc > 0         θ = max(0, −b_enc), max(b_enc, 0) in the encoder bias
        ReLU(m + b_enc)                     θ = 0, b_enc in the encoder bias

    Outputs agree to rounding. `to_sae_lens(d).save_model(folder)` writes files for
    `sae_lens.SAE.load_from_disk(folder)`. SAELens needs TransformerLens below 4. At a `hook_z` heads are
    taken together, as in training: there it takes [..., head, d_head], and no other shape.

    Args:
        dictionary: to convert; its weights are copied.

    Returns:
        A `sae_lens.JumpReLUSAE` with the dictionary's dtype, device, model and hook point.

    Raises:
        ImportError: where SAELens is not installed.
    """
    try:
        from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
        from sae_lens.saes.sae import SAEMetadata
    except ImportError as error:
        raise ImportError(
            "SAELens is not installed: pip install 'tl-weighted-pca[sae]' (it needs TransformerLens "
            "below 4)."
        ) from error
    weights = dictionary.W_dec
    made = dictionary.provenance
    settings: dict[str, Any] = {
        "d_in": dictionary.width,
        "d_sae": dictionary.n_features,
        "dtype": str(weights.dtype).removeprefix("torch."),
        "device": str(weights.device),
        # b_in is folded into the encoder bias, so that tied and untied dictionaries are one case.
        "apply_b_dec_to_input": False,
        "reshape_activations": "hook_z" if made.hook_point.endswith("hook_z") else "none",
        "metadata": SAEMetadata(model_name=made.model, hook_name=made.hook_point),
    }
    with torch.no_grad():
        shift = -(dictionary.b_in @ dictionary.W_enc)
        bias = dictionary.b_enc
        if dictionary.kind == "relu":
            shift, threshold = shift + bias, torch.zeros_like(bias)
        else:
            threshold = (-bias).clamp(min=0)
            if dictionary.relu_where_positive:
                shift = shift + bias.clamp(min=0)
        state = {
            "W_enc": dictionary.W_enc,
            "W_dec": weights,
            "b_enc": shift,
            "b_dec": dictionary.b_dec,
            "threshold": threshold,
        }
        sae = JumpReLUSAE(JumpReLUSAEConfig(**settings))
        sae.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()})
    return sae
