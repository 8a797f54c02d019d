"""Whole numbers that users give: batch sizes, samples, ranks."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int; a number of another kind is one too, where it is a whole one by its type.

    Raises:
        ValueError: for what is no whole number (2.0 isn't, nor is True), or below `least`.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        # 1e6 is how a large count is often written.
        meant = f", such as {value:.0f}" if isinstance(value, float) and value.is_integer() else ""
        raise ValueError(f"{name} is {value!r}; expected a whole number{meant}.")
    if count < least:
        raise ValueError(f"{name} is {count}; expected at least {least}.")
    return count


def checked_counts(name: str, values: Iterable[Any], least: int = 0) -> list[int]:
    """Each of the values, as `checked_count` has it."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is {values!r}; expected a list of whole numbers.")
    return [checked_count(f"One of {name}", value, least) for value in values]
