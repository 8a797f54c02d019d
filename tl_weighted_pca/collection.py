"""What a run of `collect` gives: moments by hook point, that merge, travel and are kept in files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tl_weighted_pca.files import write_atomically
from tl_weighted_pca.moments import Moments, Provenance, SecondMoment

_FORMAT = "tl_weighted_pca.Collection/1"
_KINDS = ("activation", "gradient", "weighted")


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

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        tokens = {m.n_tokens for m in self.values()}
        return f"Collection({', '.join(self)}; {'/'.join(map(str, sorted(tokens)))} tokens)"

    def __add__(self, other: Collection) -> Collection:
        if not isinstance(other, Collection):
            return NotImplemented
        if set(self) != set(other):
            raise ValueError(
                "Cannot add collections of different hook points: only one of them has "
                f"{', '.join(sorted(set(self) ^ set(other)))}."
            )
        return Collection({name: self[name] + other[name] for name in self}, self.settings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `Collection.load` reads; a file in its place is replaced whole."""
        tensors, header = {}, {}
        for name, moments in self.items():
            header[name] = {
                "n_tokens": moments.n_tokens,
                "n_sequences": moments.n_sequences,
                "provenance": dataclasses.asdict(moments.provenance),
            }
            for kind in _KINDS:
                moment = getattr(moments, kind)
                if moment is None:
                    continue
                for field in dataclasses.fields(moment):
                    tensors[f"{name}/{kind}/{field.name}"] = getattr(moment, field.name)
        metadata = {
            "format": _FORMAT,
            "moments": json.dumps(header),
            "settings": json.dumps(self.settings),
        }
        write_atomically(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Collection:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no collection, or is damaged.
        """
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(
                        f"{os.fspath(path)!r} holds {metadata.get('format', 'no format mark')!r}, "
                        f"expected {_FORMAT!r}: pass a file written by Collection.save."
                    )
                names = set(file.keys())
                header = json.loads(metadata["moments"])
                moments = {}
                for name, entry in header.items():
                    moments[name] = Moments(
                        activation=_read(file, f"{name}/activation", names),
                        gradient=_read(file, f"{name}/gradient", names),
                        weighted=_read(file, f"{name}/weighted", names),
                        n_tokens=entry["n_tokens"],
                        n_sequences=entry["n_sequences"],
                        provenance=Provenance(**entry["provenance"]),
                    )
        except SafetensorError as error:
            raise ValueError(
                f"{os.fspath(path)!r} is not a readable collection file: {error}."
            ) from error
        return cls(moments, json.loads(metadata["settings"]))


def _read(file: Any, prefix: str, names: set[str]) -> SecondMoment | None:
    """One second moment of an open file, or None if it holds none there."""
    if f"{prefix}/weight" not in names:
        return None
    fields = dataclasses.fields(SecondMoment)
    return SecondMoment(*(file.get_tensor(f"{prefix}/{field.name}") for field in fields))
