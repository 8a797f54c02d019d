"""The columns of a batch or a row, as data sets and loaders name them: tokens, and their mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_SMALL = (torch.int8, torch.int16, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
"""Integers that an embedding takes for no indices."""

_IGNORED: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "labels": ("the tokens themselves", lambda tokens, real: tokens),
    "position_ids": ("0, 1, 2, … of each sequence", lambda tokens, real: real.cumsum(-1) - 1),
    "token_type_ids": ("0", lambda tokens, real: torch.zeros_like(tokens)),
    **dict.fromkeys(
        ("loss_mask", "completion_mask", "assistant_masks"),
        ("1", lambda tokens, real: torch.ones_like(tokens)),
    ),
}
"""Columns that nothing here reads, and what each must hold at real tokens to change nothing."""


def unpacked(item: Any) -> tuple[Tensor, Tensor | None]:
    """Inputs and mask of one batch, as an iterable gave it."""
    columns: Mapping[str, Any] = {}
    if isinstance(item, Mapping):
        columns = item
        item = columns[token_key(columns)]
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
    mask = _mask_of(columns, inputs)
    _check_ignored(columns, inputs, mask)
    return inputs, None if mask is None or bool(mask.all()) else mask


def row_of(columns: Mapping[str, Any], place: str) -> tuple[Tensor, Tensor | None]:
    """The tokens and the mask of one row of a data set; `place` is what errors call it.

    Raises:
        ValueError: if the row holds no list of token ids, no mask of them, or a column that changes
            the result and is not read.
    """
    value = columns[token_key(columns)]
    try:
        tokens = torch.as_tensor(value, device=getattr(value, "device", "cpu"))
    except (TypeError, ValueError, RuntimeError):
        tokens = None
    if tokens is None or tokens.ndim != 1 or not len(tokens) or not _is_whole(tokens):
        shown = f"{value!r:.60}"
        if tokens is not None:
            kind = f"{str(tokens.dtype).removeprefix('torch.')} of shape {tuple(tokens.shape)}"
            shown = kind if tokens.numel() else "no tokens"
        raise ValueError(
            f"{place} holds {shown}; expected a list of token ids: leave such rows out, for example with "
            "the data set's own `filter`."
        )
    tokens = token_ids(tokens)
    try:
        mask = _mask_of(columns, tokens)
        _check_ignored(columns, tokens, mask)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return tokens, mask


def row_sizes(table: Any) -> Int[Tensor, " n"] | None:
    """The number of real tokens in each row of a `datasets.Dataset`, where its columns say it unread."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = [n for n in ("input_ids", "tokens") if n in table.column_names][:1]
    if not names or table.format["type"] == "custom":  # what a transform gives is known to it alone
        return None
    names += [n for n in ("attention_mask",) if n in table.column_names]
    sizes = [torch.zeros(0, dtype=torch.long, device="cpu")]
    for part in table.select_columns(names).with_format("arrow").iter(10_000):
        columns = [part.column(name).combine_chunks() for name in names]
        if any(c.null_count or not pa.types.is_list(c.type) for c in columns):
            return None
        lengths = _whole(pc.list_value_length(columns[0]))
        if len(columns) == 1:
            sizes.append(lengths)
            continue
        kept = _whole(pc.list_flatten(columns[1]))
        if len(kept) != int(lengths.sum()):
            return None
        ends, sums = lengths.cumsum(0), torch.cat([sizes[0].new_zeros(1), kept.cumsum(0)])
        sizes.append(sums[ends] - sums[ends - lengths])
    return torch.cat(sizes)


def token_key(row: Mapping[str, Any]) -> str:
    """The name of the column of tokens."""
    for key in ("input_ids", "tokens"):
        if key in row:
            return key
    raise ValueError(
        f"The data has the columns {', '.join(map(repr, row))}; expected `input_ids` or `tokens`: "
        "tokenise text first, for example with transformer_lens.utilities.tokenize_and_concatenate."
    )


