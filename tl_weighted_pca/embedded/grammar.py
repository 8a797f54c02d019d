"""The story grammar: what happens in a story, told left to right by explicit random choices.

Three children meet at a place. One of them, the hero (``who``), has two things; one friend promises
to do something and the other merely wishes to; one of the two takes one of the things and hides it.
Later sentences can only be told by someone who remembers all that.
"""

from collections.abc import Sequence
from typing import NamedTuple

from . import lexicon
from .teller import Form, Teller

FACTS = (
    "who", "place", "object", "spare", "promiser", "promise", "wisher", "wish", "culprit",
    "innocent", "hideout", "feeling",
)  # fmt: skip
"""The latent facts of a story, each a column of ``stories(...)``.

``who`` the hero; ``place`` where they meet; ``object`` the thing that is taken, ``spare`` the
hero's other thing; ``promiser`` and ``promise``, ``wisher`` and ``wish`` which friend promised
(merely wished) to do what; ``culprit`` the friend who took the object, ``innocent`` the one who did
not; ``hideout`` where it was hidden; ``feeling`` what the hero felt about that.
"""


class Cast(NamedTuple):
    """What the first sentence of a story establishes; splits are told apart by it."""

    who: str
    friends: tuple[str, str]
    place: str


def opening(teller: Teller) -> Cast:
    """Tell who meets where."""

    def name(*taken: str) -> str:
        return teller.word(_but(lexicon.NAMES, *taken))

    def place(before: str) -> str:
        teller.say(before)
        return teller.word(lexicon.PLACES)

    def weather() -> None:
        teller.word(lexicon.WEATHERS)
        teller.word(lexicon.TIMES)

    form = teller.tell(
        Form("One", 3),
        Form("On a", 3),
        Form("It was a", 3),
        Form("Once upon a time,", 2),
        Form("There was once a", 3),
        Form("Long ago,", 2),
    ).start
    if form == "Long ago,":
        first = name()
        teller.say(" and")
        second = name(first)
        where = place(" came to the")
        teller.say(" to visit")
        who = name(first, second)
        teller.say(".")
        return Cast(who, (first, second), where)
    if form in ("One", "On a"):
        weather()
        teller.say(",")
        who = name()
        where = place(" went to the" if form == "One" else " was in the")
    elif form == "It was a":
        weather()
        where = place(" in the")
        teller.say(", and")
        who = name()
        teller.say(" was playing")
    elif form == "Once upon a time,":
        who = name()
        where = place(" lived near the")
    else:
        teller.word(lexicon.TRAITS)
        girl = teller.word(("girl", "boy"), closed=True) == "girl"
        teller.say(" named")
        who = teller.word(lexicon.GIRLS if girl else lexicon.BOYS)
        where = place(" who lived near the")
    teller.say(" with")
    first = name(who)
    teller.say(" and")
    second = name(who, first)
    teller.say(".")
    return Cast(who, (first, second), where)


def _but(words: Sequence[str], *taken: str) -> list[str]:
    return [word for word in words if word not in taken]


def tell_story(teller: Teller, cast: Cast) -> None:
    """Tell the rest of the story that ``opening`` began; the facts end up in ``teller.facts``."""
    girl = cast.who in lexicon.GIRLS
    teller.facts.update(
        who=cast.who,
        place=cast.place,
        he="she" if girl else "he",
        his="her" if girl else "his",
        His="Her" if girl else "His",
    )
    things = _belongings(teller)
    _promise(teller, cast)
    _theft(teller, cast, things)
    _loss(teller)
    recalls = _RECALLS
    for _ in range(3):
        form = teller.tell(*recalls)
        if form.inner is not None:
            teller.word(form.inner)
            teller.say(form.end)
        recalls = [each for each in recalls if each.topic != form.topic]
    _closing(teller)


def _belongings(teller: Teller) -> tuple[str, str]:
    """Give the hero two things."""
    teller.tell(
        Form(" {who} had a", 3),
        Form(" {who} brought a", 2),
        Form(" In {his:} bag {he:} had a", 2),
        Form(" {His:} treasures were a", 2),
    )
    color = teller.word(lexicon.COLORS)
    thing = teller.word(lexicon.OBJECTS)
    teller.say(" and a")
    teller.word(_but(lexicon.COLORS, color))
    other = teller.word(_but(lexicon.OBJECTS, thing))
    teller.say(".")
    return thing, other


def _promise(teller: Teller, cast: Cast) -> None:
    forms = []
    for name in cast.friends:
        forms += [
            Form(f" {name} promised to", 3, "promiser", name),
            Form(f" {name} wanted to", 2, "wisher", name),
            Form(f" {name} made a promise to", 1, "promiser", name),
        ]
    form = teller.tell(*forms)
    deeds = {deed.infinitive: deed for deed in lexicon.DEEDS}
    first = deeds[teller.word(list(deeds), closed=True)]
    teller.say(f" {first.object}, but")
    (other,) = _but(cast.friends, form.choice)
    promising = form.topic == "promiser"
    teller.say(f" {other} " + ("only wanted to" if promising else "promised to"))
    del deeds[first.infinitive]
    second = deeds[teller.word(list(deeds), closed=True)]
    teller.say(f" {second.object}.")
    promise, wish = (first, second) if promising else (second, first)
    teller.facts.update(
        promiser=form.choice if promising else other,
        wisher=other if promising else form.choice,
        promise=promise.infinitive,
        promised=promise.past,
        promise_object=promise.object,
        wish=wish.infinitive,
        wish_object=wish.object,
    )


