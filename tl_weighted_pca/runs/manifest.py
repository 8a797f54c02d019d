"""What a run's manifest says: the command, its settings and versions, and the files read and written."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = "tl_weighted_pca.RunFolder/1"

_PACKAGES = ("tl-weighted-pca", "torch", "transformer-lens", "transformers", "datasets", "numpy")
_TEXTS, _TABLES = ("command", "folder"), ("settings", "versions", "inputs", "outputs")


def new_manifest(arguments: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """That of a run of `tl-weighted-pca` with these arguments and settings, which is still to start."""
    settings = {name: _plain(value) for name, value in settings.items()}
    return {
        "format": FORMAT,
        "command": shlex.join(["tl-weighted-pca", *arguments]),
        "folder": os.getcwd(),
        "settings": settings,
        "seed": settings.get("seed"),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
        "started": None,
        "finished": None,
        "inputs": {},
        "outputs": {},
    }


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a run's folder.

    Raises:
        ValueError: if the folder has none, or one that is damaged.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except NotADirectoryError as error:
        raise ValueError(f"{folder} is a file: pass a folder that this program made.") from error
    except FileNotFoundError as error:
        raise ValueError(
            f"The folder {folder} has no {MANIFEST}: pass a folder that this program made."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no readable manifest: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no manifest of {FORMAT}: pass a folder that this program made."
        )
    for names, kind in ((_TEXTS, str), (_TABLES, dict)):
        for name in names:
            if not isinstance(manifest.get(name), kind):
                raise ValueError(f"{path} is damaged: it does not tell the run's {name}.")
    return manifest


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