def token_ids(inputs: Tensor) -> Tensor:
    """Tokens of any integer type as ones that an embedding takes; other tensors as they are."""
    if inputs.dtype is torch.bool:
        raise TypeError("The data are True and False; expected token ids.")
    return inputs.long() if inputs.dtype in _SMALL else inputs


def as_tensor(value: Any) -> Tensor:
    """A batch as a tensor; one sequence of tokens as a batch of one."""
    if isinstance(value, (str, bytes)):
        raise TypeError(
            "The data holds text; expected token ids: tokenise it first, for example with "
            "transformer_lens.utilities.tokenize_and_concatenate."
        )
    try:
        tensor = torch.as_tensor(value, device=getattr(value, "device", "cpu"))
    except (ValueError, RuntimeError, TypeError) as error:
        rows = value if isinstance(value, (list, tuple)) else ()
        lengths = {len(row) for row in rows if hasattr(row, "__len__")}
        if len(lengths) < 2:
            raise ValueError(
                f"A batch of the data is {value!r:.60}; expected token ids [batch, pos]."
            ) from error
        raise ValueError(
            "The data has sequences of mixed lengths in one batch and no mask: pad them and pass "
            "dicts with an `attention_mask`, or pass a datasets.Dataset, which is padded here."
        ) from error
    tensor = token_ids(tensor)
    if tensor.ndim == 0:
        raise ValueError(
            f"A batch of the data is the number {value}; expected token ids [batch, pos]."
        )
    return tensor if tensor.ndim != 1 or tensor.is_floating_point() else tensor[None]


def _whole(array: Any) -> Int[Tensor, " n"]:
    return torch.tensor(array.to_numpy(zero_copy_only=False), dtype=torch.long, device="cpu")


def _is_whole(tokens: Tensor) -> bool:
    return not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype is torch.bool)


def _mask_of(
    columns: Mapping[str, Any], inputs: Int[Tensor, "*batch pos"]
) -> Bool[Tensor, "*batch pos"] | None:
    """True at real tokens; None where there is no mask.

    Raises:
        ValueError: for a mask by another name, of another shape, or of other values than 0 and 1.
    """
    keep = columns.get("attention_mask")
    if keep is None:
        if "mask" in columns:
            raise ValueError("The data has a column 'mask'; rename it to `attention_mask`.")
        return None
    mask = torch.as_tensor(keep, device=getattr(keep, "device", "cpu"))
    if mask.ndim == 1 and inputs.ndim == 2:
        mask = mask[None]  # of the one sequence
    # Activations [batch, pos, d] have one entry a position too.
    shape = inputs.shape[:2] if inputs.ndim > 1 else inputs.shape
    if mask.shape != shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, but the inputs have {tuple(inputs.shape)}: "
            "expected one entry per token."
        )
    other = mask[(mask != 0) & (mask != 1)]
    if other.numel() or (mask.is_floating_point() and not mask.any()):
        held = f"{float(other[0]):g}" if other.numel() else "nothing but 0.0"
        raise ValueError(
            f"attention_mask holds {held}; expected 1 at real tokens and 0 at padding. (A mask that is added "
            "to scores is 0 where this is 1.)"
        )
    return mask.bool()


def _check_ignored(columns: Mapping[str, Any], inputs: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError for a column that nothing reads, and that would change the result if it were read."""
    for name in _IGNORED.keys() & columns.keys():
        if columns[name] is None:
            continue
        value = columns[name]
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, str):  # the name of a class
            continue
        value = torch.as_tensor(value, device=getattr(value, "device", "cpu"))
        if value.ndim < inputs.ndim:  # one a sequence, such as its class
            continue
        real = torch.ones_like(inputs, dtype=torch.bool) if mask is None else mask
        what, neutral = _IGNORED[name]
        expected = neutral(inputs, real)
        if value.shape != inputs.shape or bool((value != expected)[real].any()):
            raise ValueError(
                f"The data has a column {name!r} that differs from {what}, and it is not read: drop it, and "
                "leave tokens out with `attention_mask`, `positions` or an objective of your own."
            )
