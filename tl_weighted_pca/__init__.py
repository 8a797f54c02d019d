"""Find the directions a transformer uses: PCA that sees gradients, and torch's SVD."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_weighted_pca import dictionary as dictionary
    from tl_weighted_pca import embedded as embedded
    from tl_weighted_pca import plots as plots
    from tl_weighted_pca import toy as toy
    from tl_weighted_pca.public import *  # noqa: F403

__version__ = "0.2.0"

_ROOMS = ("dictionary", "embedded", "plots", "toy")
"""Subpackages that users reach as attributes, without importing them."""


def __getattr__(name: str) -> Any:
    """Import torch and TransformerLens only when a public name is used: `--help` need not wait."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    public = importlib.import_module(f"{__name__}.public")
    if name == "__all__" or name in public.__all__:
        value = globals()[name] = getattr(public, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*_ROOMS, *__getattr__("__all__"), *(n for n in globals() if n[:2] == "__")})
