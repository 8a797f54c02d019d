"""What tables and pictures call a method."""

from __future__ import annotations

_NAMES = {
    "pca": "PCA",
    "weighted": "weighted PCA",
    "gradient": "gradient PCA",
    "metric": "metric PCA",
    "metric fisher": "Fisher-metric PCA",
    "fisher": "Fisher-metric PCA",
    "path": "path-metric PCA",
    "joint": "joint PCA",
    "trained": "trained basis",
}

_OBJECTIVES = ("loss", "fisher", "logits")


def display_name(name: str) -> str:
    """The method's name where the name is a key such as "fisher" or "weighted loss"; else as it is."""
    method, _, objective = name.partition(" ")
    if name not in _NAMES and method in _NAMES and objective in _OBJECTIVES:
        return f"{_NAMES[method]}, {objective}"
    return _NAMES.get(name, name)
