"""What is printed, and never at the cost of results."""

from __future__ import annotations

import os
import sys
from typing import Any, Literal, NoReturn

from rich.console import Console
from rich.markup import escape


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError  # where rich would end the program


def show(*parts: Any, **options: Any) -> None:
    """Print on stdout, a line a part. Nobody listening, or a letter that the encoding lacks, ends nothing."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        for part in parts:
            _Console().print(part, **options)
    except OSError as error:
        # The rest goes nowhere, and so does what Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # of `| head`, which has read enough
            tell(f"Not all could be printed: {error.strerror}.", head="Note")


def tell(text: str, *, head: Literal["Error", "Note"] = "Error") -> None:
    """One line on stderr."""
    style = {"Error": "bold red", "Note": "bold yellow"}[head]
    # Escaped: to rich a shape such as [batch, pos] is a tag, and vanishes.
    line = f"[{style}]{head}:[/] {escape(text)}"
    try:
        _Console(stderr=True, soft_wrap=True).print(line, highlight=False)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
