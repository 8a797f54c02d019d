"""Cards as JSON, for other programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tl_weighted_pca.feature_cards.card import Context, DirectLogits, FeatureCard
from tl_weighted_pca.feature_cards.histogram import Histogram
from tl_weighted_pca.feature_cards.prompt_view import PromptView

if TYPE_CHECKING:
    from tl_weighted_pca.feature_cards.card_set import FeatureCards

SCHEMA = "tl_weighted_pca.FeatureCards/1"


def as_json(cards: FeatureCards) -> str:
    """The schema is in docs/feature_cards.md; what is not a number, or not there, is null."""
    content = {
        "schema": SCHEMA,
        "model": cards.model,
        "hook_point": cards.hook_point,
        "method": cards.method,
        "compared": cards.compared or None,
        "n_tokens": cards.n_tokens,
        "n_sequences": cards.n_sequences,
        "score": None if cards.ablations is None else _score(cards),
        "notes": cards.notes,
        "components": [_card(card) for card in cards],
        "prompts": [_prompt(prompt) for prompt in cards.prompts],
    }
    return json.dumps(content, allow_nan=False)


def _score(cards: FeatureCards) -> dict[str, Any]:
    assert cards.ablations is not None
    return {"unit": cards.ablations.unit, "unablated": cards.ablations.baseline}


def _card(card: FeatureCard) -> dict[str, Any]:
    cost = card.cost
    return {
        "component": card.component,
        "head": card.head,
        "eigenvalue": _number(card.eigenvalue),
        "explained_ratio": _number(card.explained_ratio),
        "block": list(card.block),
        "cost": None
        if cost is None
        else {"value": float(cost), "low": _number(cost.low), "high": _number(cost.high)},
        "histogram": _histogram(card.histogram),
        "direct_logits": None if card.direct_logits is None else _logits(card.direct_logits),
        "highest": [_context(each) for each in card.highest],
        "lowest": [_context(each) for each in card.lowest],
        "quantiles": [
            {
                "low": group.low,
                "high": group.high,
                "share": group.share,
                "contexts": [_context(each) for each in group.contexts],
            }
            for group in card.quantiles
        ],
        "nearest": [
            {**dataclasses.asdict(each), "basis": each.basis or None} for each in card.nearest
        ],
        "facts": [dataclasses.asdict(score) for score in card.facts],
    }


def _histogram(histogram: Histogram) -> dict[str, Any]:
    shown = histogram.shown()
    return {
        "edges": shown.edges.tolist(),
        "counts": shown.counts.tolist(),
        "mean": histogram.mean,
        "std": histogram.std,
        "minimum": histogram.minimum,
        "maximum": histogram.maximum,
    }


def _logits(logits: DirectLogits) -> dict[str, Any]:
    def pairs(tokens: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
        return [{"token": token, "logit": logit} for token, logit in tokens]

    return {
        "histogram": _histogram(logits.histogram),
        "promoted": pairs(logits.promoted),
        "suppressed": pairs(logits.suppressed),
    }


def _context(context: Context) -> dict[str, Any]:
    return {
        "sequence": context.sequence,
        "position": context.position,
        "tokens": context.tokens,
        "coordinates": [_number(z) for z in context.coordinates],
        "focus": context.focus,
    }


def _prompt(prompt: PromptView) -> dict[str, Any]:
    return {
        "tokens": prompt.tokens,
        "targets": prompt.targets,
        "logits": prompt.logits.tolist(),
        "coordinates": [[_number(z) for z in row] for row in prompt.coordinates.tolist()],
        "effects": prompt.effects.tolist(),
    }


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None
