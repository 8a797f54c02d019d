"""Progress in tokens: a bar in a terminal or a notebook, a line now and then in a log."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from tqdm.auto import tqdm

from tl_weighted_pca.data.batches import Batch, count_batches, count_tokens

_SECONDS = 30
"""Between two lines where there is no terminal."""


def progress_bar(title: str, unit: str, total: int | None, shown: bool, **options: Any) -> tqdm:
    """A bar of tqdm's; where stderr is no terminal, and this no notebook, at most a line every 30 seconds."""
    options |= {"desc": title, "unit": unit, "total": total, "disable": not shown}
    if unit == "tok":
        options["unit_scale"] = True
    notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    if not notebook and not sys.stderr.isatty():
        lines = {"file": _Lines(), "delay": _SECONDS, "mininterval": _SECONDS, "miniters": 1}
        return tqdm(**lines, **options)
    return tqdm(dynamic_ncols=True, **options)


class _Lines(io.TextIOBase):
    """What tqdm draws over and over, on stderr as a line from time to time."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def write(self, text: str) -> int:
        line, now = text.strip(), time.monotonic()
        if line and now - self._last >= _SECONDS:
            self._last = now
            print(line, file=sys.stderr, flush=True)
        return len(text)


class Progress:
    """Tokens done, tokens a second, time left.

    The total is what is there: counted ahead where that can be done unread, else known once a stream has
    come within a window of its end. Before that it is the limit, or, where the number of batches is known,
    estimated from those seen. The data are not touched; each batch advances it `passes` times.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        max_tokens: int | None,
        shown: bool,
        *,
        title: str = "Collecting",
        passes: int = 1,
    ) -> None:
        total = count_tokens(data, max_tokens) if shown else None
        n_batches = count_batches(data, batch_size)
        self._exact, self._passes = total is not None, passes
        self._n_batches = None if n_batches is None else n_batches * passes
        self._limit = None if max_tokens is None else max_tokens * passes
        self._seen = self._done = self._of_one_pass = 0
        self._last: Batch | None = None
        ahead = self._limit if total is None else total * passes
        self._bar = progress_bar(title, "tok", ahead, shown)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and self._bar.total is not None:
            self._expect(self._done)
        self._bar.close()

    def skip(self, batch: Batch) -> None:
        """A batch that an earlier run has done: it counts, but not for the speed."""
        for _ in range(self._passes):
            if not self._bar.disable:
                self._bar.initial += batch.n_tokens
            self.advance(batch)

    def advance(self, batch: Batch) -> None:
        """A batch is done, for one of its passes."""
        self._seen += 1
        self._done += batch.n_tokens
        if batch is not self._last:  # in whichever order batches and passes are gone through
            self._of_one_pass += batch.n_tokens
            self._last = batch
        if not self._exact and batch.n_left is not None:
            self._exact = True
            self._expect(self._passes * (self._of_one_pass + batch.n_left))
        elif not self._exact and self._n_batches:
            expected = round(self._done * self._n_batches / self._seen)
            self._expect(min(expected, self._limit or expected))
        self._bar.update(batch.n_tokens)

    def _expect(self, total: int) -> None:
        self._bar.total = total
        # A notebook's bar keeps a total of its own; tqdm's `reset` sets it, but forgets the time.
        container = getattr(self._bar, "container", None)
        if container is not None:
            container.children[1].max = total
            container.children[1].bar_style, container.children[1].layout.width = "", None
