"""Find the directions a transformer uses: PCA that sees gradients, and torch's SVD."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_weighted_pca import dictionary as dictionary
    from tl_weighted_pca import embedded as embedded
    from tl_weighted_pca import plots as plots
    from tl_weighted_pca import toy as toy
    from tl_weighted_pca.public import *  # noqa: F403

__version__ = "0.1.0"

_SUBMODULES = ("dictionary", "embedded", "plots", "toy")
"""Those that are attributes unimported."""

_OVER_SUBMODULES = ("collect", "path_metric", "svd")
"""Functions that are called as the submodules that hold them."""


class _Package(ModuleType):
    """This package, which imports torch and TransformerLens only when a public name is used.

    The command line's help and completion, and whoever only asks for the version, need not wait.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the submodule `collect` would bind it here, in the place of the function.
        if not (name in _OVER_SUBMODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    public = importlib.import_module(f"{__name__}.public")
    if name == "__all__" or name in public.__all__:
        value = globals()[name] = getattr(public, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*_SUBMODULES, *__getattr__("__all__"), *(n for n in globals() if n[:2] == "__")})
