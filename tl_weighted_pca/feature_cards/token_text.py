"""Tokens as text that can be seen, spaces and line ends included."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

_SIGNS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}


class TokenText:
    """Token ids as strings, each asked of the tokenizer once.

    Args:
        tokenizer: of Hugging Face's kind, or None for numbers.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is not None and not hasattr(tokenizer, "get_vocab"):
            raise TypeError(
                f"The tokenizer is a {type(tokenizer).__name__}; expected one of Hugging Face's, or None."
            )
        self._tokenizer = tokenizer
        # Not len(tokenizer): where numbers are left out, the largest lies past it.
        self._largest = -1 if tokenizer is None else max(tokenizer.get_vocab().values(), default=-1)
        self._known: dict[int, str] = {}

    def __call__(self, ids: Iterable[int]) -> list[str]:
        return [self._one(int(number)) for number in ids]

    def _one(self, number: int) -> str:
        if number not in self._known:
            self._known[number] = self._asked(number)
        return self._known[number]

    def _asked(self, number: int) -> str:
        # A model's vocabulary is often padded past its tokenizer's, where some tokenizers raise.
        piece = None
        if number <= self._largest:
            piece = self._tokenizer.convert_ids_to_tokens(number)
        if piece is None:
            return f"#{number}"
        text = self._tokenizer.decode([number], clean_up_tokenization_spaces=False)
        if not text or "\ufffd" in text:  # a part of a character
            return piece
        # SentencePiece drops the space before the first word of what it decodes.
        return " " + text if piece.startswith("▁") and not text[0].isspace() else text


def visible(text: str) -> str:
    """Text in which every character shows: spaces as ␣, line ends as ⏎, what has no shape by its number.

    Marks that change the direction of writing are such, so that a token cannot rearrange a page.
    """
    return "".join(_SIGNS.get(c) or (_number(c) if _hidden(c) else c) for c in text)


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp")


def _number(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
