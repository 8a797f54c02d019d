"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tl_weighted_pca.support.interrupts import uninterrupted


def write_atomically(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file by way of a temporary one beside it: written, synced, then renamed.

    Whatever happens, `path` holds the old file or the new one, whole.

    Raises:
        OSError: if the disk is full or the folder cannot be written, naming the path.
    """
    with _replacing(Path(path)) as temporary:
        save_file(_apart(tensors), temporary, dict(metadata))


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text as `write_atomically` writes tensors.

    Raises:
        OSError: if the disk is full or the folder cannot be written, naming the path.
    """
    with _replacing(Path(path)) as temporary:
        Path(temporary).write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def reading(
    path: str | os.PathLike[str], form: str, writer: str, device: torch.device | str = "cpu"
) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
    """The tensors of a safetensors file whose format mark is `form`, as `writer` makes them, and its header.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else, or is damaged: what is not found in it counts as that.
    """
    name = repr(os.fspath(path))
    if os.path.isdir(path):
        raise ValueError(f"{name} is a folder: pass a file written by {writer}.")
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for without end
        raise ValueError(f"{name} is no ordinary file: pass a file written by {writer}.")
    torch.empty(0, device=device)  # a device that is not there is no damage to the file
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            header = file.metadata() or {}
            if header.get("format") != form:
                raise ValueError(
                    f"{name} holds {header.get('format', 'no format mark')!r}, expected {form!r}: pass a "
                    f"file written by {writer}."
                )
            yield tensors_of(file), header
    except (SafetensorError, json.JSONDecodeError, LookupError, TypeError, RuntimeError) as error:
        if os.path.isfile(path) and not _begins_as_safetensors(path):
            raise ValueError(
                f"{name} is not readable as what {writer} writes: it is no safetensors file."
            ) from error
        raise ValueError(
            f"{name} is not readable as what {writer} writes ({error}): it is damaged, or something else."
        ) from error


def _begins_as_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins with the length of a header, and with one."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def tensors_of(file: Any, prefix: str = "") -> dict[str, Tensor]:
    """What an open safetensors file holds under names that begin with `prefix`, by the rest of their names.

    A Ctrl-C within safetensors would come out as a ValueError about shapes: it waits for the tensor's end.
    """
    tensors = {}
    for name in file.keys():  # noqa: SIM118 (no mapping)
        if name.startswith(prefix):
            with uninterrupted():
                tensors[name.removeprefix(prefix)] = file.get_tensor(name)
    return tensors


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError now rather than after hours, if `write_atomically` could not write `path`."""
    with uninterrupted():
        handle, temporary = _temporary_beside(Path(path))
        os.close(handle)
        os.unlink(temporary)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files of processes that were killed while they wrote `path`.

    Their names have eight random characters, and no more: those of `path.other` are another's.
    """
    target = Path(path)
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.????????.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[str]:
    """A temporary file to write, which takes the place of `target` once the block ends well."""
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, f"Cannot write {target}: it is no ordinary file")
    temporary = None
    try:
        with uninterrupted():
            handle, temporary = _temporary_beside(target)
            os.close(handle)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            # Temporary files are private; a result is as readable as any other file of the user's.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, target)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            code = getattr(error, "errno", None) or errno.EIO
            raise OSError(
                code, f"Cannot write {target}: {reason}; what was there before is untouched"
            ) from error
    finally:
        if temporary is not None:
            with uninterrupted(), contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _temporary_beside(target: Path) -> tuple[int, str]:
    try:
        return tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise OSError(
            error.errno, f"Cannot write to the folder of {target}: {error.strerror}"
        ) from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, no two of them sharing memory."""
    found, places = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in places:
            tensor = tensor.clone()
        places.add(tensor.data_ptr())
        found[name] = tensor
    return found
