"""The story grammar: what happens in a story, told left to right by explicit random choices.

Three children meet at a place. One of them, the hero (``who``), has two things; one friend promises
to do something and the other merely wishes to; one of the two takes one of the things and hides it.
Later sentences can only be told by someone who remembers all that.
"""

from typing import NamedTuple

from . import lexicon
from .teller import Form, Teller

FACTS = (
    "who",
    "place",
    "object",
    "spare",
    "promiser",
    "promise",
    "wisher",
    "wish",
    "culprit",
    "innocent",
    "hideout",
    "feeling",
)
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

    def weather() -> None:
        teller.word(lexicon.WEATHERS)
        teller.word(lexicon.TIMES)

    def name(*taken: str) -> str:
        return teller.word([each for each in lexicon.NAMES if each not in taken])

    form = teller.tell(
        Form("One", 3),
        Form("On a", 3),
        Form("It was a", 3),
        Form("Once upon a time,", 2),
        Form("There was once a", 3),
        Form("Long ago,", 2),
    ).start
    if form in ("One", "On a"):
        weather()
        teller.say(",")
        who = name()
        teller.say(" went to the" if form == "One" else " was in the")
        place = teller.word(lexicon.PLACES)
    elif form == "It was a":
        weather()
        teller.say(" in the")
        place = teller.word(lexicon.PLACES)
        teller.say(", and")
        who = name()
        teller.say(" was playing")
    elif form == "Once upon a time,":
        who = name()
        teller.say(" lived near the")
        place = teller.word(lexicon.PLACES)
    elif form == "There was once a":
        teller.word(lexicon.TRAITS)
        girl = teller.word(("girl", "boy"), closed=True) == "girl"
        teller.say(" named")
        who = teller.word(lexicon.GIRLS if girl else lexicon.BOYS)
        teller.say(" who lived near the")
        place = teller.word(lexicon.PLACES)
    else:
        first = name()
        teller.say(" and")
        second = name(first)
        teller.say(" came to the")
        place = teller.word(lexicon.PLACES)
        teller.say(" to visit")
        who = name(first, second)
        teller.say(".")
        return Cast(who, (first, second), place)
    teller.say(" with")
    first = name(who)
    teller.say(" and")
    second = name(who, first)
    teller.say(".")
    return Cast(who, (first, second), place)


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
    remaining = dict(_RECALLS)
    for _ in range(3):
        form = teller.tell(*(form for forms in remaining.values() for form in forms))
        if form.inner is not None:
            teller.word(form.inner)
            teller.say(form.end)
        del remaining[form.topic]
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
    teller.word([each for each in lexicon.COLORS if each != color])
    other = teller.word([each for each in lexicon.OBJECTS if each != thing])
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
    teller.say(f" {first.rest}, but")
    (other,) = set(cast.friends) - {form.choice}
    promising = form.topic == "promiser"
    teller.say(f" {other} " + ("only wanted to" if promising else "promised to"))
    del deeds[first.infinitive]
    second = deeds[teller.word(list(deeds), closed=True)]
    teller.say(f" {second.rest}.")
    promise, wish = (first, second) if promising else (second, first)
    teller.facts.update(
        promiser=form.choice if promising else other,
        wisher=other if promising else form.choice,
        promise=promise.infinitive,
        promised=promise.past,
        promise_rest=promise.rest,
        wish=wish.infinitive,
        wish_rest=wish.rest,
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
    (spare,) = set(things) - {thing}
    (innocent,) = set(cast.friends) - {form.choice}
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
        teller.word([each for each in lexicon.FOODS if each != food])
    elif form.topic == "sky":
        teller.word(lexicon.SKIES)
    else:
        teller.word([each for each in lexicon.PLACES if each != cast.place])
    teller.say(".")
    return teller.tell(*forms)


_RECALLS = {
    "culprit": (
        Form(" Who had taken the {object}? It was {culprit}.", 1, "culprit"),
        Form(" It was {culprit} who had taken the {object}.", 1, "culprit"),
        Form(" At last {culprit} said sorry to {who}.", 1, "culprit"),
    ),
    "innocent": (
        Form(" Luckily, {innocent} was not to blame.", 1, "innocent"),
        Form(" Of course {innocent} had known nothing about it.", 1, "innocent"),
    ),
    "hideout": (
        Form(" They found the {object} in the {hideout}.", 1, "hideout"),
        Form(" Where was the {object}? It was in the {hideout}.", 1, "hideout"),
        Form(" {who} looked in the {hideout} and found the {object}.", 1, "hideout"),
    ),
    "promise": (
        Form(" As promised, {promiser} {promised:promise} {promise_rest:}.", 2, "promise"),
        Form(" {promiser} kept the promise and {promised:promise} {promise_rest:}.", 1, "promise"),
    ),
    "wish": (
        Form(" Only {wisher} still wanted to {wish} {wish_rest:}.", 1, "wish"),
        Form(" {wisher} still wanted to {wish} {wish_rest:}.", 1, "wish"),
    ),
    "spare": (
        Form(" Nobody had touched the {spare}.", 1, "spare"),
        Form(" At least {who} still had the {spare}.", 1, "spare"),
    ),
    "place": (
        Form(" Everyone in the {place} heard about it.", 1, "place"),
        Form(" They stayed in the {place} until dark.", 1, "place"),
        Form(" The {place} was quiet again.", 1, "place"),
    ),
    "feeling": (
        Form(" {who} was not {feeling} any more.", 1, "feeling"),
        Form(" Now {who} felt", 1, "feeling", inner=lexicon.JOYS, end=" instead of {feeling}."),
    ),
}


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
