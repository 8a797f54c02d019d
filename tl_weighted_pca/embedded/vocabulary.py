"""The vocabulary, as the tokenizer's file has it: the stories need no tokenizer library."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

BOS, EOS, PAD, UNK = SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>", "<unk>")

MODEL_FOLDER = Path(__file__).parent / "gpt2-stories"
"""Where the model and its tokenizer lie, in Hugging Face format."""

SLIPS_FOLDER = MODEL_FOLDER.with_name("gpt2-slips")
"""The same for the model of noisy stories."""


@lru_cache(maxsize=4)
def vocabulary(folder: Path = MODEL_FOLDER) -> dict[str, int]:
    """Token ids by token; a word has the space before it as part of its token."""
    with open(folder / "tokenizer.json", encoding="utf-8") as file:
        return json.load(file)["model"]["vocab"]


def token_ids(tokens: Iterable[str], ids: dict[str, int] | None = None) -> list[int]:
    """The ids of ``tokens``, between those of BOS and EOS."""
    ids = vocabulary() if ids is None else ids
    return [ids[BOS], *(ids[token] for token in tokens), ids[EOS]]


def vocabulary_digest(ids: Mapping[str, int]) -> str:
    """Twelve characters that another vocabulary would change."""
    told = json.dumps(sorted(ids.items()))
    return hashlib.blake2b(told.encode(), digest_size=6).hexdigest()


def vocabulary_mark(digest: str) -> str:
    """What a data set's description says of the vocabulary that its tokens are of."""
    return f"tl_weighted_pca: tokens of the vocabulary {digest}"
