"""Batches of sequences out of tensors, loaders, iterables and Hugging Face datasets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from tl_weighted_pca.data.columns import row_of, row_sizes, token_ids, unpacked
from tl_weighted_pca.data.origin import Origin
from tl_weighted_pca.data.sharding import Shard
from tl_weighted_pca.support.whole_numbers import checked_count

_WINDOW = 64
"""Sequences of mixed lengths are sorted within this many batches, so that little is padding."""


class EmptyDataError(ValueError):
    """No sequence at all."""


@dataclass(frozen=True)
class Batch:
    """Sequences to feed to a model together."""

    inputs: Shaped[Tensor, "batch ..."]
    """Token ids [batch, pos], or whatever else the model takes."""
    mask: Bool[Tensor, "batch pos"] | None
    """True at real tokens; None where there is no padding."""
    sequence_index: Int[Tensor, " batch"]
    """The place of each sequence in the data, whatever the batch size: it seeds what is random."""
    vocabularies: frozenset[str] = frozenset()
    """Digests of the vocabularies that the tokens are of, where the data say it."""
    n_left: int | None = None
    """Real tokens of the batches after this one, where that is known by now."""

    @property
    def n_tokens(self) -> int:
        """Real tokens; for inputs without positions, sequences."""
        if self.mask is not None:
            return int(self.mask.sum())
        return len(self.inputs) * tokens_of_a_row(self.inputs)


def tokens_of_a_row(inputs: Tensor) -> int:
    """How many positions each row of inputs has; one, where it is a vector."""
    is_vectors = inputs.ndim < 2 or (inputs.ndim == 2 and inputs.is_floating_point())
    return 1 if is_vectors else inputs.shape[1]


def batches(
    data: Any, batch_size: int = 16, *, max_tokens: int | None = None, may_be_empty: bool = True
) -> Iterator[Batch]:
    """Cut data into batches.

    Args:
        data: a tensor [n, ...]; a DataLoader or any iterable of [batch, pos] tensors, or of dicts with
            `input_ids` or `tokens` and perhaps `attention_mask` (these keep their own batches; what has
            one dimension is a batch of one sequence); or
            a `datasets.Dataset` or `IterableDataset` with such columns, of any lengths; or a `shard`
            of any of these, which may be empty.
        batch_size: sequences per batch, where the data comes in single sequences.
        max_tokens: stop before exceeding so many real tokens: before the sequence that would, or the
            batch, where the data come in batches of their own. The first is given, however long.
        may_be_empty: a share of data; other data never may.

    Raises:
        TypeError: for data of another kind.
        ValueError: for a batch size or a limit that is not a whole number above zero, empty data, data that
            cannot be read, or sequences of mixed lengths in one batch with no mask.
    """
    batch_size = checked_count("batch_size", batch_size)
    if max_tokens is not None:
        max_tokens = checked_count("max_tokens", max_tokens)
    n_tokens = n_batches = 0
    of = Origin.of(data).vocabularies
    for batch in _all_batches(data, batch_size, max_tokens):
        n_batches += 1
        if max_tokens is not None:
            n_tokens += batch.n_tokens
            if n_tokens > max_tokens and n_batches > 1:
                return
        yield replace(batch, vocabularies=of) if of else batch
    if n_batches:
        return
    if not is_share(data):
        again = "" if is_rereadable(data) else " (What can be read only once is empty afterwards.)"
        raise EmptyDataError(f"The data is empty: pass at least one sequence.{again}")
    if not may_be_empty:
        raise ValueError(
            "This process's share of the data is empty: use fewer processes, or more sequences."
        )


def is_share(data: Any) -> bool:
    """Whether the data are one share of several."""
    return Shard.of(data).world_size > 1


def is_one_shot(data: Any) -> bool:
    """Whether data, or the whole of a share, can be read only once: an iterator, such as a generator."""
    return isinstance(Shard.of(data).data, Iterator)


def is_rereadable(data: Any) -> bool:
    """Whether data can certainly be read more than once: a loader may be of an iterator, and not say so."""
    return isinstance(data, (Tensor, Sequence)) or _is_hugging_face(data)


def check_rereadable(data: Any, why: str) -> None:
    """Raise ValueError for data that can be read only once, where they are read more often."""
    if is_one_shot(data):
        kind = type(Shard.of(data).data).__name__
        raise ValueError(
            f"The data is a {kind}, which can be read only once, but {why}: pass a tensor, a dataset, or "
            "list(data)."
        )


def count_tokens(data: Any, max_tokens: int | None = None) -> int | None:
    """The number of real tokens in the data, up to the limit, where that can be told unread."""
    if max_tokens is not None:
        max_tokens = checked_count("max_tokens", max_tokens)
    share = Shard.of(data)
    if isinstance(share.data, Tensor) and share.data.ndim:
        if share.data.ndim == 1 and not share.data.is_floating_point():
            return len(share.data)  # one sequence
        rows = len(share.rows(len(share.data)))
        each = tokens_of_a_row(share.data)
        if max_tokens is not None:
            rows = min(rows, max(1, max_tokens // max(1, each)))
        return rows * each
    sizes = row_sizes(share.data) if _is_table(share.data) else None
    if sizes is None:
        return None
    sums = sizes[share.rows(len(sizes))].cumsum(0)
    if max_tokens is not None and len(sums):
        sums = sums[: max(1, int((sums <= max_tokens).sum()))]
    return int(sums[-1]) if len(sums) else 0


def count_batches(data: Any, batch_size: int) -> int | None:
    """The number of batches in the data, where it can be told unread."""
    batch_size = checked_count("batch_size", batch_size)
    share = Shard.of(data)
    try:
        count = len(share.data)
    except TypeError:  # a stream
        return None
    by_rows = isinstance(share.data, Tensor) or _is_table(share.data)
    return -(-len(share.rows(count)) // batch_size) if by_rows else len(share.rows(count))


def _all_batches(data: Any, batch_size: int, max_tokens: int | None) -> Iterator[Batch]:
    share = Shard.of(data)
    data = share.data
    if isinstance(data, Tensor):
        if data.ndim == 0:
            raise ValueError("The data is a single number; expected a tensor [n, pos] of tokens.")
        if data.ndim == 1 and not data.is_floating_point():
            data = data[None]
        mine = share.rows(len(data))
        if max_tokens is not None:
            mine = mine[: max(1, max_tokens // max(1, tokens_of_a_row(data)))]
        for start in mine[::batch_size]:
            chunk = data[start : min(start + batch_size, mine.stop)]
            yield Batch(
                token_ids(chunk), None, torch.arange(start, start + len(chunk), device="cpu")
            )
    elif _is_hugging_face(data) and not isinstance(data, Mapping):
        yield from _from_rows(_limited(_numbered_rows(share), max_tokens), batch_size)
    elif isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise TypeError(
            f"The data is a {type(data).__name__}; expected a tensor [n, pos] of tokens, a DataLoader, "
            "an iterable of batches (a list, if it is one), or a datasets.Dataset with a column `input_ids` "
            "or `tokens`."
        )
    else:
        start = 0
        for turn, item in enumerate(data):
            if isinstance(item, Batch):  # already cut, and numbered
                yield item
                continue
            inputs, mask = unpacked(item)
            if len(inputs) and turn % share.world_size == share.rank:
                yield Batch(inputs, mask, torch.arange(start, start + len(inputs), device="cpu"))
            start += len(inputs)


def _is_hugging_face(data: Any) -> bool:
    # Told by module, so that `datasets` is imported only by those who use it.
    return any(cls.__module__.split(".")[0] == "datasets" for cls in type(data).__mro__)


def _is_table(data: Any) -> bool:
    """Whether this is a `datasets.Dataset`, whose rows can be counted, and not a stream of them."""
    return _is_hugging_face(data) and not isinstance(data, Mapping) and hasattr(data, "__len__")


_Row = tuple[int, Int[Tensor, " pos"], Bool[Tensor, " pos"] | None]
"""A sequence's place in the whole data, its tokens, and its attention mask."""


