"""Pictures beside the numbers: they come last, and one that fails costs no number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tl_weighted_pca.cli.console import tell
from tl_weighted_pca.cli.errors import sentence


def draw(file: Path, picture: Callable[[], Any]) -> None:
    """Save the figure that `picture` makes.

    Raises:
        OSError: where no file can be written: then numbers could not be, either.
    """
    try:
        picture().savefig(file)
    except OSError:
        raise
    except Exception as error:  # of a plotting library, which may fail in any way
        tell(f"{file.name} was not drawn ({sentence(error)}): the numbers are there.", head="Note")
