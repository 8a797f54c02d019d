"""What a run of `collect` gives: moments by hook point, that merge, travel and are kept in files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from tl_weighted_pca.data.sharding import running
from tl_weighted_pca.moments.reduction import all_reduce_moments
from tl_weighted_pca.moments.second_moment import Moments, Provenance, SecondMoment
from tl_weighted_pca.moments.statistics import STATISTICS
from tl_weighted_pca.support.files import reading, write_atomically
from tl_weighted_pca.support.notebook import summary

_FORMAT = "tl_weighted_pca.Collection/1"


class Collection(Mapping[str, Moments]):
    """Moments by hook point, keyed by the names that were asked for.

    `a + b` merges two collections of the same hook points; `all_reduce` merges over processes.
    """

    def __init__(self, moments: Mapping[str, Moments], settings: Mapping[str, Any] | None = None):
        self._moments = dict(moments)
        self.settings: dict[str, Any] = dict(settings or {})
        """What was asked of `collect`, for the record."""

    def __getitem__(self, hook_point: str) -> Moments:
        try:
            return self._moments[hook_point]
        except KeyError:
            raise KeyError(
                f"{hook_point!r} was not collected; this collection holds {', '.join(self)}."
            ) from None

    def __getattr__(self, name: str) -> Any:
        if hasattr(Moments, name) or name in Moments.__dataclass_fields__:
            raise AttributeError(
                f"A Collection has the moments of several hook points, and no {name!r}: take one, such as "
                f"collection[{next(iter(self), '')!r}]."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        tokens = {m.n_tokens for m in self.values()}
        made = sorted({m.provenance.objective for m in self.values()} - {""})
        about = f" of {', '.join(made)}" if made else ""
        return f"Collection({', '.join(self)}{about}; {'/'.join(map(str, sorted(tokens)))} tokens)"

    def _repr_html_(self) -> str:
        """What a notebook shows: the hook points, what is held of each, and of how many tokens."""
        rows = {
            name: f"{', '.join(m.held)}; {m.n_tokens:,} tokens in {m.n_sequences:,} sequences"
            for name, m in self.items()
        }
        model = next((m.provenance.model for m in self.values()), "")
        return summary(f"Collection of {model}" if model else "Collection", rows)

    def __add__(self, other: Collection) -> Collection:
        if not isinstance(other, Collection):
            return NotImplemented
        if set(self) != set(other):
            raise ValueError(
                "Cannot add collections of different hook points: only one of them has "
                f"{', '.join(sorted(set(self) ^ set(other)))}."
            )
        known = [each.settings for each in (self, other) if "positions" in each.settings]
        for what in ("positions", "outliers") if known else ():
            mine, theirs = known[0].get(what), known[-1].get(what)
            if mine != theirs:
                raise ValueError(
                    f"Cannot add collections with {what}={mine} and {what}={theirs}: their tokens are not "
                    "of one kind. Collect both with the same."
                )
        settings = dict(self.settings)
        if "left_out" in settings:
            settings["left_out"] = _summed(settings["left_out"], other.settings.get("left_out", {}))
        return Collection({n: _merged(self[n], other[n]) for n in self}, settings)

    def __radd__(self, other: Any) -> Collection:
        """`sum(collections)` begins with 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def all_reduce(self, timeout: float | None = None) -> Collection:
        """The sum of every process's collection, in every process; this one is left as it is.

        All processes of torch.distributed's default group must call it, those too that had no data.
        Without torch.distributed there is one process, and the collection is its own sum.

        Args:
            timeout: seconds to wait for the last process, on the gloo backend; by default, and on
                other backends, the process group's own timeout.

        Raises:
            ValueError: in every process, if they collected different things.
            RuntimeError: if a process has died or does not arrive in time.
        """
        if not running():
            return self
        moments, others = all_reduce_moments(self, timeout, self.settings)
        settings = dict(self.settings)
        if "left_out" in settings:
            counts = [each["left_out"] for each in others if "left_out" in each]
            settings["left_out"] = reduce(_summed, counts)
        return Collection(moments, settings)

    def to(self, device: torch.device | str) -> Collection:
        """The same collection with all moments on one device."""
        return Collection({name: each.to(device) for name, each in self.items()}, self.settings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `Collection.load` reads; a file in its place is replaced whole."""
        tensors, header = {}, {}
        for name, moments in self.items():
            header[name] = {
                "n_tokens": moments.n_tokens,
                "n_sequences": moments.n_sequences,
                "provenance": dataclasses.asdict(moments.provenance),
            }
            for kind, moment in moments.held.items():
                for part, tensor in moment.state().items():
                    tensors[f"{name}/{kind}/{part}"] = tensor
        written = {"moments": json.dumps(header), "settings": json.dumps(self.settings)}
        write_atomically(path, tensors, {"format": _FORMAT, **written})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Collection:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a collection, or is damaged.
        """
        with reading(path, _FORMAT, "Collection.save", device) as (tensors, metadata):
            moments = {}
            for name, entry in json.loads(metadata["moments"]).items():
                moments[name] = Moments(
                    **{kind: _read(tensors, f"{name}/{kind}/") for kind in STATISTICS},
                    n_tokens=entry["n_tokens"],
                    n_sequences=entry["n_sequences"],
                    provenance=Provenance(**entry["provenance"]),
                )
            return cls(moments, json.loads(metadata["settings"]))


def _summed(
    mine: Mapping[str, Mapping[str, int]], theirs: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    """Counts of positions left out, by hook point and position."""
    return {
        name: dict(Counter(mine.get(name, {})) + Counter(theirs.get(name, {})))
        for name in {**mine, **theirs}
    }


def _merged(mine: Moments, theirs: Moments) -> Moments:
    """The sum; a share without tokens has no statistics to add, only its count of sequences."""
    if theirs.n_tokens and mine.n_tokens:
        return mine + theirs
    full = mine if mine.n_tokens else theirs
    return replace(full, n_sequences=mine.n_sequences + theirs.n_sequences)


def _read(tensors: Mapping[str, Tensor], prefix: str) -> SecondMoment | None:
    """One second moment of a file's, or None if it holds none there."""
    parts = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
    return SecondMoment.of_state(parts) if "weight" in parts else None
