"""The cards as HTML that needs nothing from outside itself: one page, or an index and one a component."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from tl_weighted_pca.bases.names import display_name
from tl_weighted_pca.feature_cards import page_parts as parts
from tl_weighted_pca.feature_cards.card_set import FeatureCards
from tl_weighted_pca.feature_cards.facts import SIGNIFICANT
from tl_weighted_pca.feature_cards.prompt_view import PromptView
from tl_weighted_pca.feature_cards.token_text import visible
from tl_weighted_pca.support.files import write_text_atomically
from tl_weighted_pca.support.web_page import rendered, templates

ON_ONE_PAGE = 64
"""Cards up to which they are all on one page."""


def page(cards: FeatureCards, *, framed: bool = False) -> str:
    """One page of all cards, style and script inside; all text is escaped.

    Args:
        cards: what to show.
        framed: for an iframe's `srcdoc`, whose links would otherwise lead to the page around it.
    """
    links = [f"#c{i}" for i in range(len(cards))]
    return _rendered("page.html", **_content(cards, links), framed=framed, apart=False)


def save_pages(cards: FeatureCards, path: str | os.PathLike[str]) -> None:
    """Write one page, or past so many cards an index and a folder of pages beside it."""
    if len(cards) <= ON_ONE_PAGE:
        write_text_atomically(path, page(cards))
        return
    index = Path(path)
    folder = index.with_name(f"{index.stem}_components")
    names = [f"{card.name.replace(', ', '-').replace(' ', '-')}.html" for card in cards]
    # The index comes last: until it is there, an older one still finds what it links to.
    folder.mkdir(exist_ok=True)
    content = _content(cards, names)
    for i, (card, name) in enumerate(zip(cards, names, strict=True)):
        around = [names[j] if 0 <= j < len(names) else "" for j in (i - 1, i + 1)]
        text = _rendered(
            "component.html", **content, card=card, place=i, around=around,
            index=f"../{index.name}",
        )  # fmt: skip
        write_text_atomically(folder / name, text)
    links = [f"{folder.name}/{name}" for name in names]
    text = _rendered("page.html", **_content(cards, links), apart=True)
    write_text_atomically(index, text)


def prompt_page(prompt: PromptView) -> str:
    """One text, token by token, on a page of its own."""
    return _rendered("prompt_page.html", prompts=[prompt], places={}, links=[], framed=True)


def _content(cards: FeatureCards, links: Sequence[str]) -> dict[str, Any]:
    """What every page of these cards may show; `links` lead to the cards."""
    return {
        "cards": cards,
        "links": links,
        "places": {(card.head, card.component): i for i, card in enumerate(cards)},
        "fact_tables": parts.fact_tables(cards),
        "shares": parts.SignedBars.of([card.explained_ratio for card in cards]),
        "costs": parts.SignedBars.of([0.0 if c.cost is None else float(c.cost) for c in cards]),
        "prompts": cards.prompts,
    }


def _rendered(template: str, **content: Any) -> str:
    return rendered(_environment(), template, script="page.js", **content)


@cache
def _environment() -> jinja2.Environment:
    environment = templates("tl_weighted_pca.feature_cards")
    environment.filters.update(
        number=parts.number, decimals=parts.decimals, visible=visible, bars=parts.bars,
        line=parts.line, most_of=parts.most_of, words=parts.words, telling=parts.telling,
        method=display_name,
    )  # fmt: skip
    environment.globals["SIGNIFICANT"] = SIGNIFICANT
    return environment
