"""The embedded stories: exact probabilities, facts that hold, splits that share nothing."""

import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import pytest

from tl_weighted_pca import embedded
from tl_weighted_pca.embedded import corpus, lexicon, vocabulary
from tl_weighted_pca.embedded.grammar import opening, tell_story
from tl_weighted_pca.embedded.teller import Form, Teller


@pytest.fixture(scope="module")
def heldout():
    return embedded.stories("heldout")


@pytest.fixture(scope="module")
def train():
    return embedded.stories("train")


@pytest.fixture(scope="module")
def slips():
    return embedded.stories("heldout", slips=True)


# --- The data set


def test_splits_are_large_distinct_and_disjoint(train, heldout):
    assert len(train) == len(set(train["text"])) == 20_000
    assert len(heldout) == len(set(heldout["text"])) == 1_000
    assert not set(train["text"]) & set(heldout["text"])


def test_no_cast_of_a_heldout_story_occurs_in_training(train, heldout):
    def casts(split):
        rows = zip(split["who"], split["culprit"], split["innocent"], split["place"], strict=True)
        return {(who, frozenset(friends), place) for who, *friends, place in rows}

    assert not casts(train) & casts(heldout)


@pytest.mark.parametrize(
    ("split", "checksum"),
    [("train", 1900658608), ("heldout", 3330335727), ("slips", 2579703997)],
)
def test_stories_never_change(split, checksum, request):
    text = "\n".join(request.getfixturevalue(split)["text"])
    assert zlib.crc32(text.encode()) == checksum


def test_fewer_stories_are_the_first_ones(heldout):
    few = embedded.stories("heldout", 3)
    assert few.to_dict() == heldout.select(range(3)).to_dict()
    assert len(embedded.stories("heldout", 1_001)) == 1_001


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"'test'.*'train' and 'heldout'"):
        embedded.stories("test")
    with pytest.raises(ValueError, match="not 0"):
        embedded.stories("train", 0)


def test_columns(heldout):
    row = heldout[0]
    assert set(embedded.FACTS) <= set(heldout.column_names)
    ids = vocabulary.vocabulary()
    for row in heldout:
        assert row["input_ids"][0] == ids["<bos>"]
        assert row["input_ids"][-1] == ids["<eos>"]
        assert 50 <= len(row["input_ids"]) <= 128
        assert len(row["surprisal"]) == len(row["input_ids"])
        assert len(row["fact_positions"]) == len(row["fact_kinds"]) >= 3


def test_vocabulary_is_a_few_hundred_words(train):
    ids = vocabulary.vocabulary()
    assert 300 <= len(ids) <= 400
    assert sorted(ids.values()) == list(range(len(ids)))
    used = {token for row in train["input_ids"] for token in row}
    assert used == set(ids.values()) - {ids["<pad>"], ids["<unk>"]}


# --- Facts


@pytest.mark.parametrize(
    ("stories", "certain", "least"), [("heldout", 0.0, 100), ("slips", -math.log(0.92), 50)]
)
def test_fact_tokens_say_the_fact_and_are_certain(stories, certain, least, request):
    """But for slips."""
    words = {id: token for token, id in vocabulary.vocabulary().items()}
    past = {deed.infinitive: deed.past for deed in lexicon.DEEDS}
    kinds = Counter()
    for row in request.getfixturevalue(stories):
        for position, kind in zip(row["fact_positions"], row["fact_kinds"], strict=True):
            expected = past[row[kind]] if kind == "promise" else row[kind]
            assert words[row["input_ids"][position]] == " " + expected
            assert row["surprisal"][position] == pytest.approx(certain, abs=1e-12)
            kinds[kind] += 1
    assert set(kinds) == set(embedded.FACTS)
    assert min(kinds.values()) >= least


