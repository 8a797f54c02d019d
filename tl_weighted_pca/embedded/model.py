"""Loading the embedded model as TransformerLens would load it from the hub, without the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from .vocabulary import MODEL_FOLDER, SLIPS_FOLDER

if TYPE_CHECKING:
    import torch

Kind = Literal["HookedTransformer", "TransformerBridge"]


def load_model(
    kind: Kind | None = None,
    device: "str | torch.device | None" = None,
    dtype: "torch.dtype | None" = None,
    *,
    slips: bool = False,
) -> Any:
    """The embedded model, a GPT-2 of 4 layers and width 64, as a TransformerLens model.

    Weights are as trained (nothing folded or centred), the model is in eval mode and has its
    tokenizer. The network is never used.

    Args:
        kind: ``"HookedTransformer"`` or ``"TransformerBridge"``. By default the first of them that
            the installed TransformerLens has (TransformerLens 4 has only the bridge).
        device: Where to put the model. By default where TransformerLens would: a GPU if there is
            one, the CPU otherwise.
        dtype: float32 by default.
        slips: The model that was trained on ``stories(..., slips=True)``: the same architecture,
            which has learnt the same facts and never to be quite certain.

    Returns:
        A ``HookedTransformer`` or ``TransformerBridge`` that maps tokens [batch, pos] to logits
        [batch, pos, vocabulary]. It takes at most 128 tokens.
    """
    available = _available()
    if kind is None:
        kind = available[0]
    elif kind not in get_args(Kind):
        raise ValueError(f"unknown kind of model {kind!r}: choose from {', '.join(get_args(Kind))}")
    elif kind not in available:
        raise ValueError(f"the installed TransformerLens has no {kind}: use {available[0]!r}")
    folder = SLIPS_FOLDER if slips else MODEL_FOLDER
    return (_hooked if kind == "HookedTransformer" else _bridge)(folder, device, dtype)


def _available() -> list[Kind]:
    # Not hasattr: TransformerLens 4 answers for the class it removed with an ImportError.
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return ["TransformerBridge"]
    return ["HookedTransformer", "TransformerBridge"]


def _pretrained(folder: Path, dtype: "torch.dtype | None") -> tuple[Any, Any]:
    """The model and the tokenizer as Hugging Face's own classes."""
    import torch
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    # A megabyte needs no progress bar.
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: torch.nn.Module = GPT2LMHeadModel.from_pretrained(
            folder, attn_implementation="eager", local_files_only=True
        )
    finally:
        if shown:
            logging.enable_progress_bar()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return model.to(dtype=dtype or torch.float32).eval(), tokenizer


def _bridge(folder: Path, device: "str | torch.device | None", dtype: "torch.dtype | None") -> Any:
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities import get_device

    device = device or get_device()
    model, tokenizer = _pretrained(folder, dtype)
    bridge = TransformerBridge.boot_transformers(
        str(folder),
        hf_model=model.to(device),
        tokenizer=tokenizer,
        device=device,
        dtype=dtype or torch.float32,
    )
    return bridge.eval()


def _hooked(folder: Path, device: "str | torch.device | None", dtype: "torch.dtype | None") -> Any:
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    pretrained, tokenizer = _pretrained(folder, dtype)
    config = pretrained.config
    hooked_config = HookedTransformerConfig(
        model_name=folder.name,
        original_architecture="GPT2LMHeadModel",
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_ctx=config.n_positions,
        n_heads=config.n_head,
        d_head=config.n_embd // config.n_head,
        d_mlp=config.n_inner or 4 * config.n_embd,
        d_vocab=config.vocab_size,
        act_fn=config.activation_function,
        eps=config.layer_norm_epsilon,
        normalization_type="LN",
        device=None if device is None else str(device),
        dtype=dtype or torch.float32,
        # The stored model overwrites them.
        init_weights=False,
    )
    # The device is settled once, by the configuration.
    model = HookedTransformer(hooked_config, tokenizer=tokenizer)
    model.load_and_process_state_dict(
        convert_gpt2_weights(pretrained, hooked_config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval()
