"""Pictures beside the numbers: they come last, and one that fails costs no number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from tl_weighted_pca.cli.console import tell
from tl_weighted_pca.cli.errors import sentence


@dataclass(frozen=True)
class PictureOptions:
    """What to draw."""

    PANEL: ClassVar = "Results"

    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            help="Write each picture as an HTML file to explore, too; it opens offline.",
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.interactive:  # refused before any work
            from tl_weighted_pca.support.interactive import check_plotly

            check_plotly()

    def draw(self, file: Path, picture: Callable[..., Any]) -> None:
        """Save the figure that `picture` makes, and the one that it makes with `interactive=True`.

        Raises:
            OSError: where no file can be written: then numbers could not be, either.
        """
        try:
            picture().savefig(file)
            if self.interactive:
                from tl_weighted_pca.support.interactive import save_page

                save_page(picture(interactive=True), file.with_name(f"{file.stem}.html"))
        except OSError:
            raise
        except Exception as error:  # of a plotting library, which may fail in any way
            tell(
                f"{file.name} was not drawn ({sentence(error)}): the numbers are there.",
                head="Note",
            )