def test_facts_agree_with_the_text(heldout):
    verbs = ("took", "grabbed", "stole", "borrowed")
    past = {deed.infinitive: f"{deed.past} {deed.object}" for deed in lexicon.DEEDS}
    for row in heldout:
        sentences = row["text"].split(". ")
        assert row["who"] in sentences[0]
        assert f" {row['place']} " in sentences[0] or f" {row['place']}," in sentences[0]
        words = set(re.findall(r"[A-Za-z]+", row["text"]))
        assert words & set(lexicon.NAMES) == {row["who"], row["culprit"], row["innocent"]}
        assert {row["promiser"], row["wisher"]} == {row["culprit"], row["innocent"]}
        assert any(f"{row['culprit']} {verb} the {row['object']}" in row["text"] for verb in verbs)
        assert f" it in the {row['hideout']}." in row["text"]
        assert f" {row['object']}" in sentences[1]
        assert f" {row['spare']}" in sentences[1]
        deed = f" to {row['promise']} {past[row['promise']].split(' ', 1)[1]}"
        assert any(
            f"{row['promiser']} {promising}{deed}" in row["text"]
            for promising in ("promised", "made a promise")
        )
        assert any(
            f"{row['wisher']} {wishing} to {row['wish']} " in row["text"]
            for wishing in ("wanted", "only wanted")
        )
        assert row["feeling"] in row["text"]


def test_a_friend_can_be_in_any_part(train):
    """No part follows from another: whoever promises is the culprit half of the time."""
    same = sum(p == c for p, c in zip(train["promiser"], train["culprit"], strict=True))
    assert abs(same / len(train) - 0.5) < 0.02


# --- The probabilities


def test_surprisals_sum_to_the_entropy(heldout):
    for row in heldout:
        assert sum(row["surprisal"]) == pytest.approx(row["entropy"], abs=1e-10)


class Undecided(Exception):
    """A choice for which the script has no answer."""

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = list(weights)


class Scripted(Teller):
    """A teller that follows a script of choices and stops where the script ends."""

    def __init__(self, script: Sequence[int], *slips) -> None:
        self.script = iter(script)
        super().__init__(self._next, *slips)

    def _next(self, weights: Sequence[int]) -> int:
        choice = next(self.script, None)
        if choice is None:
            raise Undecided(weights)
        return choice


def prefix_probabilities(tokens: Sequence[str], *slips) -> tuple[list[float], int]:
    """p(tokens[:k]) for every k, and in how many ways the grammar can tell the whole text.

    Every choice of the full grammar is tried at every step; a branch is followed for as long as it
    agrees with ``tokens``, and its probability counts for the prefixes it shares. This relies on
    nothing the teller says about probabilities.
    """
    mass = [0.0] * (len(tokens) + 1)
    whole = 0
    branches: list[tuple[list[int], float]] = [([], 1.0)]
    while branches:
        script, probability = branches.pop()
        teller = Scripted(script, *slips)
        try:
            tell_story(teller, opening(teller))
            weights = None
        except Undecided as undecided:
            weights = undecided.weights
        shared = 0
        for ours, theirs in zip(tokens, teller.tokens, strict=False):
            if ours != theirs:
                break
            shared += 1
        if shared == len(teller.tokens) and weights is not None:
            branches += (
                ([*script, index], probability * weight / sum(weights))
                for index, weight in enumerate(weights)
            )
            continue
        for k in range(shared + 1):
            mass[k] += probability
        whole += weights is None and tuple(teller.tokens) == tuple(tokens)
    return mass, whole


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_surprisals_by_exhaustive_search(split):
    for told in islice(corpus.told(split), 6):
        mass, whole = prefix_probabilities(told.tokens)
        assert whole == 1  # unambiguous
        assert mass[0] == pytest.approx(1.0, abs=1e-12)
        assert -math.log(mass[-1]) == pytest.approx(told.entropy, abs=1e-9)
        for k, surprisal in enumerate(told.surprisal):
            assert math.log(mass[k] / mass[k + 1]) == pytest.approx(surprisal, abs=1e-9)


