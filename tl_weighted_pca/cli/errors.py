"""What goes wrong, told in one sentence."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tl_weighted_pca.cli.console import tell
from tl_weighted_pca.cli.in_options import in_options

DEBUG = "tl_weighted_pca.debug"
"""Where the context keeps whether `--debug` was given, before the command or after it."""

ARGUMENTS = "tl_weighted_pca.arguments"
"""Where it keeps the command line."""


def _remember_debug(context: typer.Context, value: bool) -> None:
    context.meta[DEBUG] = context.meta.get(DEBUG, False) or value


Debug = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show the traceback of an error.", callback=_remember_debug, is_eager=True
    ),
]
"""The option that every command has, before its name or after it."""


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
            tell(self._said(ctx, error))
            raise typer.Exit(1) from error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11, while a class is made
                raise typer.Exit(130) from error
            if ctx.meta.get(DEBUG) or not _is_of_memory(error):
                raise
            # What this package says of it says what to do; torch and numpy have kinds of their own.
            said = type(error) is MemoryError and str(error) and self._said(ctx, error)
            tell(said or "There is not enough memory for this: try a smaller --batch-size.")
            raise typer.Exit(1) from error

    def _said(self, ctx: Any, error: BaseException) -> str:
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        return in_options(sentence(error), command.params if command else ())


def sentence(error: BaseException) -> str:
    """What an error says, on one line; without the number of an operating system's error."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        text = f"{error.strerror}{place}"
    return " ".join(text.split()) or type(error).__name__


def _is_of_memory(error: BaseException) -> bool:
    # By name: torch, which has its own kinds of it, is slow to import.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "DefaultCPUAllocator" in str(error)
