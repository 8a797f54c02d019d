"""Ctrl-C at any moment, and still nothing half-done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a short block finish: a Ctrl-C that arrives inside it is raised as it ends.

    Outside the main thread, where Python delivers no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived = False

    def remember(signum: int, frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = True

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        # None: a handler that was not set from Python, and cannot be put back by it.
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
        if arrived and before != signal.SIG_IGN:  # under nohup nothing is asked to end
            if not callable(before):
                raise KeyboardInterrupt
            before(signal.SIGINT, None)
