"""A model lent for measuring: in eval mode, with no parameter gradients, and given back as it was."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.data.origin import vocabulary_of
from tl_weighted_pca.support.interrupts import uninterrupted


@contextmanager
def quiet(model: Any, *, gradients: bool) -> Iterator[None]:
    """Run the model in eval mode, its parameters frozen, with or without a graph.

    Modes are kept module by module and flags parameter by parameter, and put back however the block
    ends. Inference mode, if the caller is in it, is left for the duration.

    Raises:
        ValueError: for gradients of a model that was loaded inside inference mode.
    """
    modes = [(module, module.training) for module in _modules(model)]
    flags = [(parameter, parameter.requires_grad) for parameter in parameters_of(model)]
    if gradients and any(parameter.is_inference() for parameter, _ in flags):
        raise ValueError(
            "The model was loaded inside torch.inference_mode, and no gradient can pass through it: load "
            "it outside of it."
        )
    stack = ExitStack()
    try:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        # Flag by flag: `train()` of some models reaches further than their own modules.
        for module, _ in modes:
            module.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        # Who presses Ctrl-C twice gets the model back all the same.
        with uninterrupted(), stack:
            for module, mode in modes:
                module.training = mode
            for parameter, flag in flags:
                # What was made inside inference mode may be flagged only there.
                with torch.inference_mode(parameter.is_inference()):
                    parameter.requires_grad_(flag)


def _modules(model: Any) -> list[nn.Module]:
    """Every module once, those of the wrapped model too, which a bridge keeps to itself."""
    roots = [model, getattr(model, "original_model", None)]
    found = (module for root in roots if isinstance(root, nn.Module) for module in root.modules())
    return list({id(module): module for module in found}.values())


def parameters_of(model: Any) -> list[nn.Parameter]:
    """Every parameter once, whatever the model's own `parameters()` leaves out."""
    found = (p for module in _modules(model) for p in module.parameters(recurse=False))
    return list({id(parameter): parameter for parameter in found}.values())


def check_tokens(model: Any, batch: Batch) -> None:
    """Refuse tokens of another vocabulary, or more than the model has positions; warn of unmasked padding.

    Raises:
        ValueError: for these.
    """
    inputs, mask, size = batch.inputs, batch.mask, _vocabulary(model)
    mine = vocabulary_of(getattr(model, "tokenizer", None)) if batch.vocabularies else ""
    if mine and batch.vocabularies - {mine}:
        raise ValueError(
            "The data are tokens of another vocabulary than the model's: their numbers would stand for other "
            "words. Tokenise the text with model.tokenizer, or pass the model that the data are for."
        )
    if inputs.ndim == 2 and len(inputs) and not inputs.shape[1]:
        raise ValueError("The sequences have no tokens: pass sequences of one or more.")
    if inputs.is_floating_point() or inputs.numel() == 0 or size is None:
        return
    lowest, highest = (int(bound) for bound in torch.aminmax(inputs))
    if lowest < 0 or (size > 0 and highest >= size):
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"The data holds token {wrong}, but the model's vocabulary is 0..{size - 1}: "
            "tokenise with the model's own tokenizer."
        )
    if inputs.ndim == 2 and getattr(model.cfg, "positional_embedding_type", "") == "standard":
        _check_length(model, inputs)  # on a GPU it would fail beyond repair
    pad = getattr(getattr(model, "tokenizer", None), "pad_token_id", None)
    if mask is not None or pad is None or inputs.ndim != 2 or inputs.shape[1] < 2:
        return
    # Two of them: one may be a BOS, or end a text.
    if bool(((inputs[:, -2:] == pad).all(1) | (inputs[:, :2] == pad).all(1)).any()):
        warnings.warn(
            "Sequences begin or end in padding tokens, and count as text, since no mask leaves them out: "
            "pass dicts with `input_ids` and `attention_mask`, or a datasets.Dataset of unpadded rows.",
            stacklevel=2,
        )


def _check_length(model: Any, inputs: torch.Tensor, cause: Exception | None = None) -> None:
    most = getattr(getattr(model, "cfg", None), "n_ctx", None)
    if isinstance(most, int) and inputs.ndim == 2 and inputs.shape[1] > most:
        raise ValueError(
            f"The data holds sequences of {inputs.shape[1]} tokens, but the model takes at most {most}: cut "
            "them."
        ) from cause


def _vocabulary(model: Any) -> int | None:
    """The size of a vocabulary, if the model has one; below 1 where it does not say how large."""
    size = getattr(getattr(model, "cfg", None), "d_vocab", None)
    return size if isinstance(size, int) else None


def device_of(model: Any) -> torch.device:
    """Where the model's first parameter lies, or is brought to; the CPU for a model without any.

    accelerate keeps an offloaded parameter's module at "meta", and a hook on it that says where it runs.
    """
    parameters = parameters_of(model)
    if not parameters or not parameters[0].is_meta:
        return parameters[0].device if parameters else torch.device("cpu")
    hooks = (getattr(module, "_hf_hook", None) for module in _modules(model))
    for hook in hooks:
        # Several hooks on one module are kept as a list.
        for each in getattr(hook, "hooks", (hook,)):
            runs_on = getattr(each, "execution_device", None)
            if runs_on is not None:
                return torch.device(runs_on)
    real = (parameter.device for parameter in parameters if not parameter.is_meta)
    return next(real, parameters[0].device)


def run_model(model: Any, inputs: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any) -> Any:
    """The model's output; a mask is passed on only where there is padding.

    Raises:
        ValueError: for floats [batch, pos] on which a model with a vocabulary fails.
    """
    if mask is not None:
        kwargs["attention_mask"] = mask.to(torch.long)
        if _counts_padding(model):
            kwargs["position_ids"] = (kwargs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    try:
        return model(inputs, **kwargs)
    except (RuntimeError, IndexError) as error:
        _check_length(model, inputs, error)
        # Some models with a vocabulary take floats too, sound or vectors: it is the model that must say no.
        if inputs.is_floating_point() and inputs.ndim == 2 and _vocabulary(model) is not None:
            raise ValueError(
                f"The data are {inputs.dtype}, and the model fails on them ({error}): if they are to be "
                "token ids, pass whole numbers."
            ) from error
        raise


def _counts_padding(model: Any) -> bool:
    """Whether this is an early bridge (TransformerLens 3.0), whose positions begin at the left edge.

    Later ones derive them from the mask, where the wrapped model doesn't do that by itself.
    """
    wrapped = getattr(model, "original_model", None)
    if not isinstance(wrapped, nn.Module) or hasattr(model, "_accepts_derived_position_ids"):
        return False
    return "position_ids" in inspect.signature(wrapped.forward).parameters
