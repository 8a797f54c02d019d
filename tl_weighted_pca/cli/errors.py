"""What goes wrong, told in one sentence."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

DEBUG = "tl_weighted_pca.debug"
"""Where the context keeps whether `--debug` was given, before the command or after it."""

ARGUMENTS = "tl_weighted_pca.arguments"
"""Where it keeps the command line."""


class OneSentenceGroup(TyperGroup):
    """Commands whose errors are one sentence on stderr and exit code 1; Ctrl-C is 130 and says nothing."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        given = list(args)  # which parsing uses up
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[ARGUMENTS] = given
        return context

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error
        except BrokenPipeError:  # of `| head`; typer knows
            raise
        except (ValueError, TypeError, OSError, ImportError) as error:
            if ctx.meta.get(DEBUG):
                raise
            tell(sentence(error))
            raise typer.Exit(1) from error


def tell(text: str, *, head: str = "Error", style: str = "bold red") -> None:
    """One line on stderr."""
    # Escaped: to rich a shape such as [batch, pos] is a tag, and vanishes.
    line = f"[{style}]{head}:[/] {escape(text)}"
    Console(stderr=True, soft_wrap=True).print(line, highlight=False)


def sentence(error: BaseException) -> str:
    """What an error says, on one line; without the number of an operating system's error."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        text = f"{error.strerror}{place}"
    return " ".join(text.split()) or type(error).__name__
