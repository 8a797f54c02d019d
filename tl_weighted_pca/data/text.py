"""Text as sequences of tokens: files, folders and the hub's data sets, streamed."""

from __future__ import annotations

import glob
import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tl_weighted_pca.data.origin import mark_origin
from tl_weighted_pca.support.whole_numbers import checked_count

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_READERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
_FORMS = "a .txt, .jsonl or .parquet file, a folder saved by `datasets`, or a data set on the hub"
_TOKENS = ("input_ids", "tokens")

_EVERY = 10
"""Of so many texts one is held out."""

Part = Literal["all", "train", "heldout"]
"""Of a text: all of it, or what is left of it without every tenth text, or those."""

SampleBy = Literal["line", "paragraph", "document"]
"""What makes a sequence of a .txt file; paragraphs are separated by empty lines."""


def tokenized_text(
    source: str,
    tokenizer: Any,
    context_length: int,
    *,
    column: str | None = None,
    split: str | None = None,
    config: str | None = None,
    sample_by: SampleBy = "paragraph",
    prepend_bos: bool = True,
    part: Part = "all",
) -> Dataset | IterableDataset:
    """Text cut into sequences of at most `context_length` tokens, read as it is used.

    A long text becomes several sequences, each beginning with BOS where `prepend_bos` says so; texts
    are never joined. A data set that has tokens already (`input_ids` or `tokens`) and no text is passed
    on as it is.

    Args:
        source: a .txt, .jsonl or .parquet file, a folder written by `save_to_disk`, or the name of a
            data set on the hub, which is streamed.
        tokenizer: a Hugging Face tokenizer.
        context_length: tokens per sequence, BOS included, at least 2.
        column: which column holds the text; "text" by default.
        split: which split, for a folder or the hub; "train" by default.
        config: which configuration (subset) of a data set on the hub.
        sample_by: for .txt files: what makes a text.
        prepend_bos: begin each sequence with the tokenizer's BOS, if it has one.
        part: "heldout" is every tenth text, or, of fewer texts, every tenth sequence; "train" the rest.

    Raises:
        ValueError: if the source is not there, empty, not UTF-8 or of another kind, or has no such
            column or split.
    """
    check_source(source)
    context_length = checked_count("context_length", context_length, least=2)
    if sample_by not in get_args(SampleBy):
        raise ValueError(
            f"sample_by is {sample_by!r}; expected one of {', '.join(map(repr, get_args(SampleBy)))}."
        )
    with _unlogged():
        rows = _opened(source, split, config, sample_by)
        try:
            first = next(iter(rows), None)
            wanted = column or "text"
            # A missing text says nothing of the column's kind.
            if first is not None and first.get(wanted, "") is None:
                first = next((row for row in rows if row[wanted] is not None), first)
        # pyarrow's errors are ValueErrors, the hub's OSErrors.
        except (OSError, ValueError) as error:
            raise ValueError(f"Cannot read {source}: {reason(error)}") from error
    if first is None:
        raise ValueError(f"{source} is empty: pass text.")
    if wanted not in first:
        if column is None and any(name in first for name in _TOKENS):
            return mark_origin(_some(_part(rows, part), source, part), source)
        raise ValueError(
            f"{source} has no column {wanted!r}; its columns are {', '.join(map(repr, first))}: name "
            "one with --text-column."
        )
    if not isinstance(first[wanted], str):
        raise ValueError(
            f"The column {wanted!r} of {source} holds {type(first[wanted]).__name__}, not text: name "
            "another with --text-column."
        )
    bos = tokenizer.bos_token_id if prepend_bos else None
    by_text = len(list(itertools.islice(rows, _EVERY))) == _EVERY
    cut = partial(
        _sequences, part=part if by_text else "all", source=source, tokenizer=tokenizer,
        column=wanted, length=context_length, bos=bos,
    )  # fmt: skip
    if hasattr(rows, "to_iterable_dataset"):
        rows = rows.to_iterable_dataset()  # which is tokenised as it is read, and leaves no files
    cut_rows = rows.map(cut, batched=True, with_indices=True, remove_columns=list(first))
    if not by_text:
        cut_rows = _part(cut_rows, part)
    return mark_origin(_some(cut_rows, source, part), source, tokenizer)


