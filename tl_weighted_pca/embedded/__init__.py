"""A small language model and the stories it was trained on, for work without a network.

``load_model()`` gives the model, ``stories(split)`` the data with its latent ``FACTS``.
"""

from .corpus import stories
from .grammar import FACTS
from .model import load_model

__all__ = ["FACTS", "load_model", "stories"]
