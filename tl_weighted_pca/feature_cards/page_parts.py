"""What the page is put together from: numbers, tinted text, bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from tl_weighted_pca.feature_cards.card import Context, FeatureCard
from tl_weighted_pca.feature_cards.card_set import FeatureCards
from tl_weighted_pca.feature_cards.facts import FactScore
from tl_weighted_pca.feature_cards.histogram import Histogram
from tl_weighted_pca.feature_cards.token_text import visible

_SHADES = 6
"""Steps of a tint, each way."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(x: float, digits: int = 3, *, signed: bool = False) -> str:
    """So many significant digits, with a true minus sign."""
    text = f"{x:{'+' if signed else ''}#.{digits}g}".replace(".e", "e").removesuffix(".")
    if "e" in text:
        mantissa, _, exponent = text.partition("e")
        text = f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return text.replace("-", "−")


def decimals(x: float, places: int = 2, *, signed: bool = False) -> str:
    """So many decimals, with a true minus sign and none before zero."""
    return f"{round(x, places) + 0.0:{'+' if signed else ''}.{places}f}".replace("-", "−")


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens without a tint, or one token with one, or the context's own token."""

    space: str
    """The space before a word, without tint or frame: a line may break there."""
    text: str
    shade: str
    focus: bool


@dataclass(frozen=True)
class Line:
    """A context as running text."""

    pieces: list[Piece]
    values: str
    """For the script: how long the lead is, then "length:z" of each token, empty where z does not count."""


def line(context: Context, most: float) -> Line:
    """A context cut wherever something is to be seen about a token, z being tinted as a share of `most`."""
    shades = [shade(z, most) for z in context.coordinates]
    texts = [_readable(token) for token in context.tokens]
    # No line begins with a space; a sign says that the sequence began earlier.
    texts[0] = texts[0].removeprefix(" ")
    lead = "… " if context.position > context.focus else ""
    pieces = []
    groups = groupby(range(len(texts)), lambda i: i if shades[i] or i == context.focus else -1)
    for _, group in groups:
        at = list(group)
        text = "".join(texts[i] for i in at)
        space = " " if text.startswith(" ") else ""
        focus = at[0] == context.focus
        pieces.append(Piece(space, text.removeprefix(space), shades[at[0]], focus))
    pieces[0] = replace(pieces[0], space=lead)
    # So many decimals as give the largest three digits.
    places = max(0, 2 - math.floor(math.log10(most))) if most else 0
    values = ",".join(
        f"{_units(text)}:{'' if math.isnan(z) else f'{round(z, places) + 0.0:.{places}f}'}"
        for text, z in zip(texts, context.coordinates, strict=True)
    )
    return Line(pieces, f"{len(lead)}|{values}")


def most_of(card: FeatureCard) -> float:
    """The largest |z| of a card's contexts: what the darkest tint stands for."""
    return max((abs(c.coordinate) for c in (*card.highest, *card.lowest)), default=0.0)


def words(card: FeatureCard) -> str:
    """The tokens that a search looks through: what the component writes, and where contexts are of."""
    groups = (context for group in card.quantiles for context in group.contexts)
    found = [token for token, _ in (*card.promoted, *card.suppressed)]
    found += [context.token for context in (*card.highest, *card.lowest, *groups)]
    return "\n".join(dict.fromkeys(visible(token).lower() for token in found))


def shade(z: float, most: float) -> str:
    """ "p1" … "p6" above the centre, "n1" … below, "" near it or where z does not count."""
    step = 0 if math.isnan(z) or not most else min(_SHADES, round(_SHADES * abs(z) / most))
    return f"{'p' if z > 0 else 'n'}{step}" if step else ""


def _readable(token: str) -> str:
    """As `visible`, but for one space before a word, which running text shows by itself."""
    return " " + visible(token[1:]) if token[:1] == " " and token[1:].strip() else visible(token)


def _units(text: str) -> int:
    """Its length as a script counts it, in units of UTF-16."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


@dataclass(frozen=True)
class Bars:
    """A histogram as two SVG paths in a box of 100 by 40: of counts, and of their logarithms."""

    linear: str
    logarithmic: str
    zero: float | None
    """Where zero is, in percent; None where it is out of the picture."""
    low: float
    high: float
    beyond: int
    """Values that lie outside, counted in the end bars."""


def bars(histogram: Histogram) -> Bars:
    """A picture of a histogram, but for what is rarest at either end."""
    shown = histogram.shown()
    low, high = float(shown.edges[0]), float(shown.edges[-1])
    counts = shown.counts.double()
    heights = [counts / counts.max(), (1 + counts).log() / (1 + counts.max()).log()]
    zero = 100 * (0 - low) / (high - low)
    step = float(histogram.edges[1] - histogram.edges[0])
    inside = (histogram.edges[:-1] > low - step / 2) & (histogram.edges[1:] < high + step / 2)
    beyond = int(histogram.counts[~inside].sum())
    linear, logarithmic = (_path(height.tolist()) for height in heights)
    return Bars(linear, logarithmic, zero if 0 <= zero <= 100 else None, low, high, beyond)


def _path(heights: Sequence[float]) -> str:
    width = 100 / len(heights)
    return "".join(
        f"M{i * width:.4g} 40V{40 - 40 * height:.4g}h{width:.4g}V40z"
        for i, height in enumerate(heights)
        if height
    )


@dataclass(frozen=True)
class SignedBars:
    """Bars of numbers of either sign on one scale, in percent of a cell."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> SignedBars:
        return cls(min(0.0, *values), max(0.0, *values, 1e-300))

    @property
    def zero(self) -> float:
        return 100 * -self.low / (self.high - self.low)

    def style(self, value: float) -> str:
        """Where the bar begins and how long it is."""
        length = 100 * abs(value) / (self.high - self.low)
        start = self.zero - (length if value < 0 else 0)
        return f"--at:{start:.1f};--share:{length:.1f};--zero:{self.zero:.1f}"


@dataclass(frozen=True)
class FactCell:
    """How well a component tells a fact, beside the others."""

    score: FactScore
    told: bool
    """Whether it tells the component from the others."""
    usual: float
    """The median ε² of the others."""

    @property
    def shade(self) -> str:
        """By how much more than that."""
        return shade(max(0.0, self.score.beyond_chance - self.usual), 1.0)


@dataclass(frozen=True)
class FactTable:
    where: str
    facts: Sequence[str]
    rows: Sequence[Sequence[FactCell | None]]
    """One row a card; None where there were too few sequences."""


def fact_tables(cards: FeatureCards) -> list[FactTable]:
    """A table for the means over sequences, and one for the places of recall, if there are any."""
    tables = []
    for where in ("mean", "recall"):
        by_card = [{s.fact: s for s in card.facts if s.where == where} for card in cards]
        facts = sorted({fact for scores in by_card for fact in scores})
        if facts:
            rows = [
                [_cell(cards, card, scores.get(fact)) for fact in facts]
                for card, scores in zip(cards, by_card, strict=True)
            ]
            tables.append(FactTable(where, facts, rows))
    return tables


def _cell(cards: FeatureCards, card: FeatureCard, score: FactScore | None) -> FactCell | None:
    if score is None:
        return None
    return FactCell(score, cards.tells_apart(card, score), cards.usual(card, score))


def telling(cards: FeatureCards, card: FeatureCard, count: int = 4) -> list[FactCell]:
    """The facts that a card tells most beyond what the others do."""
    cells = [cell for score in card.facts if (cell := _cell(cards, card, score)) is not None]
    cells.sort(key=lambda cell: (not cell.told, cell.usual - cell.score.beyond_chance))
    return cells[:count]
