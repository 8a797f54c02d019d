"""Telling a text left to right by weighted choices, with the exact surprisal of every token."""

import math
import re
from collections.abc import Callable, Sequence, Set
from functools import lru_cache
from typing import NamedTuple

TOKEN = re.compile(r" ?[A-Za-z]+|[^A-Za-z]")
"""One token: a word with the space before it, or one other character."""

_FIELD = re.compile(r"( ?)\{(\w+)(:?)(\w*)\}")

Pick = Callable[[Sequence[float]], int]


class Form(NamedTuple):
    """A way to begin a sentence; ``{fact}`` stands for a word that was settled earlier.

    ``{name}`` marks its token as carrying the fact of that name, ``{name:fact}`` as carrying
    another fact, ``{name:}`` as carrying none. What follows ``start`` is up to the caller, who may
    keep the topic, the thing chosen, the words of a further choice and the sentence's end here.
    """

    start: str
    weight: int
    topic: str = ""
    choice: str = ""
    inner: tuple[str, ...] | None = None
    end: str = ""


class Teller:
    """Collects the tokens of a text together with what is known about them.

    ``tokens`` are the pieces of text; ``surprisal`` their exact −log p given all earlier tokens, in
    nats; ``entropy`` the −log p of the choices made (the same sum by another route); ``carried``
    the facts that determine a token, as pairs (index into ``tokens``, fact).

    Words are only ever settled where they are told, and no wording that can be chosen at a point
    is the beginning of another one there (this is checked). So a text stands for one sequence of
    choices only, and the probability of a token is a ratio of sums of weights at a single choice.

    A teller with ``slips`` above 0 slips now and then: with this probability a token that is certain
    is told as any other of ``words``, which means nothing, and a word that is chosen is any of
    ``words`` not yet told (there must be some), which the text keeps to. So nothing is ever certain.
    """

    def __init__(self, pick: Pick, slips: float = 0.0, words: Sequence[str] = ()) -> None:
        self.pick = pick
        self.slips = slips
        self.words = words
        self.tokens: list[str] = []
        self.surprisal: list[float] = []
        self.entropy = 0.0
        self.facts: dict[str, str] = {}
        self.carried: list[tuple[int, str]] = []

    def say(self, form: str) -> None:
        """Tell what is certain."""
        for token, fact in self._fill(form):
            self._put(token, 0.0, fact)

    def word(self, words: Sequence[str], closed: bool = False) -> str:
        """Tell one of ``words``, different single tokens and equally likely, after a space.

        Where the choice is ``closed``, because something hangs on it, it is never a slip.
        """
        surprisal = math.log(len(words))
        if self.slips and not closed:
            slips, certainty = self._slip({token[1:] for token in self.tokens}.union(words))
            words, surprisal = (slips, certainty) if slips else (words, surprisal + certainty)
        chosen = words[self.pick([1] * len(words))]
        self.entropy += surprisal
        self.tokens.append(" " + chosen)
        self.surprisal.append(surprisal)
        return chosen

    def _slip(self, unless: Set[str]) -> tuple[list[str], float]:
        """The words that a slip may give, or none if there is no slip, and the −log p of that."""
        if self.pick((self.slips, 1 - self.slips)):
            return [], -math.log(1 - self.slips)
        slips = [word for word in self.words if word not in unless]
        return slips, -math.log(self.slips / len(slips))

    def _put(self, token: str, surprisal: float, fact: str) -> None:
        """Add a token, and the fact that makes it certain if it is; or a slip instead."""
        if surprisal > 0:
            fact = ""
        elif self.slips:
            slips, surprisal = self._slip({token[1:]})
            if slips:
                token, fact = " " + slips[self.pick([1] * len(slips))], ""
            self.entropy += surprisal
        if fact:
            self.carried.append((len(self.tokens), fact))
        self.tokens.append(token)
        self.surprisal.append(surprisal)

    def tell(self, *forms: Form) -> Form:
        """Tell one of ``forms`` with a probability proportional to its weight."""
        chosen = self.pick([form.weight for form in forms])
        total = sum(form.weight for form in forms)
        self.entropy += math.log(total / forms[chosen].weight)
        said = self._fill(forms[chosen].start)
        # Most rivals differ in the first token; filling in only the others saves half of the time.
        rivals = [
            (self._fill(form.start), form.weight)
            for form in forms
            if self._first(form.start) == said[0][0]
        ]
        for place, (token, fact) in enumerate(said):
            if any(len(other) == place for other, _ in rivals):
                raise ValueError(f"a choice begins another one: {[form.start for form in forms]}")
            if len(rivals) > 1:
                rivals = [rival for rival in rivals if rival[0][place][0] == token]
            before, total = total, sum(weight for _, weight in rivals)
            self._put(token, math.log(before / total), fact)
        if len(rivals) > 1:
            raise ValueError(f"a choice begins another one: {[form.start for form in forms]}")
        return forms[chosen]

    def _first(self, form: str) -> str:
        """The first token of ``form``; no fact of several words may stand there."""
        before, name, _ = _parse(form)[0]
        return before + self.facts[name] if name else before

    def _fill(self, form: str) -> list[tuple[str, str]]:
        """Tokens of ``form`` with the facts put in, each with the fact it carries, or ""."""
        filled = []
        for before, name, fact in _parse(form):
            if not name:
                filled.append((before, ""))
            elif (word := self.facts[name]).isalpha():
                filled.append((before + word, fact))
            else:
                filled += ((token, fact) for token in TOKEN.findall(before + word))
        return filled


@lru_cache(maxsize=8192)
def _parse(form: str) -> tuple[tuple[str, str, str], ...]:
    """Split into triples: a token and two empty strings, or a space, a name and a fact."""
    parsed: list[tuple[str, str, str]] = []
    literal, *fields = _FIELD.split(form)
    parsed += ((token, "", "") for token in TOKEN.findall(literal))
    for space, name, colon, fact, literal in zip(*(fields[i::5] for i in range(5)), strict=True):
        parsed.append((space, name, fact if colon else name))
        parsed += ((token, "", "") for token in TOKEN.findall(literal))
    return tuple(parsed)
