"""A folder of results: there whole, with a manifest that says how to make it again, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tl_weighted_pca.runs.lock import FolderLock
from tl_weighted_pca.runs.manifest import MANIFEST, new_manifest, now, read_manifest, sha256
from tl_weighted_pca.runs.overlap import check_apart
from tl_weighted_pca.support.files import remove_leftovers, write_text_atomically
from tl_weighted_pca.support.interrupts import uninterrupted

_CHECKPOINTS = "checkpoint*.safetensors"
_PREPARED = "prepared*.safetensors"
"""What checkpoints build on: kept beside one, and not by itself."""


class RunFolder:
    """`path`, made by way of `path.partial`: renamed when all is written, removed when anything fails.

    Only checkpoints and what they build on outlive a failure, for the next run to resume, and whole results
    that could not be renamed. The manifest holds the command line, every setting, versions, the seed, and the
    SHA-256 of each file read and written.

    Args:
        path: of the folder to be; of a link, what it points to.
        arguments: of the command line, after the program's name.
        settings: what these and the defaults came to.
        overwrite: replace a folder that an earlier run made, and that holds nothing else at any depth.
            Others are never touched.
        resume: take up the checkpoints that an earlier run left in `path.partial`.
        inputs: files and folders that the run will read.

    Raises:
        ValueError: on entering, if the folder is there already and not to be replaced, cannot be
            replaced, or was not finished; if another run is writing to it; or if it is, contains or lies
            within an input, links followed.
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
        inputs: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.partial = partial_of(path)
        self._overwrite, self._resume = overwrite, resume
        self._inputs = list(inputs)
        self._lock = FolderLock(
            self.partial,
            f"Another run is writing to {self.path} now: wait for its end, or choose another --out.",
        )
        self._made: list[Path] = []  # of the folders above it, innermost first
        self.started = False
        """Whether the folder is this run's own to write."""
        self.manifest = new_manifest(arguments, settings or {})

    def __enter__(self) -> RunFolder:
        for path in self._inputs:
            self.check_apart(path)
        self._made = [parent for parent in self.partial.parents if not parent.exists()]
        try:
            self._check_path()
            self._check_partial()
            self._make_partial()
            self.started = True
            self._make_room()
            if self.resumable:
                # Its manifest stays until the end: who knows yet whether these checkpoints are ours?
                self.manifest["started"] = read_manifest(self.partial).get("started")
            else:
                self._write_manifest(started=now())
        except BaseException:
            if self.started:
                self._discard()
            self._remove_made()
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                files = [f for f in sorted(self.partial.rglob("*")) if f.is_file()]
                outputs = {
                    f.relative_to(self.partial).as_posix(): sha256(f)
                    for f in files
                    if not _is_kept_by_us(f)
                }
                self._write_manifest(finished=now(), outputs=outputs)
        finally:
            if not self.manifest["finished"]:
                self._discard()
                self._lock.release()
        if error is None:
            try:
                self._move()
            finally:
                self._lock.release()

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
        self.check_apart(source)
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        for file in files:
            if file.is_file():
                self.check_apart(file)
                self.manifest["inputs"][str(file)] = sha256(file)
        return source

    def check_apart(self, path: str | os.PathLike[str]) -> None:
        """Raise ValueError if the folder is, contains or lies within an input, links followed."""
        check_apart((self.path, self.partial), path)

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
        if not self.partial.is_dir():
            raise ValueError(f"{self.partial} is no folder: move it away, or choose another --out.")
        self._lock.take()
        remove_leftovers(self.partial / MANIFEST)  # of a run that was killed as it began
        if _is_empty(self.partial):
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
                f"{self.partial} holds a run that did not finish: add {mend} to start anew."
            )
        if whole or not (self._resume and self.resumable):
            for file in self.partial.iterdir():  # and not the folder, which is locked
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()

    def _make_partial(self) -> None:
        try:
            self.partial.mkdir(parents=True, exist_ok=self._lock.held)
            if not self._lock.held:
                self._lock.take()
        except FileExistsError as error:  # made by another run in this very moment
            raise ValueError(self._lock.message) from error
        except OSError as error:
            raise OSError(
                error.errno, f"Cannot write to {self.partial}: {error.strerror}"
            ) from error

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
            for pattern in (_CHECKPOINTS, _PREPARED):  # of what is whole, nobody goes on from these
                for file in self.partial.glob(pattern):
                    file.unlink()
            with uninterrupted():
                self._swap()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise OSError(
                f"The results are whole, but could not be moved to {self.path} ({reason}): they are in "
                f"{self.partial}."
            ) from error

    def _swap(self) -> None:
        """By two renames: at no moment is there a folder with files of both."""
        where = self.path.parent
        prefix = f".{self.path.name}.before."
        with tempfile.TemporaryDirectory(
            dir=where, prefix=prefix, ignore_cleanup_errors=True
        ) as aside:
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
            self._remove_made()
            return
        for file in self.partial.iterdir():
            if file.is_file() and not _is_kept_by_us(file):
                file.unlink()

    def _remove_made(self) -> None:
        with contextlib.suppress(OSError):  # where somebody else has put something by now
            for parent in self._made:
                parent.rmdir()


def partial_of(path: str | os.PathLike[str]) -> Path:
    """Where a folder is written until it is whole."""
    return Path(f"{os.path.realpath(path)}.partial")


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
        # In its place a folder has no checkpoints either: these went before it was moved there.
        files = (f for f in folder.rglob("*") if whole or not _is_kept_by_us(f))
        ours = {Path(MANIFEST), *map(Path, manifest["outputs"])}
        ours |= {parent for file in ours for parent in file.parents}
        foreign = {file.relative_to(folder) for file in files} - ours
        if outermost := sorted(file.as_posix() for file in foreign if file.parent not in foreign):
            what = ", ".join(map(repr, outermost))
            raise ValueError(f"{folder} holds {what}, not made by this program, {mend}.")
    return manifest
