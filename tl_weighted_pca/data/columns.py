"""The columns of a batch or a row, as data sets and loaders name them: tokens, and their mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def unpacked(item: Any) -> tuple[Tensor, Tensor | None]:
    """Inputs and mask of one batch, as an iterable gave it."""
    keep = None
    if isinstance(item, Mapping):
        keep = item.get("attention_mask")
        if keep is None and "mask" in item:
            raise ValueError("The data has a column 'mask'; rename it to `attention_mask`.")
        item = item[token_key(item)]
    elif (
        isinstance(item, (list, tuple))
        and item
        and isinstance(item[0], Tensor)
        and item[0].ndim > 1
    ):
        if len(item) > 1:
            raise ValueError(
                f"A batch of the data is a {type(item).__name__} of {len(item)} tensors; expected the tokens "
                "alone, such as (batch[0] for batch in loader), or a dict with an `attention_mask`."
            )
        item = item[0]  # a DataLoader over a TensorDataset
    inputs = as_tensor(item)
    if keep is None:
        return inputs, None
    mask = as_tensor(keep).bool()
    if mask.shape != inputs.shape[:2]:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, but the inputs have {tuple(inputs.shape)}: "
            "expected one entry a token."
        )
    return inputs, None if bool(mask.all()) else mask


def token_key(row: Mapping[str, Any]) -> str:
    for key in ("input_ids", "tokens"):
        if key in row:
            return key
    raise ValueError(
        f"The data has the columns {', '.join(map(repr, row))}; expected `input_ids` or `tokens`: "
        "tokenise text first, for example with transformer_lens.utilities.tokenize_and_concatenate."
    )


def as_tensor(value: Any) -> Tensor:
    if isinstance(value, (str, bytes)):
        raise TypeError(
            "The data holds text; expected token ids: tokenise it first, for example with "
            "transformer_lens.utilities.tokenize_and_concatenate."
        )
    try:
        tensor = torch.as_tensor(value)
        return tensor if tensor.ndim != 1 or tensor.is_floating_point() else tensor[None]
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            "The data has sequences of mixed lengths in one batch and no mask: pad them and pass "
            "dicts with an `attention_mask`, or pass a datasets.Dataset, which is padded here."
        ) from error


def as_list(value: Any) -> list[int]:
    return value.tolist() if hasattr(value, "tolist") else list(value)