def check_source(source: str) -> None:
    """Raise ValueError now, before a model is loaded, if a local source cannot be text."""
    path = Path(source)
    if path.exists() and "::" in os.path.abspath(source):
        raise ValueError(
            f"{source} has '::' in its path, which `datasets` takes for a file in another: rename it, or "
            "pass a link to it."
        )
    if path.is_dir():
        if not any(path.joinpath(f).is_file() for f in ("dataset_info.json", "dataset_dict.json")):
            raise ValueError(f"The folder {source} was not saved by `datasets`: expected {_FORMS}.")
        return
    if not path.exists():
        if path.suffix in _READERS or source.startswith((".", "/", "~")):
            raise ValueError(f"There is no file {source}: expected {_FORMS}.")
        return
    if path.suffix not in _READERS:
        raise ValueError(
            f"{source} ends in {path.suffix or 'nothing'}; expected {_FORMS}: rename it if it is one of "
            "these."
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{source} is empty: pass text.")
    with path.open("rb") as file:
        if path.suffix != ".parquet" and b"\0" in file.read(2**16):
            raise ValueError(f"{source} is a binary file, not text: expected {_FORMS}.")


def reason(error: BaseException) -> str:
    """What a library's error says, on one line; a decoding error in words."""
    if isinstance(error, UnicodeDecodeError):
        # Not where: the byte's number is one in some buffer.
        return "it is not UTF-8; convert it, for example with iconv."
    cause = error.__cause__ or error
    text = " ".join(str(cause).strip().split("\n")[0].split())[:300]
    return (text or type(cause).__name__).rstrip(".") + "."


def unknown_share(data: Any, unknown_id: int | None, n_sequences: int = 64) -> float:
    """The share of tokens that stand for words unknown to the tokenizer, in the first sequences."""
    if unknown_id is None:
        return 0.0
    tokens = [
        token
        for _, row in zip(range(n_sequences), data, strict=False)
        for token in row[next(name for name in _TOKENS if name in row)]
    ]
    return sum(int(token) == unknown_id for token in tokens) / max(len(tokens), 1)


def _opened(source: str, split: str | None, config: str | None, sample_by: str) -> Any:
    import datasets

    path = Path(source)
    try:
        if path.is_dir():
            rows = datasets.load_from_disk(source)
            if isinstance(rows, Mapping):
                return _split(rows, split or "train", source)
            return rows
        if path.is_file():
            # Some editors begin a file with a byte-order mark, which is no part of the text.
            text = {"sample_by": sample_by, "encoding": "utf-8-sig"}
            options = text if path.suffix == ".txt" else {}
            # The name as it is: `datasets` reads a pattern in it, and takes `::` for one path in another.
            place = glob.escape(os.path.abspath(source))
            return datasets.load_dataset(
                _READERS[path.suffix], data_files=place, split="train", streaming=True, **options
            )
        return datasets.load_dataset(source, config, split=split or "train", streaming=True)
    # All that `datasets` and the hub raise for what cannot be found, reached or read.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if path.exists():
            raise ValueError(f"Cannot read {source}: {reason(error)}") from error
        raise ValueError(
            f"Cannot load the data set {source!r} from the hub: {reason(error)} Check the name, --split, "
            "--dataset-config and the network, or pass a local file."
        ) from error


@contextmanager
def _unlogged() -> Iterator[None]:
    """`datasets` logs what it also raises; here what it raises is reported."""
    logger = logging.getLogger("datasets")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _split(splits: Mapping[str, Any], split: str, source: str) -> Any:
    if split not in splits:
        raise ValueError(
            f"{source} has no split {split!r}; it has {', '.join(map(repr, splits))}: name one with "
            "--split."
        )
    return splits[split]


def _belongs(place: int, part: Part) -> bool:
    """Whether the text or sequence of that number is in the part."""
    return part == "all" or (place % _EVERY == _EVERY - 1) == (part == "heldout")


def _part(rows: Any, part: Part) -> Any:
    if part == "all":
        return rows
    if hasattr(rows, "to_iterable_dataset"):
        return rows.select([i for i in range(len(rows)) if _belongs(i, part)])
    return rows.filter(lambda _, i: _belongs(i, part), with_indices=True)


def _some(rows: Any, source: str, part: Part) -> Any:
    """The rows, if what was held out is not nothing."""
    if part == "heldout" and next(iter(rows), None) is None:
        raise ValueError(
            f"{source} has fewer than {_EVERY} sequences, and so none is held out: pass other text."
        )
    return rows


def _sequences(
    rows: Mapping[str, list[str]],
    places: list[int],
    *,
    source: str,
    part: Part,
    tokenizer: Any,
    column: str,
    length: int,
    bos: int | None,
) -> dict[str, list[list[int]]]:
    """A batch of texts as sequences of tokens."""
    for place, text in zip(places, rows[column], strict=True):
        if text is not None and not isinstance(text, str):
            raise TypeError(
                f"Row {place} of {source} holds {text!r:.60} in the column {column!r}; expected text: leave "
                "such rows out."
            )
    texts = [
        text
        for place, text in zip(places, rows[column], strict=True)
        if text and _belongs(place, part)
    ]
    if not texts:
        return {"input_ids": []}
    # Not verbose: that a text is longer than the model's context is no news here.
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    head = [] if bos is None else [bos]
    step = length - len(head)
    pieces = (
        head + ids[start : start + step] for ids in encoded for start in range(0, len(ids), step)
    )
    # In a token on its own there is nothing to predict.
    return {"input_ids": [piece for piece in pieces if len(piece) > 1]}
