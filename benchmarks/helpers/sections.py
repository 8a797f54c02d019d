"""Sections of a page within a budget of seconds: one that fails costs no other its rows."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch


class LeftOut(Exception):
    """A section that has nothing to measure here, and why."""


class Section(NamedTuple):
    """A table, and what gives its rows one by one."""

    title: str
    what: str
    head: Sequence[str]
    rows: Callable[[], Iterator[Sequence[Any]]]


def measure(
    sections: Sequence[Section], seconds: float, tell: Callable[[list[str]], None]
) -> list[str]:
    """Names of the sections that failed; every row is told as it comes, with all lines before it.

    Args:
        sections: those of most worth first.
        seconds: after which no further row is begun.
        tell: takes all lines so far, such as a page to write.
    """
    end, lines, failed = time.monotonic() + seconds, list[str](), list[str]()
    for title, what, head, rows in sections:
        lines += [f"## {title}", "", what, "", _row(head), "|" + " --- |" * len(head)]
        note = ""
        try:
            found = rows()
            while True:
                if time.monotonic() > end:
                    raise LeftOut(f"the budget of {seconds:.0f} seconds was spent")
                row = next(found, None)
                if row is None:
                    break
                lines.append(_row(row))
                tell(lines)
        except LeftOut as reason:
            note = f"*Left out from here on: {reason}.*"
        except Exception as error:
            traceback.print_exc()
            first = next(iter(str(error).splitlines()), "")
            note, failed = f"*Failed here: {type(error).__name__}: {first}*", [*failed, title]
        lines += ["", note, ""] if note else [""]
        tell(lines)
        gc.collect()  # what a failure held on to
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return failed


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