def _numbered_rows(share: Shard) -> Iterator[_Row]:
    dataset, first, step = share.data, 0, 1
    source = Origin.of(dataset).source
    if _is_table(dataset):  # a run of it
        mine = share.rows(len(dataset))
        if not mine:
            return
        first, dataset = mine.start, dataset.select(mine) if share.world_size > 1 else dataset
    else:
        # Every process reads the whole stream. `datasets` would deal out files instead, each process its
        # own: quicker, but what `take`, `skip` or a filter by number lets through is then another share of
        # the rows in each.
        first, step = share.rank, share.world_size
    rows = itertools.islice(_read(dataset, source), 0 if step == 1 else first, None, step)
    for number, row in zip(itertools.count(first, step), rows, strict=False):
        yield number, *row_of(row, f"Row {number} of {source}")


def _read(dataset: Any, source: str) -> Iterator[Any]:
    """The rows; errors within a file or a download say where."""
    rows, n_read = iter(dataset), 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        # pyarrow's errors and those of decoding are ValueErrors, the hub's OSErrors.
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Row {n_read} of {source} cannot be read: {str(error).rstrip('.')}. What was collected "
                "until there is kept; mend the data, or stop before with max_tokens."
            ) from error
        n_read += 1
        yield row


def _limited(rows: Iterator[_Row], max_tokens: int | None) -> Iterator[_Row]:
    """The first rows, of so many tokens. Before they are sorted: else the shortest alone were left."""
    n_tokens = 0
    for place, row in enumerate(rows):
        n_tokens += _n_real(row)
        if max_tokens is not None and n_tokens > max_tokens and place:
            return
        yield row


def _n_real(row: _Row) -> int:
    return len(row[1]) if row[2] is None else int(row[2].sum())


def _from_rows(rows: Iterator[_Row], batch_size: int) -> Iterator[Batch]:
    """Batches of single sequences, those of a window sorted by length, padded on the right."""
    lengths: set[int] = set()
    while window := list(itertools.islice(rows, batch_size * _WINDOW)):
        left = sum(map(_n_real, window)) if len(window) < batch_size * _WINDOW else None
        lengths.update(len(tokens) for _, tokens, _ in window)
        mixed = len(lengths) > 1
        if mixed:
            window.sort(key=lambda row: len(row[1]))
        for start in range(0, len(window), batch_size):
            chunk = window[start : start + batch_size]
            # A row of one token has nothing to predict, alone as among longer ones: padding says so.
            longest = max(*(len(tokens) for _, tokens, _ in chunk), 2 if mixed else 0)
            inputs = torch.zeros(len(chunk), longest, dtype=torch.long, device="cpu")
            mask = torch.zeros(len(chunk), longest, dtype=torch.bool, device="cpu")
            for i, (_, tokens, keep) in enumerate(chunk):
                inputs[i, : len(tokens)] = tokens
                mask[i, : len(tokens)] = True if keep is None else keep
            index = torch.tensor([number for number, _, _ in chunk], device="cpu")
            batch = Batch(inputs, None if bool(mask.all()) else mask, index)
            left = None if left is None else left - batch.n_tokens
            yield replace(batch, n_left=left)
