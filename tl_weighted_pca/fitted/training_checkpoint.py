"""A training under way, in a file that another process can go on from, to the bit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_weighted_pca.fitted.processes import Processes
from tl_weighted_pca.fitted.training import State, Training
from tl_weighted_pca.support.callables import check_code
from tl_weighted_pca.support.files import (
    check_writable,
    reading,
    remove_leftovers,
    write_atomically,
)
from tl_weighted_pca.support.interrupts import uninterrupted
from tl_weighted_pca.support.whole_numbers import checked_count

_FORMAT = "tl_weighted_pca.Training/3"
"""Parameters of the first format mean other bases, with steps scaled differently; the second has no count of
Adam's steps."""


class TrainingCheckpoint:
    """Parameters, Adam's moments, and the best state so far, of every training.

    Args:
        path: of the file; it may not exist yet.
        every: steps between two writes.
        settings: what was asked for, the data's digest included; a file of other settings is refused.
    """

    def __init__(
        self, path: str | os.PathLike[str], every: int, settings: Mapping[str, Any]
    ) -> None:
        self.path = Path(path)
        self._every = checked_count("checkpoint_every", every)
        self._settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))

    def resume(self, trainings: Sequence[Training], processes: Processes) -> int:
        """Take up what the file holds, if there is one: the number of the next step.

        All processes hold the same state. Where they wrote last at different steps, since one was killed
        before the other, they go on from the newest.

        Raises:
            ValueError: if the file is no checkpoint, is damaged, or is one of other settings.
            OSError: if a file could not be written there.
        """
        remove_leftovers(self.path)
        check_writable(self.path)
        step, tensors, told = self._read() if self.path.exists() else (0, {}, [])
        steps = processes.gathered(torch.tensor([step], device="cpu")).tolist()
        if len({*steps}) > 1:
            newest = steps.index(max(steps))
            step, tensors, told = processes.of_one((step, tensors, told), newest)
        for number, (training, theirs) in enumerate(zip(trainings, told, strict=False)):
            _restore(training, _of(tensors, f"{number}//"), theirs)
        return step

    def _read(self) -> tuple[int, dict[str, Tensor], list[dict[str, Any]]]:
        """The step, the tensors, and what else is told of each training."""
        with reading(self.path, _FORMAT, "optimize_basis(checkpoint=…)") as (tensors, metadata):
            found, mine = json.loads(metadata["settings"]), dict(self._settings)
            codes = found.pop("code", None), mine.pop("code")
            for key in sorted({*found, *mine}):
                if found.get(key) != mine.get(key):
                    raise ValueError(
                        f"The checkpoint {str(self.path)!r} was made with {key}={found.get(key)!r}, but "
                        f"this run has {key}={mine.get(key)!r}: use the same settings and data "
                        "to go on, or another path to start anew."
                    )
            check_code(self.path, *codes)
            progress = json.loads(metadata["progress"])
            return int(progress["step"]), tensors, progress["trainings"]

    def advance(self, trainings: Sequence[Training], step: int, last: bool) -> None:
        """So many steps are done: write, if it is time to.

        Raises:
            OSError: if it cannot be written, with the best bases so far, by hook point, as `bases`.
        """
        if step % self._every and not last:
            return
        tensors, told = {}, []
        for number, training in enumerate(trainings):
            for key, tensor in _tensors(training).items():
                tensors[f"{number}//{key}"] = tensor
            best = None if training.best is None else training.best.step
            told.append({"best": best, "lost": training.lost})
        metadata = {
            "format": _FORMAT,
            "settings": json.dumps(self._settings),
            "progress": json.dumps({"step": step, "trainings": told}),
        }
        try:
            with uninterrupted():  # and so no temporary file is left behind
                write_atomically(self.path, tensors, metadata)
        except OSError as error:
            error.bases = {each.hook_point: each.basis() for each in trainings}  # type: ignore[attr-defined]
            raise


def _tensors(training: Training) -> dict[str, Tensor]:
    """All of a training that its next steps depend on."""
    found = {"latest": training.latest}
    for name, parameter in training.bottleneck.parameters.items():
        found[f"parameter//{name}"] = parameter
        # With Adam's own count of its steps: a batch with nothing to predict is none.
        for entry, tensor in training.optimiser.state.get(parameter, {}).items():
            found[f"{entry}//{name}"] = tensor
    if training.best is not None:
        found["best scores"] = training.best.scores
        for name, parameter in training.best.parameters.items():
            found[f"best//{name}"] = parameter
    return found


def _restore(training: Training, tensors: dict[str, Tensor], told: dict[str, Any]) -> None:
    parameters = training.bottleneck.parameters
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"parameter//{name}"])
        if f"step//{name}" in tensors:
            training.optimiser.state[parameter] = {
                "step": tensors[f"step//{name}"],
                "exp_avg": tensors[f"exp_avg//{name}"].to(parameter),
                "exp_avg_sq": tensors[f"exp_avg_sq//{name}"].to(parameter),
            }
    training.lost = told["lost"]
    training.weigh(tensors["latest"])
    if told["best"] is not None:
        best = {name: tensors[f"best//{name}"].to(p) for name, p in parameters.items()}
        training.best = State(told["best"], best, tensors["best scores"])


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