def test_surprisals_of_stories_with_slips_by_exhaustive_search():
    """Every slip there might be is tried at every word: of few words only, to have an end."""
    slips = (0.2, (*lexicon.OBJECTS, *lexicon.JOYS, "the", "was", "Anna"))
    rng = random.Random(0)

    def pick(weights: Sequence[float]) -> int:
        return rng.choices(range(len(weights)), weights)[0]

    slipped = 0
    for _ in range(3):
        told = Teller(pick, *slips)
        tell_story(told, opening(told))
        mass, whole = prefix_probabilities(told.tokens, *slips)
        assert whole == 1  # unambiguous
        assert -math.log(mass[-1]) == pytest.approx(told.entropy, abs=1e-9)
        for k, surprisal in enumerate(told.surprisal):
            assert math.log(mass[k] / mass[k + 1]) == pytest.approx(surprisal, abs=1e-9)
            slipped += surprisal > 4.5
    assert slipped >= 20


def test_slips_are_as_frequent_as_stated(slips):
    """A token that was certain is told with probability 0.92, and each slip is as likely as another."""
    certain = -math.log(1 - corpus.SLIPS)
    n_words = sum(token.startswith(" ") for token in vocabulary.vocabulary())
    stayed = slipped = 0
    for row in slips:
        surprisal = [round(each, 9) for each in row["surprisal"]]
        stayed += surprisal.count(round(certain, 9))
        slipped += sum(
            surprisal.count(round(-math.log(corpus.SLIPS / n), 9)) for n in (n_words - 1, n_words)
        )
        assert sum(row["surprisal"]) == pytest.approx(row["entropy"], abs=1e-10)
    n = stayed + slipped
    assert n > 50_000
    assert abs(slipped / n - corpus.SLIPS) < 4 * math.sqrt(corpus.SLIPS * (1 - corpus.SLIPS) / n)


def test_a_story_with_slips_keeps_to_those_that_were_free(slips):
    past = {deed.infinitive: deed.past for deed in lexicon.DEEDS}
    assert any(row["object"] not in lexicon.OBJECTS for row in slips)
    assert all(row["promise"] in past for row in slips)


def test_how_many_tokens_are_certain(heldout, slips):
    """Seven of ten, says the README, and with slips none (but that a story begins and ends)."""
    of_plain, of_slips = (
        [s == 0 for row in rows["surprisal"] for s in row[1:-1]] for rows in (heldout, slips)
    )
    assert 0.65 < sum(of_plain) / len(of_plain) < 0.75
    assert not any(of_slips)


def test_words_come_as_often_as_their_surprisal_says(train):
    """Frequencies after every common beginning, against the stated probabilities (chi-square)."""
    after: dict[tuple, Counter] = {}
    stated: dict[tuple, dict[int, float]] = {}
    for ids, surprisal in zip(train["input_ids"], train["surprisal"], strict=True):
        for k in range(1, 6):
            prefix = tuple(ids[:k])
            after.setdefault(prefix, Counter())[ids[k]] += 1
            stated.setdefault(prefix, {})[ids[k]] = math.exp(-surprisal[k])
    tested = 0
    for prefix, counts in after.items():
        total = sum(counts.values())
        expected = stated[prefix]
        if total * min(expected.values()) < 20:
            continue
        assert sum(expected.values()) == pytest.approx(1.0, abs=1e-9)
        chi2 = sum((counts[t] - total * p) ** 2 / (total * p) for t, p in expected.items())
        freedom = len(expected) - 1
        assert chi2 < freedom + 5 * math.sqrt(2 * freedom) + 10
        tested += freedom > 0
    assert tested >= 20


def test_no_choice_may_begin_another():
    def tell(pick: int, *starts: str) -> None:
        Teller(lambda weights: pick).tell(*(Form(start, 1) for start in starts))

    for pick in (0, 1):
        with pytest.raises(ValueError, match="begins another"):
            tell(pick, " The dog", " The dog ran")
        with pytest.raises(ValueError, match="begins another"):
            tell(pick, " The dog", " The dog")


def test_shared_beginnings_are_accounted_for():
    teller = Teller(lambda weights: 0)
    teller.tell(Form(" the red kite", 1), Form(" the red drum", 1), Form(" a ball", 2))
    assert teller.surprisal == pytest.approx([math.log(2), 0.0, math.log(2)])
