"""Feature cards: what the components of a basis mean, read off the model and its data."""

from tl_weighted_pca.feature_cards.card import (
    Context,
    DirectLogits,
    FeatureCard,
    Neighbour,
    QuantileGroup,
)
from tl_weighted_pca.feature_cards.card_set import FeatureCards
from tl_weighted_pca.feature_cards.facts import FactScore
from tl_weighted_pca.feature_cards.histogram import Histogram
from tl_weighted_pca.feature_cards.prompt_view import PromptView
from tl_weighted_pca.feature_cards.streamed_cards import cards

__all__ = [
    "Context",
    "DirectLogits",
    "FactScore",
    "FeatureCard",
    "FeatureCards",
    "Histogram",
    "Neighbour",
    "PromptView",
    "QuantileGroup",
    "cards",
]
