"""Unablated runs of the batches that training goes through again and again, kept where memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.models.downstream import Downstream, Started
from tl_weighted_pca.models.run import Run


class KeptRuns:
    """Batches by number, each run unablated once.

    What is kept of a run are the activations where a pass starts again, and the model's output if all
    outputs fit; otherwise the output is computed from those activations. What is kept depends on the
    data alone, and not on what was run before.

    Args:
        downstream: of all hook points.
        hook_points: their names.
        batches: all that there are.
        most: bytes to keep.
    """

    def __init__(
        self,
        downstream: Downstream,
        hook_points: Sequence[str],
        batches: Sequence[Batch],
        most: int = 2**31,
    ) -> None:
        self._downstream, self._hook_points, self._batches = downstream, hook_points, batches
        self._most = most
        self._kept: dict[int, Started] = {}
        self._ends: list[int] | None = None
        self._keeps_outputs = False

    def __len__(self) -> int:
        return len(self._batches)

    def start(self, number: int) -> Run:
        """Let the downstream's `resume` work on a batch; its unablated run, with the output."""
        if number in self._kept:
            self._downstream.restore(self._kept[number])
        else:
            with torch.no_grad():
                self._downstream.start(self._batches[number])
            if self._ends is None:
                self._ends = self._planned(number)
            if self._ends[number] > self._most:
                return self._downstream.state.run
            state = self._downstream.state
            if not self._keeps_outputs:
                for name in self._hook_points:  # which the downstream can tell by the output alone
                    self._downstream.restarts(name)
                self._downstream.restore(state._replace(run=replace(state.run, output=None)))
            self._kept[number] = self._downstream.state
        state = self._downstream.state
        if state.run.output is None:
            with torch.no_grad():
                last = self._downstream.order[-1]
                output = self._downstream.resume({last: lambda tensor: tensor})
            state = state._replace(run=replace(state.run, output=output))
            self._downstream.restore(state)
        return state.run

    def _planned(self, number: int) -> list[int]:
        """How many bytes are kept when each batch is, going by the sizes of one."""
        run, activations, _ = self._downstream.state
        output = run.output.nbytes if isinstance(run.output, Tensor) else self._most
        held = sum({t.data_ptr(): t.nbytes for t in activations.values()}.values())
        share = torch.tensor(
            [batch.inputs.numel() for batch in self._batches], device="cpu"
        ).cumsum(0)
        ends = (share / self._batches[number].inputs.numel()).tolist()
        self._keeps_outputs = ends[-1] * (held + output) <= self._most
        if not self._keeps_outputs and not all(map(self._downstream.restarts, self._hook_points)):
            return [self._most + 1] * len(ends)  # without the output there is nothing to save
        return [round(end * (held + output * self._keeps_outputs)) for end in ends]
