"""The part of a page that a script writes."""

import os
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from tl_weighted_pca.bases.names import display_name

ROUNDS = {"path": "path-metric PCA, one round", "path, twice": "path-metric PCA, two rounds"}


def made_on(*libraries: str) -> str:
    """When and on what a table was made: date, machine with its GPU, and the versions of torch and others."""
    date = datetime.now(timezone.utc).date()
    threads = torch.get_num_threads()
    machine = f"{_processor()}, {os.cpu_count()} CPUs, {threads} thread{'s' * (threads > 1)}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    versions = [f"{name} {version(name)}" for name in ("torch", "transformer-lens", *libraries)]
    return f"*Made {date} on {machine}; Python {platform.python_version()}, {', '.join(versions)}.*"


def _processor() -> str:
    """The processor's name on Linux, elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def shown(name: str) -> str:
    """What tables and pictures call the basis of that key."""
    return ROUNDS.get(name, display_name(name))


def folded(title: str, lines: Iterable[str]) -> list[str]:
    """The lines as a block of the site that opens when its title is clicked."""
    inside = "\n".join(lines).strip("\n").splitlines()
    return [f'\n??? details "{title}"\n', *(f"    {line}" if line else "" for line in inside)]


def write_between_marks(page: Path, name: str, lines: list[str]) -> None:
    """Put lines in the place of what is between `<!-- name -->` and `<!-- end of name -->`."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, rest = page.read_text().split(first)
    _, tail = rest.split(last)
    page.write_text("\n".join([f"{head}{first}", "", *lines, "", f"{last}{tail}"]))


def write_after_mark(page: Path, lines: list[str]) -> None:
    """Put lines in the place of what follows `<!-- table -->`; a page that is not there is made."""
    head = page.read_text().split("<!-- table -->")[0] if page.exists() else ""
    page.write_text("\n".join([f"{head}<!-- table -->", *lines]) + "\n")
