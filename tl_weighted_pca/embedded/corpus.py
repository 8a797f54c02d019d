"""The stories as a data set: two endless streams that share no story."""

import random
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from .grammar import FACTS, Cast, opening, tell_story
from .teller import Teller
from .vocabulary import (
    BOS,
    EOS,
    token_ids,
    vocabulary,
    vocabulary_digest,
    vocabulary_mark,
)

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "heldout"]
SIZES: dict[Split, int] = {"train": 20_000, "heldout": 1_000}
SLIPS = 0.08
"""How likely a teller who slips does so, at each word."""

_SEEDS: dict[Split, int] = {"train": 20, "heldout": 21}


class Story(NamedTuple):
    """One story. ``tokens``, ``input_ids`` and ``surprisal`` begin with BOS and end with EOS."""

    tokens: tuple[str, ...]
    input_ids: list[int]
    surprisal: list[float]
    entropy: float
    facts: dict[str, str]
    fact_positions: list[int]
    fact_kinds: list[str]

    @property
    def text(self) -> str:
        return "".join(self.tokens[1:-1])


def is_heldout(cast: Cast) -> bool:
    """Whether stories about these children at this place are kept from training.

    The split goes by the cast and not by the whole text: a held-out story has no cast that was seen
    in training, in whichever order the friends are named, and a story for the other split is turned
    down after its first sentence.
    """
    key = " ".join((cast.who, *sorted(cast.friends), cast.place))
    return zlib.crc32(key.encode()) % 8 == 0


def told(split: Split, slips: bool = False) -> Iterator[Teller]:
    """The told stories of a split without end, in an order that never changes."""
    # random() of an integer seed is the one generator Python promises to keep as it is.
    uniform = random.Random(_SEEDS[split]).random

    def pick(weights: Sequence[float]) -> int:
        left = uniform() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return len(weights) - 1

    words = sorted(token[1:] for token in vocabulary() if token.startswith(" ")) if slips else ()
    seen: set[int] = set()
    while True:
        teller = Teller(pick, SLIPS if slips else 0.0, words)
        cast = opening(teller)
        if is_heldout(cast) != (split == "heldout"):
            continue
        tell_story(teller, cast)
        key = zlib.crc32("".join(teller.tokens).encode())
        if key not in seen:
            seen.add(key)
            yield teller


def stream(split: Split, slips: bool = False) -> Iterator[Story]:
    """The stories of a split without end."""
    for teller in told(split, slips):
        yield Story(
            tokens=(BOS, *teller.tokens, EOS),
            input_ids=token_ids(teller.tokens),
            surprisal=[0.0, *teller.surprisal, 0.0],
            entropy=teller.entropy,
            facts={fact: teller.facts[fact] for fact in FACTS},
            # One further on: BOS comes first.
            fact_positions=[position + 1 for position, _ in teller.carried],
            fact_kinds=[fact for _, fact in teller.carried],
        )


def stories(split: Split = "train", n: int | None = None, *, slips: bool = False) -> "Dataset":
    """The first ``n`` stories of a split (default: 20,000 of ``train``, 1,000 of ``heldout``).

    The same stories every time, generated and not stored: the streams have no end, and a smaller
    ``n`` gives the beginning of a larger one. No story is in both splits, nor twice in one.

    With ``slips`` they are other stories, told by someone who is never quite reliable: at each word,
    with probability 0.08, any word of the vocabulary is told instead (of those that the plot hangs
    on, which of two things is taken and what is promised or wished, none is). Where the word was
    certain a slip means nothing; where it was free the story keeps to it.

    Columns, one row a story of S tokens:

    - ``text``, and ``input_ids`` [S], which begin with BOS and end with EOS;
    - one column for each name in ``FACTS``: what is latent in the story, as a string;
    - ``surprisal`` [S]: the exact −log p of each token given the earlier ones under the grammar, in
      nats (0 for BOS), and ``entropy``, −log p of the story, which is their sum;
    - ``fact_positions``: the positions in ``input_ids`` of the tokens that follow with certainty
      (but for slips) from a remembered fact (predict them from the position before);
      ``fact_kinds``: which fact.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: there are 'train' and 'heldout'")
    if n is not None and not (hasattr(n, "__index__") and n >= 1):
        raise ValueError(f"n must be a whole and positive number of stories, not {n!r}")
    from datasets import Dataset

    rows = list(islice(stream(split, slips), SIZES[split] if n is None else n))
    columns: dict[str, list] = {
        "text": [story.text for story in rows],
        "input_ids": [story.input_ids for story in rows],
    }
    columns |= {fact: [story.facts[fact] for story in rows] for fact in FACTS}
    for name in ("surprisal", "entropy", "fact_positions", "fact_kinds"):
        columns[name] = [getattr(story, name) for story in rows]
    told = Dataset.from_dict(columns)
    told.info.description = vocabulary_mark(vocabulary_digest(vocabulary()))
    return told
