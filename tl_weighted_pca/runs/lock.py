"""A folder that one process at a time may write to."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where two runs into one folder are the user's to avoid
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """Held until it is released or the process ends, be it killed; in the folder nothing is written.

    Args:
        path: the folder.
        message: of the error, where another process holds it.
    """

    def __init__(self, path: Path, message: str) -> None:
        self._path, self.message = path, message
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return self._descriptor is not None

    def take(self) -> None:
        """Take it.

        Raises:
            ValueError: if another process has it, or the folder was moved away meanwhile.
            OSError: if there is no such folder.
        """
        descriptor = os.open(self._path, os.O_RDONLY)
        self._descriptor = descriptor
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError) as error:
            self.release()
            raise ValueError(self.message) from error
        except OSError:  # of a file system that has no locks
            pass

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
