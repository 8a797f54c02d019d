"""What tables and pictures call a method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

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
    # As a basis itself has it, and names that come of that.
    "weighted_pca": "weighted PCA",
    "gradient_pca": "gradient PCA",
    "metric_pca": "metric PCA",
    "metric_pca(fisher)": "Fisher-metric PCA",
    "metric_pca(empirical)": "metric PCA, empirical Fisher",
    "metric_pca(path)": "path-metric PCA",
    "joint_pca": "joint PCA",
    "optimize_basis": "trained basis",
    "random_basis": "random",
    "local_interaction_basis": "local interaction basis",
}

_OBJECTIVES = ("loss", "fisher", "logits")


def display_name(name: str) -> str:
    """The method's name where the name is a key such as "fisher" or "weighted loss"; else as it is."""
    method, _, objective = name.partition(" ")
    if name not in _NAMES and method in _NAMES and objective in _OBJECTIVES:
        return f"{_NAMES[method]}, {objective}"
    return _NAMES.get(name, name)


def display_names(names: Iterable[str]) -> dict[str, str]:
    """What each of several is shown as; keys that would read alike stay as they are."""
    shown = {name: display_name(name) for name in names}
    often = Counter(shown.values())
    return {name: label if often[label] == 1 else name for name, label in shown.items()}
