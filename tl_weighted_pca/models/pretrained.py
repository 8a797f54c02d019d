"""A model by its name: the embedded one, a local Hugging Face folder, or one that TransformerLens knows."""

from __future__ import annotations

import contextlib
import difflib
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError

from tl_weighted_pca.embedded.model import Kind, load_model
from tl_weighted_pca.embedded.vocabulary import MODEL_FOLDER, SLIPS_FOLDER

try:
    from transformer_lens import HookedTransformer
except ImportError:  # TransformerLens 4 has only the bridge
    HookedTransformer = None  # type: ignore[assignment, misc]

EMBEDDED, EMBEDDED_SLIPS = "embedded", "embedded-slips"
"""The embedded models: of plain stories, and of noisy ones."""


_CANNOT_LOAD = (OSError, ValueError, RuntimeError, LookupError, SafetensorError)
"""All that TransformerLens, transformers and the hub raise for a model that they cannot find or read."""


def load_pretrained(
    name: str = EMBEDDED,
    model_class: Kind | None = None,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A model of TransformerLens, its weights as they were trained: nothing folded or centred.

    Args:
        name: "embedded" or "embedded-slips", a folder with a Hugging Face model and its tokenizer, or
            a name that TransformerLens knows or that is on the hub.
        model_class: "HookedTransformer" or "TransformerBridge". By default HookedTransformer where
            the installed TransformerLens has it and it knows the name, and TransformerBridge otherwise.
        device: such as "cpu", "cuda:1" or "mps"; by default a GPU if there is one.
        dtype: of the weights.

    Raises:
        ValueError: for a model that cannot be had, or a device that is not there.
    """
    _check_device(device)
    if model_class not in (None, *get_args(Kind)):
        raise ValueError(
            f"model_class is {model_class!r}; expected one of {', '.join(get_args(Kind))}, or None."
        )
    if not dtype.is_floating_point:
        raise ValueError(
            f"dtype is {dtype}; expected a floating-point one, such as torch.bfloat16."
        )
    if model_class == "HookedTransformer" and HookedTransformer is None:
        raise ValueError(
            "The installed TransformerLens has no HookedTransformer: use TransformerBridge."
        )
    embedded = name in (EMBEDDED, EMBEDDED_SLIPS)
    if not embedded:
        model_class = _class_for(name, model_class)
    try:
        if embedded:
            return load_model(model_class, device, dtype, slips=name == EMBEDDED_SLIPS)
        load = _hooked if model_class == "HookedTransformer" else _bridge
        # It announces itself on stdout, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            return load(name, device, dtype).eval()
    except torch.cuda.OutOfMemoryError:  # a RuntimeError, but no fault of the name
        raise
    except _CANNOT_LOAD as error:
        raise _cannot_load(name, model_class, error) from error


def load_unweighted(name: str = EMBEDDED, dtype: torch.dtype = torch.float32) -> Any:
    """A model's shape alone, from its configuration: a TransformerBridge on the device "meta".

    Raises:
        ValueError: for a model whose configuration or tokenizer cannot be had.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoConfig, AutoModelForCausalLM

    source = {EMBEDDED: str(MODEL_FOLDER), EMBEDDED_SLIPS: str(SLIPS_FOLDER)}.get(name, name)
    try:
        config = AutoConfig.from_pretrained(source)
        config.pad_token_id = None  # or the model looks for it among tokens that are not there
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="eager"
            )
        boot = partial(TransformerBridge.boot_transformers, source)
        with contextlib.redirect_stdout(sys.stderr):
            try:
                return boot(hf_model=model, device="meta").eval()
            except RuntimeError:  # a fused map of Q, K and V must be somewhere to be split
                return boot(hf_model=model.to_empty(device="cpu"), device="cpu").eval().to("meta")
    except _CANNOT_LOAD as error:
        raise _cannot_load(name, None, error) from error


def _class_for(name: str, wanted: Kind | None) -> Kind:
    """The class to load a model as.

    Raises:
        ValueError: for a folder that holds no model, or one that the class cannot load.
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"The folder {name} holds no Hugging Face model: it has no config.json. Pass a folder "
            "written by save_pretrained, a model's name, or 'embedded'."
        )
    if wanted == "HookedTransformer" and folder.is_dir():
        raise ValueError(
            f"HookedTransformer cannot load the local folder {name}: use the TransformerBridge."
        )
    if wanted is not None:
        return wanted
    hooked = HookedTransformer is not None and not folder.is_dir() and _known(name)
    return "HookedTransformer" if hooked else "TransformerBridge"


def _hooked(name: str, device: str | None, dtype: torch.dtype) -> Any:
    return HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=dtype)


def _bridge(name: str, device: str | None, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(name, device=device, dtype=dtype)


def _cannot_load(name: str, model_class: Kind | None, error: Exception) -> ValueError:
    reason = " ".join(str(error).strip().split("\n")[0].split())[:300].rstrip(".")
    what = model_class or "TransformerLens model"
    return ValueError(f"Cannot load the model {name!r} as a {what}: {reason}. {_advice(name)}")


def _names() -> set[str]:
    """The names and aliases in TransformerLens's table of models, in lower case."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    aliases = (alias for several in MODEL_ALIASES.values() for alias in several)
    return {name.lower() for name in (*OFFICIAL_MODEL_NAMES, *aliases)}


def _known(name: str) -> bool:
    return name.lower() in _names()


def _advice(name: str) -> str:
    if name in (EMBEDDED, EMBEDDED_SLIPS):
        return "It came with this package: install that again."
    if Path(name).is_dir():
        return "Pass a folder that save_pretrained wrote, with its tokenizer."
    close = [] if _known(name) else difflib.get_close_matches(name.lower(), _names(), n=3)
    near = f" (near it: {', '.join(close)})" if close else ""
    return f"Check the name{near} and the network, or pass a local folder or 'embedded'."


def _check_device(device: str | None) -> None:
    if device is None:
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(
            f"There is no device {device!r}: expected one such as 'cpu', 'cuda', 'cuda:1' or 'mps'."
        ) from error
    try:
        torch.zeros(1, device=device).item()
    except torch.cuda.OutOfMemoryError:
        raise
    # What torch raises for devices that are not there, that it was not built for, or that hold no numbers.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"The device {device!r} is not there: torch cannot use {kind} here; use 'cpu'."
        ) from error
