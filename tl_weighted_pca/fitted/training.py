"""The training of one bottleneck at one hook point: its ranks, its steps, and the best of its states."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_weighted_pca.ablation.scores import Scorer
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.fitted.bottleneck import Bottleneck, FreeBottleneck, NestedBottleneck
from tl_weighted_pca.fitted.heldout import HeldOut
from tl_weighted_pca.fitted.kept_runs import KeptRuns
from tl_weighted_pca.fitted.processes import Processes
from tl_weighted_pca.fitted.rank_grid import (
    drawn_ranks,
    eigenvalues,
    interpolated,
    measured_ranks,
    seeded,
)
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.run import Run


@dataclass
class State:
    """Parameters after some steps, and their scores on the held-out sequences."""

    step: int
    parameters: dict[str, Tensor]
    scores: Float[Tensor, "rank sequence"]


class Training:
    """Adam on E, D and μ through what lies downstream; every rank counts by its ratio to the start's.

    Args:
        hook_point: where.
        start: the basis to start from.
        k: the one rank to train, or None for all of them.
        downstream: of the hook point.
        scorer: what is made small.
        positions: where the bottleneck applies.
        processes: those that share the data.
        steps: how many there will be.
        lr: the first step size; None for the bottleneck's own.
        seed: of the ranks drawn.
    """

    def __init__(
        self, hook_point: str, start: Basis, k: int | None, downstream: Downstream, scorer: Scorer,
        positions: Positions, processes: Processes, *, steps: int, lr: float | None, seed: int,
    ) -> None:  # fmt: skip
        self.hook_point, self.start, self.k = hook_point, start, k
        self.downstream = downstream
        self._scorer, self._positions, self._processes = scorer, positions, processes
        self._steps, self._asked, self._seed = steps, lr, seed
        width = start.n_components
        self._sums = torch.zeros(
            3, *start.encoder.shape[:-2], width, dtype=torch.float64, device="cpu"
        )
        self._like: Tensor
        self.ranks: list[int]
        self.bottleneck: Bottleneck
        self.heldout: HeldOut
        self.optimiser: torch.optim.Adam
        self.best: State | None = None
        self.latest: Tensor
        """The scores that the ranks are weighted by."""
        self.lost = False
        """Whether the training has diverged."""

    # -- the start ------------------------------------------------------------------------------

    def watch(self) -> None:
        """Add up the coordinates of a batch and their squares, in the start's components."""

        def add(tensor: Tensor) -> Tensor:
            double = tensor.dtype == torch.float64
            self._like = torch.zeros(
                (), dtype=torch.float64 if double else torch.float32, device=tensor.device
            )
            coordinates = self.start.encode(tensor.to(self._like)).double()
            if tensor.ndim > 2:
                coordinates = coordinates[self.downstream.counted(self.hook_point, tensor)]
            rows = coordinates.cpu().view(-1, *self._sums.shape[1:])
            count = torch.full_like(self._sums[0], len(rows))
            self._sums += torch.stack([count, rows.sum(0), rows.square().sum(0)])
            return tensor

        self.downstream.resume({self.hook_point: add})

    def begin(self) -> None:
        """Make the bottleneck, of the coordinates that were watched.

        Raises:
            ValueError: if they were none, or do not vary.
        """
        n, first, second = self._processes.added_up(self._sums)
        if not bool(n.any()):
            raise ValueError(
                f"positions={self._positions} selects no token of the held-out batches: choose others."
            )
        variances = (second / n - (first / n).square()).clamp(min=0)
        if self.k is not None:
            self.bottleneck = FreeBottleneck(self.start.truncate(self.k), self._like)
            self.ranks, self._used = [self.k], self.k
        else:
            self.bottleneck = nested = NestedBottleneck(self.start, variances, self._like)
            self._used, width = nested.used, self.start.width
            if not self._used:
                raise ValueError(
                    f"There is nothing to train at {self.hook_point!r}: on the held-out batches no component "
                    "of the start varies and has an eigenvalue above zero. Pass other positions or data."
                )
            known = measured_ranks(width if 8 * self._used > 7 * width else self._used)
            self.ranks = known
        self._lr = self.bottleneck.rate if self._asked is None else self._asked
        self.optimiser = torch.optim.Adam(
            list(self.bottleneck.parameters.values()), lr=self._lr, betas=(0.9, 0.99)
        )

    def hold_out(self, scores: Tensor, baseline: Tensor, terms: Tensor) -> None:
        """Keep the start's scores, to compare with; they say how much each rank counts."""
        self.heldout = HeldOut(self.ranks, scores, baseline, terms)
        if isinstance(self.bottleneck, NestedBottleneck):
            curve = interpolated(self.ranks, self.heldout.scale(scores), self._used)
            self.bottleneck.even_out(eigenvalues(curve))
        self.weigh(scores)

    def weigh(self, scores: Float[Tensor, "rank sequence"]) -> None:
        """Let every rank count by the inverse of its excess, so that equal ratios count alike."""
        self.latest = scores
        if self.k is not None:
            self._weights = torch.ones(self.k + 1, dtype=torch.float64, device="cpu")
            return
        curve = interpolated(self.ranks, self.heldout.scale(scores), self._used)
        self._weights = 1 / curve.clamp(min=float(curve[self.ranks[-1]]))

    # -- steps ----------------------------------------------------------------------------------

    def step(self, run: Run, number: int) -> None:
        """One step of Adam, number 0, 1, …, on the batch that the hook point's downstream is at."""
        if self.lost:
            return
        ranks = self._drawn(len(run.inputs), number)
        parameters = list(self.bottleneck.parameters.values())
        try:
            output = self._resumed(ranks)
            values, terms = self._scorer(run, output)
            if not values.requires_grad:
                raise ValueError(
                    f"The {self._scorer.unit} carries no gradient to {self.hook_point!r}: it does not "
                    "depend on what is there, or was rounded or detached; pass a loss that can be trained."
                )
            loss = (values * self._weights[ranks]).sum()
            gradients = torch.autograd.grad(loss, parameters)
        except torch.linalg.LinAlgError:
            self._diverged(number, "E is singular")
            return
        sums = torch.stack([loss.detach(), terms.sum()])
        total, n = self._processes.added_up(sums).tolist()  # a GPU is waited for once a step
        if not math.isfinite(total):
            self._diverged(number, f"the {self._scorer.unit} is {total}")
            return
        if not n:  # nothing to predict in this batch, and 0/0 is NaN
            return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = self._processes.added_up(gradient) / n
        if self.bottleneck.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.bottleneck.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self._lr * 0.5 * (1 + math.cos(math.pi * number / self._steps))
        self.optimiser.step()

    def _resumed(self, ranks: Int[Tensor, " batch"]) -> Any:
        """The model's output with the bottleneck in place."""
        return self.downstream.resume({self.hook_point: lambda f: self.bottleneck.edit(f, ranks)})

    def _drawn(self, n: int, number: int) -> Int[Tensor, " batch"]:
        """The ranks of a batch's sequences at a step: this process's, of all that the processes draw."""
        if self.k is not None:
            return torch.full((n,), self.k, device="cpu")
        every = drawn_ranks(self._used, n * self._processes.count, seeded(self._seed, number))
        return every[self._processes.rank * n :][:n]

    def _diverged(self, number: int, how: str) -> None:
        self.lost = True
        warnings.warn(
            f"The training at {self.hook_point!r} diverged at step {number} ({how}): what was best before "
            f"is kept. A step size below lr={self._lr:.2g} may help.",
            stacklevel=4,
        )

    # -- what it is worth -----------------------------------------------------------------------

    def score(self, run: Run) -> Float[Tensor, "rank batch"]:
        """The scores of the batch that the downstream is at, at each rank of the grid."""
        n = len(run.inputs)
        try:
            return torch.stack(
                [
                    self._scorer(run, self._resumed(torch.full((n,), k, device="cpu")))[0]
                    for k in self.ranks
                ]
            )
        except torch.linalg.LinAlgError:
            return torch.full((len(self.ranks), n), torch.nan, dtype=torch.float64, device="cpu")

    def consider(self, scores: Float[Tensor, "rank sequence"], step: int) -> list[int]:
        """Keep the present state if it is the best so far, and at no rank worse than the start.

        Returns:
            The ranks at which it is worse.
        """
        if bool(scores.isfinite().all()):
            self.weigh(scores)
        relative, worse = self.heldout.relative(scores), self.heldout.worse(scores)
        before = 1.0 if self.best is None else self.heldout.relative(self.best.scores)
        if relative < before and not worse:  # NaN is not below
            kept = {n: p.detach().clone() for n, p in self.bottleneck.parameters.items()}
            self.best = State(step, kept, scores)
        return worse

    @property
    def said(self) -> str:
        """The held-out excess at the last evaluation, relative to the start's."""
        return f"{self.heldout.relative(self.latest):.2f}"

    def basis(self) -> Basis:
        """The best state's basis, if it is significantly better than the start; else the start."""
        start = self.start if self.k is None else self.start.truncate(self.k)
        if self.best is None or not self.heldout.lower(self.best.scores):
            warnings.warn(
                f"No training at {self.hook_point!r} was significantly better than its start on the "
                f"{len(self.heldout.terms)} sequences held out, and at no rank worse, and so the start is "
                "returned: there is nothing to gain, or more steps or data are needed.",
                stacklevel=3,
            )
            return start
        with torch.no_grad():
            for name, parameter in self.bottleneck.parameters.items():
                parameter.copy_(self.best.parameters[name])
        basis = self.bottleneck.basis()
        if self.k is not None:
            return basis
        excess = self.heldout.excess(self.best.scores)
        found = eigenvalues(interpolated(self.ranks, excess, self._used))
        found = torch.cat([found, found.new_zeros(basis.width - self._used)])
        # Of a basis per head the excess is of all heads together.
        heads = basis.encoder.shape[:-2]
        found = (found / max(1, math.prod(heads))).expand(*heads, -1).clone()
        return dataclasses.replace(basis, eigenvalues=found, total=found.sum(-1))


def evaluated(
    trainings: Sequence[Training], runs: KeptRuns, scorer: Scorer, processes: Processes
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Each training's held-out scores [rank, sequence], those of no ablation, and their terms."""
    scores: list[list[Tensor]] = [[] for _ in trainings]
    baseline, terms = [], []
    with torch.no_grad():
        for number in range(len(runs)):
            run = runs.start(number)
            unablated, n = scorer(run, run.output)
            baseline.append(unablated)
            terms.append(n)
            for one, training in zip(scores, trainings, strict=True):
                one.append(training.score(run))
    found = [processes.gathered(torch.cat(one, -1)) for one in scores]
    return found, processes.gathered(torch.cat(baseline)), processes.gathered(torch.cat(terms))
