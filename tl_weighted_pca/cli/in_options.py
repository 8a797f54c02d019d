"""Messages of the library, which name Python's arguments, in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_VALUE = r"slice\([^)]*\)|'[^']*'|[^\s,;:()]*[^\s,;:().]|"


def in_options(text: str, options: Iterable[Any]) -> str:
    """What a message says of arguments, said of a command's options: `--outliers 10` for `outliers=10`.

    Arguments of functions that it names stay, and what the command has no option for.
    """
    for option in options:
        long = max(option.opts, key=len)
        if not long.startswith("--"):
            continue
        name = long.removeprefix("--").replace("-", "_")

        def said(found: re.Match[str], option: Any = option, long: str = long) -> str:
            value = _as_typed(found[1])
            if value in ("True", "False") and option.is_flag:
                return long if value == "True" else [*option.secondary_opts, found[0]][0]
            return f"{long} {value}".rstrip()

        text = re.sub(rf"(?<![\w/.'(-])(?<!…, ){name}=({_VALUE})", said, text)
        text = re.sub(rf"^{name}(?= is )", long, text)
        if "_" in name:  # which is no word of a sentence
            text = re.sub(rf"(?<![\w/.'(-])(?<!'s ){name}(?![\w/='()-]|\.\w)", long, text)
    return text


def _as_typed(value: str) -> str:
    """A Python value as the command line has it: 1: for slice(1, None, None)."""
    if (ends := re.fullmatch(r"slice\((.*), (.*), (.*)\)", value)) is None:
        return value.strip("'")
    start, stop, step = ("" if end == "None" else end for end in ends.groups())
    return f"{start}:{stop}" + (f":{step}" if step else "")
