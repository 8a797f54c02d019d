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

from tl_weighted_pca.files import write_text_atomically
from tl_weighted_pca.interrupts import uninterrupted

MANIFEST = "manifest.json"
FORMAT = "tl_weighted_pca.RunFolder/1"

_PACKAGES = ("tl-weighted-pca", "torch", "transformer-lens", "transformers", "datasets", "numpy")
_CHECKPOINTS = "checkpoint*.safetensors"
_PREPARED = "prepared*.safetensors"
"""What checkpoints build on: kept beside one, and not by itself."""
_TEXTS, _TABLES = ("command", "folder"), ("settings", "versions", "inputs", "outputs")


class RunFolder:
    """`path`, made by way of `path.partial`: renamed when all is written, removed when anything fails.

    Only checkpoints and what they build on outlive a failure, for the next run to resume, and whole results
    that could not be renamed. The manifest holds the command line, every setting, versions, the seed, and the
    SHA-256 of each file read and written.

    Args:
        path: of the folder to be; of a link, what it points to.
        arguments: of the command line, after the program's name.
        settings: what these and the defaults came to.
        overwrite: replace a folder that an earlier run made, and that holds nothing else. Others are
            never touched.
        resume: take up the checkpoints that an earlier run left in `path.partial`.

    Raises:
        ValueError: on entering, if the folder is there already and not to be replaced, cannot be
            replaced, or was not finished.
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
        self.path = Path(os.path.realpath(path))
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
        except OSError as error:
            raise OSError(
                error.errno, f"Cannot write to {self.partial}: {error.strerror}"
            ) from error
        try:
            self._make_room()
            if self.resumable:
                # Its manifest stays until the end: who knows yet whether these checkpoints are ours?
                self.manifest["started"] = read_manifest(self.partial).get("started")
            else:
                self._write_manifest(started=_now())
        except BaseException:
            self._discard()
            raise
        self.started = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                files = (f for f in sorted(self.partial.iterdir()) if not _is_kept_by_us(f))
                self._write_manifest(finished=_now(), outputs={f.name: sha256(f) for f in files})
        finally:
            if not self.manifest["finished"]:
                self._discard()
        if error is None:
            self._move()

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
        if self.path.exists() and self.path == Path.cwd():
            raise ValueError(
                f"The folder {self.path} is the current one, which cannot be replaced: choose another "
                "--out, such as 'results'."
            )
        if not self.path.exists() or _is_empty(self.path):
            return
        if not self.path.is_dir():
            raise ValueError(f"The file {self.path} exists already: choose another --out.")
        if not self._overwrite:
            mend = "choose another --out, or add --overwrite to replace it"
            raise ValueError(f"The folder {self.path} exists already: {mend}.")
        _check_ours(self.path, whole=True)

    def _check_partial(self) -> None:
        if not self.partial.exists():
            return
        whole = _check_ours(self.partial).get("finished")
        if whole and not self._overwrite:
            raise ValueError(
                f"{self.partial} holds whole results that were not moved to {self.path}: move them "
                "yourself, or add --overwrite to start anew."
            )
        if not (self._overwrite or self._resume):
            mend = "--resume to go on, or --overwrite" if self.resumable else "--overwrite"
            raise ValueError(
                f"{self.partial} holds a run that did not finish, or is still going on: add {mend} to "
                "start anew."
            )
        if whole or not (self._resume and self.resumable):
            shutil.rmtree(self.partial)

    def _make_room(self) -> None:
        """Remove an empty folder now: one that cannot be removed could not be replaced either."""
        try:
            if _is_empty(self.path):
                self.path.rmdir()
        except OSError as error:
            raise ValueError(
                f"The empty folder {self.path} cannot be replaced ({error.strerror}): choose another "
                f"--out, such as {self.path / 'results'}."
            ) from error

    def _move(self) -> None:
        try:
            self._check_path()  # again: there may be something by now
            with uninterrupted():
                self._swap()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise OSError(
                f"The results are whole, but could not be moved to {self.path} ({reason}): they are in "
                f"{self.partial}."
            ) from error
        for pattern in (_CHECKPOINTS, _PREPARED):
            for file in self.path.glob(pattern):
                file.unlink()

    def _swap(self) -> None:
        """By two renames: at no moment is there a folder with files of both."""
        where = self.path.parent
        with tempfile.TemporaryDirectory(dir=where, ignore_cleanup_errors=True) as aside:
            old = Path(aside) / "old"
            if self.path.exists():
                os.rename(self.path, old)
            try:
                os.rename(self.partial, self.path)
            except OSError:
                if old.exists():
                    os.rename(old, self.path)
                raise

    def _write_manifest(self, **entries: Any) -> None:
        manifest = self.manifest | entries
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_text_atomically(self.partial / MANIFEST, text)
        self.manifest = manifest

    def _discard(self) -> None:
        if not self.resumable:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        for file in self.partial.iterdir():
            if file.is_file() and not _is_kept_by_us(file):
                file.unlink()


def partial_of(path: str | os.PathLike[str]) -> Path:
    """Where a folder is written until it is whole."""
    return Path(f"{os.path.realpath(path)}.partial")


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


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _is_kept_by_us(file: Path) -> bool:
    """Whether a file is no result, but there for the folder's own sake."""
    return file.name == MANIFEST or file.match(_CHECKPOINTS) or file.match(_PREPARED)


def _check_ours(folder: Path, *, whole: bool = False) -> dict[str, Any]:
    """The manifest of a folder that a run made, and all that is in it; ValueError of any other."""
    mend = "so it is not overwritten: move that away, or choose another --out"
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} was not made by this program, {mend}.") from error
    # A run that was killed could not say yet what it had written.
    if whole or manifest.get("finished"):
        names = {file.name for file in folder.iterdir() if not _is_kept_by_us(file)}
        if foreign := sorted(names - {*manifest["outputs"]}):
            what = ", ".join(map(repr, foreign))
            raise ValueError(f"{folder} holds {what}, not made by this program, {mend}.")
    return manifest


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
