"""Feature cards: what the components of a basis mean, read off the model and its data."""

from tl_weighted_pca.feature_cards.card import Context, FeatureCard, FeatureCards
from tl_weighted_pca.feature_cards.facts import FactScore
from tl_weighted_pca.feature_cards.histogram import Histogram
from tl_weighted_pca.feature_cards.streamed_cards import cards

__all__ = ["Context", "FactScore", "FeatureCard", "FeatureCards", "Histogram", "cards"]
