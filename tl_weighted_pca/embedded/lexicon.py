"""The words the stories are made of; how they are put together is in ``grammar``."""

from typing import NamedTuple


class Deed(NamedTuple):
    """Something a character promises or wishes to do: ``bake a cake``, ``baked a cake``."""

    infinitive: str
    past: str
    object: str


def _words(words: str) -> tuple[str, ...]:
    return tuple(words.split())


GIRLS = _words("Anna Mia Lily Rosa Nora Emma Clara Ruby Zoe Ivy Ella Maya")
BOYS = _words("Tom Ben Max Leo Sam Jack Noah Finn Oscar Hugo Felix Theo")
NAMES = GIRLS + BOYS

PLACES = _words(
    "garden park forest barn kitchen attic library market meadow village castle orchard cave "
    "tower harbor bakery stable cellar museum valley"
)
OBJECTS = _words(
    "kite drum ball doll lamp ring flute puppet lantern hat scarf book bell whistle mirror crown "
    "cup map key coin robot necklace marble trumpet"
)
# All of these start with a consonant sound, so that "a" is always the right article.
COLORS = _words("red blue green yellow purple white golden silver pink brown black gray")
HIDEOUTS = _words(
    "basket box drawer chest barrel bucket cupboard sack pot tent trunk haystack nest wagon "
    "shed closet"
)
FEELINGS = _words("sad angry worried upset lonely gloomy cross nervous confused scared")
JOYS = _words("happy proud cheerful pleased calm grateful hopeful merry")

DEEDS = tuple(
    Deed(*row.split(" ", 2))
    for row in (
        "bake baked a cake",
        "sing sang a song",
        "tell told a story",
        "paint painted a picture",
        "knit knitted a sweater",
        "plant planted a tree",
        "build built a swing",
        "cook cooked some soup",
        "carve carved a spoon",
        "write wrote a poem",
        "pick picked some berries",
        "fix fixed the fence",
        "sew sewed a blanket",
        "wash washed the dishes",
        "feed fed the ducks",
        "sweep swept the floor",
    )
)

WEATHERS = _words("sunny cold windy quiet warm rainy bright cloudy foggy snowy")
TIMES = ("morning", "afternoon", "day", "evening")
TRAITS = _words("kind brave clever shy little curious lively gentle patient funny")
ANIMALS = _words("dog cat fox rabbit duck goat horse squirrel frog mouse sparrow hen")
ANIMAL_TRAITS = _words("small big lazy fat hungry sleepy friendly noisy clever wild")
ANIMAL_VERBS = ("slept", "sat", "waited", "played", "hid", "rested")
SPOTS = ("gate", "wall", "bridge", "river", "road", "well", "stairs", "door")
FOODS = _words("bread cheese honey apples plums nuts pancakes cookies jam pears cherries")
SKIES = ("dark", "clear", "orange", "stormy", "misty")
