"""Tokens as text that can be seen, spaces and line ends included."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

_SIGNS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}

_DRAWN_AS_NOTHING = {
    *map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F)),
    *map(chr, (0x2800, 0x3164, *range(0xFE00, 0xFE10), 0xFFA0, *range(0xE0100, 0xE01F0))),
}
"""Unicode's Default_Ignorable letters and marks, and the blank of Braille: no category tells them."""


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

    Marks that change the direction of writing are such, so that a token cannot rearrange a page. The
    selector after a symbol, as in ❤️, stays: it says how the symbol looks.
    """
    pairs = zip(" " + text, text, strict=False)
    return "".join(_SIGNS.get(c) or (_number(c) if _hidden(c, last) else c) for last, c in pairs)


def _hidden(character: str, last: str) -> bool:
    if character in "\ufe0e\ufe0f" and unicodedata.category(last) == "So":
        return False
    without_shape = ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp")
    return character in _DRAWN_AS_NOTHING or unicodedata.category(character) in without_shape


def _number(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
