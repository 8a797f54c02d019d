"""What a run reads and what it writes lie apart."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def check_apart(outputs: Iterable[Path], read: str | os.PathLike[str]) -> None:
    """Raise ValueError if an output is, contains or lies within what is read, links followed.

    Replaced, it would take the input away; written within it, it would be read as part of it.
    """
    for file in _with_links(Path(read)):
        source = Path(os.path.realpath(file))
        if not source.exists():
            continue
        for output in outputs:
            if _identity(source) in _above(output) or _identity(output) in _above(source):
                raise ValueError(
                    f"The output {output} and the input {file} are one, or one holds the other: choose "
                    "another --out."
                )


def _with_links(path: Path) -> Iterator[Path]:
    """A path, and what links in a folder lead to, as deep as a folder is read."""
    yield path
    if path.is_dir():
        within = itertools.chain(path.glob("*"), path.glob("*/*"))
        yield from (file for file in within if file.is_symlink())


def _identity(path: Path) -> tuple[int, int] | Path:
    """What tells a file or a folder from others under whatever name; of what is not there yet, its name."""
    try:
        found = path.stat()
    except OSError:
        return path
    return found.st_dev, found.st_ino


def _above(path: Path) -> set[tuple[int, int] | Path]:
    """A path and all that it lies within."""
    return {_identity(each) for each in (path, *path.parents)}
