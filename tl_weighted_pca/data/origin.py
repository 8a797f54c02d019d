"""What a data set says of where it came from: its file, and the vocabulary that its tokens are of.

Ids of another vocabulary are valid numbers all the same, and would go unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tl_weighted_pca.data.sharding import Shard

_SOURCE = "tl_weighted_pca: read from "


@dataclass(frozen=True)
class Origin:
    """Where data came from, as far as they say it."""

    source: str = "the data"
    """The file, for messages."""
    vocabularies: frozenset[str] = frozenset()
    """Digests of the vocabularies that the tokens are of."""

    @classmethod
    def of(cls, data: Any) -> Origin:
        """What data note about themselves."""
        data = Shard.of(data).data
        data = getattr(data, "dataset", data)  # of a DataLoader
        about = getattr(getattr(data, "info", None), "description", None)
        if not isinstance(about, str):
            return cls()
        from tl_weighted_pca.embedded.vocabulary import vocabulary_mark  # few need that room

        vocabulary = vocabulary_mark("")
        found = {
            mark: {line.removeprefix(mark) for line in about.splitlines() if line.startswith(mark)}
            for mark in (_SOURCE, vocabulary)
        }
        source = " and ".join(sorted(found[_SOURCE])) or cls.source
        return cls(source, frozenset(found[vocabulary]))


def mark_origin(dataset: Any, source: str, tokenizer: Any = None) -> Any:
    """The Hugging Face data set, which notes its file and the vocabulary of its tokenizer from then on.

    The note stays whatever is selected, filtered or mapped later. Tensors have none, nor has what
    `to_iterable_dataset` gives, which keeps the features alone.
    """
    about = [dataset.info.description or "", f"{_SOURCE}{' '.join(source.split())}"]
    if digest := vocabulary_of(tokenizer):
        from tl_weighted_pca.embedded.vocabulary import vocabulary_mark

        about.append(vocabulary_mark(digest))
    dataset.info.description = "\n".join(filter(None, about))
    return dataset


def vocabulary_of(tokenizer: Any) -> str:
    """The digest of a tokenizer's vocabulary; empty where there is none."""
    if not hasattr(tokenizer, "get_vocab"):
        return ""
    return _digest(tokenizer, len(tokenizer))  # which grows where tokens are added


@lru_cache(maxsize=8)
def _digest(tokenizer: Any, size: int) -> str:
    from tl_weighted_pca.embedded.vocabulary import vocabulary_digest

    return vocabulary_digest(tokenizer.get_vocab())
