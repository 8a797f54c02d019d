"""The cards as one HTML page that needs nothing from outside itself."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby

import jinja2
from markupsafe import Markup

from tl_weighted_pca.feature_cards.card import Context, FeatureCard, FeatureCards
from tl_weighted_pca.feature_cards.facts import SIGNIFICANT, FactScore
from tl_weighted_pca.feature_cards.histogram import Histogram
from tl_weighted_pca.feature_cards.token_text import visible

_SHADES = 6
"""Steps of a tint, each way."""


def page(cards: FeatureCards, *, framed: bool = False) -> str:
    """HTML with its style and its few lines of script inside; all text is escaped.

    Args:
        cards: what to show.
        framed: for an iframe's `srcdoc`, whose links would otherwise lead to the page around it.
    """
    script, style = (_environment().get_template(f"page.{end}").render() for end in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            cards=cards,
            framed=framed,
            # Trusted: files of this package.
            script=Markup(script),
            style=Markup(style),
            script_digest=digest,
            fact_tables=_fact_tables(cards),
            most_explained=max(card.explained_ratio for card in cards),
            most_cost=max((abs(card.cost) for card in cards if card.cost is not None), default=0),
        )
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tl_weighted_pca.feature_cards", "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, decimals=_decimals, visible=visible, pieces=_pieces, bars=_bars, tint=_tint
    )
    environment.globals["SIGNIFICANT"] = SIGNIFICANT
    return environment


def number(x: float, digits: int = 3, *, signed: bool = False) -> str:
    """So many significant digits, with a true minus sign."""
    text = f"{x:{'+' if signed else ''}#.{digits}g}".replace(".e", "e").removesuffix(".")
    if "e" in text:
        mantissa, _, exponent = text.partition("e")
        text = f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return text.replace("-", "−")


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class _Piece:
    """Neighbouring tokens without a tint, or one token with one, or the context's own token."""

    space: str
    """The space before a word, without tint or frame: a line may break there."""
    text: str
    shade: str
    focus: bool


def _pieces(context: Context, card: FeatureCard) -> list[_Piece]:
    """A context cut wherever something is to be seen about a token."""
    most = max((abs(c.coordinate) for c in (*card.highest, *card.lowest)), default=0.0)
    shades = [_shade(z, most) for z in context.coordinates]
    places = range(len(context.tokens))
    pieces = []
    for _, group in groupby(places, lambda i: i if shades[i] or i == context.focus else -1):
        at = list(group)
        text = "".join(_readable(context.tokens[i]) for i in at)
        space = " " if text.startswith(" ") else ""
        pieces.append(
            _Piece(space, text.removeprefix(space), shades[at[0]], at[0] == context.focus)
        )
    if pieces:  # no line begins with a space; a sign says that the sequence began earlier
        start = "… " if context.position > context.focus else ""
        pieces[0] = replace(pieces[0], space=start)
    return pieces


def _readable(token: str) -> str:
    """As `visible`, but for one space before a word, which running text shows by itself."""
    return " " + visible(token[1:]) if token[:1] == " " and token[1:].strip() else visible(token)


def _shade(z: float, most: float) -> str:
    """ "p1" … "p6" above the centre, "n1" … below, "" near it or where z does not count."""
    step = 0 if math.isnan(z) or not most else min(_SHADES, round(_SHADES * abs(z) / most))
    return f"{'p' if z > 0 else 'n'}{step}" if step else ""


def _decimals(x: float, places: int = 2, *, signed: bool = False) -> str:
    """So many decimals, with a true minus sign and none before zero."""
    return f"{round(x, places) + 0.0:{'+' if signed else ''}.{places}f}".replace("-", "−")


def _tint(share: float) -> str:
    """The shade of a share between 0 and 1."""
    return _shade(max(share, 0.0), 1.0)


@dataclass(frozen=True)
class _Bars:
    """A histogram as an SVG path in a box of 100 by 40."""

    path: str
    zero: float | None
    """Where the centre is, in percent; None where it is out of the picture."""
    low: float
    high: float
    beyond: int
    """Tokens that lie outside, counted in the end bars."""


def _bars(histogram: Histogram) -> _Bars:
    shown = histogram.shown()
    low, high = float(shown.edges[0]), float(shown.edges[-1])
    tallest, width = float(shown.counts.max()), 100 / len(shown.counts)
    path = "".join(
        f"M{i * width:.2f} 40V{40 - 40 * count / tallest:.2f}h{width:.2f}V40z"
        for i, count in enumerate(shown.counts.tolist())
        if count
    )
    zero = 100 * (0 - low) / (high - low)
    step = float(histogram.edges[1] - histogram.edges[0])
    inside = (histogram.edges[:-1] > low - step / 2) & (histogram.edges[1:] < high + step / 2)
    beyond = int(histogram.counts[~inside].sum())
    return _Bars(path, zero if 0 <= zero <= 100 else None, low, high, beyond)


@dataclass(frozen=True)
class _FactTable:
    where: str
    facts: Sequence[str]
    rows: Sequence[Sequence[FactScore | None]]
    """One row a card; None where there were too few sequences."""


def _fact_tables(cards: FeatureCards) -> list[_FactTable]:
    """A table for the means over sequences, and one for the places of recall, if there are any."""
    tables = []
    for where in ("mean", "recall"):
        by_card = [{s.fact: s for s in card.facts if s.where == where} for card in cards]
        facts = sorted({fact for scores in by_card for fact in scores})
        if facts:
            rows = [[scores.get(fact) for fact in facts] for scores in by_card]
            tables.append(_FactTable(where, facts, rows))
    return tables
