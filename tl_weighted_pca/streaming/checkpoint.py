"""A collection under way, in a file from which another process continues with bit-identical results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.data.positions import Outliers
from tl_weighted_pca.support.callables import check_code
from tl_weighted_pca.support.digest import update_digest
from tl_weighted_pca.support.files import (
    check_writable,
    remove_leftovers,
    tensors_of,
    write_atomically,
)
from tl_weighted_pca.support.interrupts import uninterrupted
from tl_weighted_pca.support.whole_numbers import checked_count

_FORMAT = "tl_weighted_pca.Checkpoint/1"


class Resumable(Protocol):
    """Sums over a stream that can go on from where they were."""

    n_tokens: int
    n_sequences: int

    def state(self) -> dict[str, Tensor]:
        """All that was added up."""

    def restore(self, state: Mapping[str, Tensor], n_tokens: int, n_sequences: int) -> None:
        """Go on from what `state` gave."""


class Checkpoint:
    """The sums of every accumulator, and how much of the data they hold.

    The file tells by a digest which sequences it has seen: data in another order, or other data, are
    refused when the run comes to where it stopped, before anything is added.

    Args:
        path: of the file; it may not exist yet.
        every: batches between two writes.
        settings: what was asked for; a file of other settings is refused.
        accumulators: by hook point name; `resume` fills them.
        left_out: the counts of positions left out; `resume` fills them.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int,
        settings: Mapping[str, Any],
        accumulators: Mapping[str, Resumable],
        left_out: Outliers | None = None,
    ) -> None:
        self.path = Path(path)
        self._every = checked_count("checkpoint_every", every)
        self._settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self._accumulators, self._left_out = accumulators, left_out
        self._seen = hashlib.blake2b(digest_size=16)
        self._n_batches = self._n_written = self._to_skip = 0
        self._expected = ""
        self.recounted: frozenset[str] | None = frozenset()
        """Hook points whose gradients count readers that earlier versions did not; None: it is of one."""

    def resume(self) -> None:
        """Take up what the file holds, if there is one.

        Raises:
            ValueError: if the file is not a checkpoint, is damaged, or is one of other settings.
            OSError: if a file could not be written there.
        """
        remove_leftovers(self.path)
        if self.path.is_dir():
            raise ValueError(f"{str(self.path)!r} is a folder: pass the path of a file in it.")
        if not self.path.exists():
            check_writable(self.path)
            return
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(
                        f"{str(self.path)!r} is not a checkpoint of collect (its format mark is "
                        f"{metadata.get('format')!r}): pass another path, or move that file away."
                    )
                self._check(json.loads(metadata["settings"]))
                position, counts = (json.loads(metadata[key]) for key in ("position", "counts"))
                for name, accumulator in self._accumulators.items():
                    accumulator.restore(tensors_of(file, f"{name}//"), *counts[name])
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(
                f"The checkpoint {str(self.path)!r} is damaged or foreign ({error}): it is left as "
                "it is; pass another path, or move that file away."
            ) from error
        if self._left_out is not None:
            self._left_out.restore(json.loads(metadata.get("left_out", "{}")))
        check_writable(self.path)
        self._to_skip = self._n_written = position["n_batches"]
        self._expected = position["digest"]
        known = metadata.get("recounted")
        self.recounted = None if known is None else frozenset(json.loads(known))

    def skips(self, batch: Batch) -> bool:
        """Whether the file already holds this batch; batches come in their order.

        Raises:
            ValueError: if those before this one are not the ones that the file has seen.
        """
        if self._n_batches == self._to_skip:
            self._check_data()
        self._n_batches += 1
        self._see(batch)
        return self._n_batches <= self._to_skip

    def advance(self, recounted: frozenset[str] | None = frozenset()) -> None:
        """The batch is committed: write, if it is time to."""
        self.recounted = recounted
        if self._n_batches - self._n_written >= self._every:
            self.write()

    def finish(self) -> None:
        """All batches are committed: write, unless the file holds them all.

        Raises:
            ValueError: if the data ended before the place where the file stopped, or were others.
        """
        if self._n_batches < self._to_skip:
            raise ValueError(
                f"The checkpoint {str(self.path)!r} holds {self._to_skip} batches, but the data end "
                f"after {self._n_batches}: pass the data that it was made of, or another path."
            )
        self._check_data()
        if self._n_batches > self._n_written:
            self.write()

    def write(self) -> None:
        """Write the file anew, whole."""
        tensors = {
            f"{name}//{key}": tensor
            for name, accumulator in self._accumulators.items()
            for key, tensor in accumulator.state().items()
        }
        counts = {n: (a.n_tokens, a.n_sequences) for n, a in self._accumulators.items()}
        position = {"n_batches": self._n_batches, "digest": self._seen.hexdigest()}
        metadata = {
            "format": _FORMAT,
            "package_version": version("tl-weighted-pca"),
            "settings": json.dumps(self._settings),
            "position": json.dumps(position),
            "counts": json.dumps(counts),
            "recounted": json.dumps(sorted(self.recounted or ())),
        }
        if self._left_out is not None:
            metadata["left_out"] = json.dumps(self._left_out.report())
        with uninterrupted():  # and so no temporary file is left behind
            write_atomically(self.path, tensors, metadata)
        self._n_written = self._n_batches

    def _see(self, batch: Batch) -> None:
        for tensor in (batch.inputs, batch.mask, batch.sequence_index):
            if tensor is not None:
                update_digest(self._seen, tensor)

    def _check(self, found: Mapping[str, Any]) -> None:
        for key in sorted({*found, *self._settings}):
            theirs, mine = found.get(key), self._settings.get(key)
            if theirs != mine and key != "code":
                raise ValueError(
                    f"The checkpoint {str(self.path)!r} was made with {key}={theirs!r}, but this run "
                    f"has {key}={mine!r}: use the same settings to continue, or another path to start anew."
                )
        check_code(self.path, found.get("code"), self._settings.get("code", {}))

    def _check_data(self) -> None:
        """The batches up to where the file stopped are those it holds; asked once, when there."""
        if self._expected and self._n_batches == self._to_skip:
            if self._seen.hexdigest() != self._expected:
                raise ValueError(
                    f"The first {self._to_skip} batches are not those that the checkpoint "
                    f"{str(self.path)!r} was made of: pass the same data in the same order (a loader "
                    "must not shuffle), or another path."
                )
            self._expected = ""
