"""A folder of results: there whole, with a manifest that says how to make it again, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

MANIFEST = "manifest.json"
FORMAT = "tl_weighted_pca.RunFolder/1"

_PACKAGES = ("tl-weighted-pca", "torch", "transformer-lens", "transformers", "datasets", "numpy")
_CHECKPOINTS = "checkpoint*.safetensors"


class RunFolder:
    """`path`, made by way of `path.partial`: renamed when all is written, removed when anything fails.

    Only checkpoints outlive a failure, for the next run to resume. The manifest holds the command line,
    every setting, versions, the seed, and the SHA-256 of each file read and written.

    Args:
        path: of the folder to be.
        arguments: of the command line, after the program's name.
        settings: what these and the defaults came to.
        overwrite: replace a folder that an earlier run made. Others are never touched.
        resume: take up the checkpoints that an earlier run left in `path.partial`.

    Raises:
        ValueError: on entering, if the folder is there already, or one that was not finished.
        OSError: if it cannot be made, or its files cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        arguments: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        self.partial = partial_of(path)
        self._overwrite, self._resume = overwrite, resume
        self.started = False
        """Whether the folder is this run's own to write."""
        settings = {name: _plain(value) for name, value in (settings or {}).items()}
        self.manifest: dict[str, Any] = {
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

    def __enter__(self) -> RunFolder:
        self._check_path()
        self._check_partial()
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self.started = True
            self._write_manifest(started=_now())
        except OSError as error:
            self._discard()
            raise OSError(
                error.errno, f"Cannot write to {self.partial}: {error.strerror}"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._discard()

    @property
    def resumable(self) -> bool:
        """Whether there are checkpoints to go on from."""
        return any(self.partial.glob(_CHECKPOINTS))

    def __truediv__(self, name: str) -> Path:
        """Where to write a file, `folder / "table.csv"`."""
        return self.partial / name

    def reads(self, path: str | os.PathLike[str]) -> Path:
        """Enter an input, a file or a folder of files, in the manifest; its path."""
        source = Path(path)
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        for file in files:
            if file.is_file():
                self.manifest["inputs"][str(file)] = sha256(file)
        return source

    def _check_path(self) -> None:
        if self.path.is_dir() and not any(self.path.iterdir()):
            return
        if self.path.is_dir() and self._overwrite:
            if (self.path / MANIFEST).is_file():
                return
            raise ValueError(
                f"The folder {self.path} was not made by this program (it has no {MANIFEST}), so it is "
                "not overwritten: choose another --out, or remove it yourself."
            )
        if self.path.exists() or self.path.is_symlink():
            what, mend = (
                ("folder", "choose another --out, or add --overwrite to replace it")
                if self.path.is_dir()
                else ("file", "choose another --out")
            )
            raise ValueError(f"The {what} {self.path} exists already: {mend}.")

    def _check_partial(self) -> None:
        if not self.partial.exists() or (self._resume and self.resumable):
            return
        if self._overwrite or self._resume:
            if not (self.partial / MANIFEST).is_file():
                raise ValueError(
                    f"{self.partial} is in the way, and was not made by this program: remove it yourself."
                )
            shutil.rmtree(self.partial)
            return
        mend = "--resume to go on, or --overwrite" if self.resumable else "--overwrite"
        raise ValueError(
            f"{self.partial} holds a run that did not finish, or is still going on: add {mend} to start "
            "anew."
        )

    def _finish(self) -> None:
        for checkpoint in self.partial.glob(_CHECKPOINTS):
            checkpoint.unlink()
        outputs = {f.name: sha256(f) for f in sorted(self.partial.iterdir()) if f.name != MANIFEST}
        self._write_manifest(finished=_now(), outputs=outputs)
        if not self.path.exists():
            os.rename(self.partial, self.path)
            return
        # Swapped by two renames: at no moment is there a folder with files of both.
        with tempfile.TemporaryDirectory(dir=self.path.parent) as aside:
            old = Path(aside) / "old"
            os.rename(self.path, old)
            try:
                os.rename(self.partial, self.path)
            except OSError:
                os.rename(old, self.path)
                raise

    def _write_manifest(self, **entries: Any) -> None:
        self.manifest |= entries
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n"
        (self.partial / MANIFEST).write_text(text, encoding="utf-8")

    def _discard(self) -> None:
        if not self.resumable:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        for file in self.partial.iterdir():
            if file.name != MANIFEST and not file.match(_CHECKPOINTS):
                file.unlink()


def partial_of(path: str | os.PathLike[str]) -> Path:
    """Where a folder is written until it is whole."""
    path = Path(path)
    if path.name in ("", ".."):  # the current folder, or one above it
        path = Path(os.path.abspath(path))
    return path.with_name(path.name + ".partial")


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a run's folder.

    Raises:
        ValueError: if the folder has none, or one that is damaged.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
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
    return manifest


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
