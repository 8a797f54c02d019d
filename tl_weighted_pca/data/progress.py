"""A progress bar in tokens, with the time left wherever the data's size can be told."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from tl_weighted_pca.data.batches import Batch, count_batches, count_tokens


class Progress:
    """Tokens done, tokens a second, time left: in a terminal or a notebook.

    Where only the number of batches is known ahead, the total is estimated from those seen.

    Args:
        data: what is to be read; it is not touched.
        batch_size: sequences a batch.
        max_tokens: where reading stops.
        shown: False is silent.
        title: what is done.
        passes: how often each batch advances it.
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
        self._exact = count_tokens(data) is not None
        n_batches, n_tokens = count_batches(data, batch_size), count_tokens(data, max_tokens)
        self._n_batches = None if n_batches is None else n_batches * passes
        self._limit = None if max_tokens is None else max_tokens * passes
        self._seen = self._done = 0
        self._bar = tqdm(
            total=None if n_tokens is None else n_tokens * passes,
            unit="tok",
            unit_scale=True,
            desc=title,
            dynamic_ncols=True,
            disable=not shown,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bar.close()

    def skip(self, batch: Batch) -> None:
        """A batch that an earlier run has done: it counts, but not for the speed."""
        if not self._bar.disable:
            self._bar.initial += batch.n_tokens
        self.advance(batch)

    def advance(self, batch: Batch) -> None:
        """A batch is done, for one of its passes."""
        self._seen += 1
        self._done += batch.n_tokens
        if not self._exact and self._n_batches:
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