def _theft(teller: Teller, cast: Cast, things: tuple[str, str]) -> None:
    forms = []
    for name in cast.friends:
        forms += [
            Form(f" While {{who}} was away, {name} took the", 2, "hid it", name),
            Form(f" When nobody was looking, {name} grabbed the", 2, "put it", name),
            Form(f" Secretly, {name} stole the", 2, "hid it", name),
            Form(f" Without asking, {name} borrowed the", 1, "left it", name),
        ]
    form = _after_a_pause(teller, cast, forms)
    thing = teller.word(things, closed=True)
    (spare,) = _but(things, thing)
    (innocent,) = _but(cast.friends, form.choice)
    teller.say(f" and {form.topic} in the")
    teller.facts.update(
        culprit=form.choice,
        innocent=innocent,
        object=thing,
        spare=spare,
        hideout=teller.word(lexicon.HIDEOUTS),
    )
    teller.say(".")


def _loss(teller: Teller) -> None:
    form = teller.tell(
        Form(" Soon {who} was", 1, end=", because the {object} was gone."),
        Form(" {who} became", 1, end=" when {he:} could not find the {object}."),
        Form(" Without the {object}, {who} felt", 1, end="."),
        Form(" When {who} saw that the {object} was missing, {he:} felt", 1, end="."),
    )
    teller.facts["feeling"] = teller.word(lexicon.FEELINGS)
    teller.say(form.end)


def _after_a_pause(teller: Teller, cast: Cast, forms: list[Form]) -> Form:
    """Tell one of ``forms``, perhaps after a sentence that has nothing to do with the plot.

    Whether there is such a sentence shows only in its first word, hence one choice among all.
    """
    weight = sum(form.weight for form in forms)
    pauses = (
        Form(" A", weight, "animal"),
        Form(" They shared some", weight, "food"),
        Form(" The sky was", weight, "sky"),
        Form(" Later they all visited the", weight, "place"),
    )
    # Four times the weight: the plot goes on at once in half of the cases.
    form = teller.tell(*pauses, *(each._replace(weight=4 * each.weight) for each in forms))
    if form not in pauses:
        return form
    if form.topic == "animal":
        teller.word(lexicon.ANIMAL_TRAITS)
        teller.word(lexicon.ANIMALS)
        teller.word(lexicon.ANIMAL_VERBS)
        teller.say(" by the")
        teller.word(lexicon.SPOTS)
    elif form.topic == "food":
        food = teller.word(lexicon.FOODS)
        teller.say(" and")
        teller.word(_but(lexicon.FOODS, food))
    elif form.topic == "sky":
        teller.word(lexicon.SKIES)
    else:
        teller.word(_but(lexicon.PLACES, cast.place))
    teller.say(".")
    return teller.tell(*forms)


_RECALLS = [
    (Form(form, 1) if isinstance(form, str) else form)._replace(topic=fact)
    for fact, forms in {
        "culprit": (
            " Who had taken the {object}? It was {culprit}.",
            " It was {culprit} who had taken the {object}.",
            " At last {culprit} said sorry to {who}.",
        ),
        "innocent": (
            " Luckily, {innocent} was not to blame.",
            " Of course {innocent} had known nothing about it.",
        ),
        "hideout": (
            " They found the {object} in the {hideout}.",
            " Where was the {object}? It was in the {hideout}.",
            " {who} looked in the {hideout} and found the {object}.",
        ),
        "promise": (
            Form(" As promised, {promiser} {promised:promise} {promise_object:}.", 2),
            " {promiser} kept the promise and {promised:promise} {promise_object:}.",
        ),
        "wish": (
            " Only {wisher} still wanted to {wish} {wish_object:}.",
            " {wisher} still wanted to {wish} {wish_object:}.",
        ),
        "spare": (" Nobody had touched the {spare}.", " At least {who} still had the {spare}."),
        "place": (
            " Everyone in the {place} heard about it.",
            " They stayed in the {place} until dark.",
            " The {place} was quiet again.",
        ),
        "feeling": (
            " {who} was not {feeling} any more.",
            Form(" Now {who} felt", 1, inner=lexicon.JOYS, end=" instead of {feeling}."),
        ),
    }.items()
    for form in forms
]


def _closing(teller: Teller) -> None:
    shared = ("everything", "their toys", "their treasures")
    form = teller.tell(
        Form(" In the end, everyone was", 2, inner=lexicon.JOYS),
        Form(" From that day on, they shared", 1, inner=shared),
        Form(" That night, they all slept", 1, inner=("well", "soundly", "peacefully")),
        Form(" Then {who} went home,", 1, inner=lexicon.JOYS),
        Form(" Together they ate", 1, inner=lexicon.FOODS),
    )
    teller.tell(*(Form(f" {words}", 1) for words in form.inner or ()))
    teller.say(".")
