"""The trained basis: E, D and μ that keep a model's score with few components, found through the model.

For a hook point with activations f let f̂_k = μ + (f − μ)E_kD_k, the first k columns of E and rows of
D = E⁻¹. Training takes Adam to the mean over ranks of

    KL(model ‖ model with f̂_k) / the same at the last evaluation,

one basis for every rank: E = E₀A and D = A⁻¹D₀ in whitened coordinates of a start E₀, D₀, so that rank
d is the identity at every step.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch

from tl_weighted_pca.ablation.scores import Score, Scorer
from tl_weighted_pca.bases.basis import Basis, check_bases
from tl_weighted_pca.data.batches import Batch, batches
from tl_weighted_pca.data.positions import Outliers, Positions, checked_positions
from tl_weighted_pca.data.progress import progress_bar
from tl_weighted_pca.fitted.kept_runs import KeptRuns
from tl_weighted_pca.fitted.processes import Processes
from tl_weighted_pca.fitted.rank_grid import seeded
from tl_weighted_pca.fitted.training import Training, evaluated
from tl_weighted_pca.fitted.training_checkpoint import TrainingCheckpoint
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.fingerprint import made_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import resolve_one
from tl_weighted_pca.moments.accumulator import NonFiniteError
from tl_weighted_pca.objectives.losses import objective_name
from tl_weighted_pca.support.callables import codes_of
from tl_weighted_pca.support.digest import digest_of
from tl_weighted_pca.support.whole_numbers import checked_count

_EVALUATIONS = 4
"""How often a state is held against the start on held-out batches, evenly over the steps."""


@overload
def optimize_basis(
    model: Any, data: Any, basis: Basis, k: int | None = ..., *, hook_point: str | None = ...,
    loss: Score = ..., steps: int = ..., lr: float | None = ..., positions: Positions = ...,
    outliers: float | None = ..., batch_size: int = ..., max_tokens: int | None = ..., seed: int = ...,
    checkpoint: str | os.PathLike[str] | None = ..., checkpoint_every: int = ..., progress: bool = ...,
) -> Basis: ...  # fmt: skip
@overload
def optimize_basis(
    model: Any, data: Any, basis: Mapping[str, Basis], k: int | None = ..., *, hook_point: None = ...,
    loss: Score = ..., steps: int = ..., lr: float | None = ..., positions: Positions = ...,
    outliers: float | None = ..., batch_size: int = ..., max_tokens: int | None = ..., seed: int = ...,
    checkpoint: str | os.PathLike[str] | None = ..., checkpoint_every: int = ..., progress: bool = ...,
) -> dict[str, Basis]: ...  # fmt: skip


def optimize_basis(
    model: Any,
    data: Any,
    basis: Basis | Mapping[str, Basis],
    k: int | None = None,
    *,
    hook_point: str | None = None,
    loss: Score = "kl",
    steps: int = 400,
    lr: float | None = None,
    positions: Positions = None,
    outliers: float | None = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 50,
    progress: bool = True,
) -> Basis | dict[str, Basis]:
    """argmin over E, D, μ of Σ_k w_k KL(model ‖ model with f ↦ μ + (f − μ)E_kD_k).

    One basis for every rank, trained through the model: D = E⁻¹, so that rank d is the identity. 1/w_k is
    the held-out excess at rank k, first the start's, then that of the last of four evaluations. Only
    what lies downstream of the hook point runs again; the model's parameters stay as they are. The
    best state by the excess on held-out batches is returned, if it is significantly better than the
    start there and at no rank significantly worse. Where the last state is worse, that rank is reset to the
    start, and the state is judged again.

    Args:
        model: as for `collect`.
        data: as for `collect`; kept in memory, and gone through again and again in other orders. With a
            `shard` the processes of torch.distributed train one basis together.
        basis: where to start, complete; or a dict of them by hook point, which share the unablated runs.
        k: None for every rank, or the one rank to train: E [d, k], D [k, d] and μ are free then.
        hook_point: where; by default where the basis was made.
        loss: "kl" (Kullback-Leibler divergence from the unablated model), "loss" (next-token loss) or a
            callable: as the score of `ablation_curves`.
        steps: batches to train on.
        lr: Adam's first step size, in whitened coordinates; by default 0.24/√d. It falls to zero as a
            cosine.
        positions: where the bottleneck applies.
        outliers: leave as they are also positions whose norm in the unablated run exceeds so many medians
            of their own sequence, as for `collect`.
        batch_size: sequences a batch, each at a rank of its own.
        max_tokens: stop before exceeding so many tokens of data.
        seed: of the batches held out, the order and the ranks.
        checkpoint: a file to go on from if it exists, and to write to: the basis is that of a run without
            interruption, to the bit. One for each process, where several share the data.
        checkpoint_every: steps between two writes.
        progress: show a progress bar, with the last evaluation's held-out excess relative to the start's.

    Returns:
        A basis, or a dict of them. Trained for every rank, its components are ordered, rows of D have
        norm 1, and ½ Σ_{i>k} Λ_i is the held-out excess at rank k. Of a single rank the eigenvalues are
        the start's.

    Raises:
        TypeError: for a dict of other things than bases.
        ValueError: if k is outside 1..n_components, a basis for every rank is not complete, there are too
            few batches to hold one out, or those held out have nothing to predict; for a checkpoint that
            is damaged, or of other settings or data.
        OSError: if the checkpoint cannot be written, with the best bases so far as its attribute `bases`.
        NonFiniteError: where the score of the start is NaN or infinite.
    """
    starts = _starts(model, basis, k, hook_point)
    k = None if k is None else checked_count("k", k)
    lr = None if lr is None else float(lr)
    steps = checked_count("steps", steps)
    seed = checked_count("seed", seed, least=0)
    scorer, left_out = Scorer(loss), Outliers.checked(outliers)
    every = list(batches(data, batch_size, max_tokens=max_tokens, may_be_empty=False))
    processes = Processes.of(data)
    heldout, train = _split(every, steps, seed, processes.count)
    with quiet(model, gradients=True):
        downstream = Downstream(model, list(starts), positions, left_out)
        trainings = [
            Training(
                place, start, k, downstream, scorer, positions, processes,
                steps=steps, lr=lr, seed=seed,
            )
            for place, start in starts.items()
        ]  # fmt: skip
        held, runs = (KeptRuns(downstream, list(starts), part) for part in (heldout, train))
        _begin(trainings, held, scorer, processes)
        first, file = 0, None
        if checkpoint is not None:
            asked = {
                "model": made_at(model, "").weights,
                "data": digest_of(*(x for b in every for x in (b.inputs, b.mask) if x is not None)),
                "starts": {place: start.digest for place, start in starts.items()}, "k": k,
                "loss": objective_name(loss) if callable(loss) else loss, "steps": steps, "lr": lr,
                "code": codes_of({"loss": loss} if callable(loss) else {}),
                "positions": str(checked_positions(positions)), "outliers": outliers, "seed": seed,
                "process": [processes.rank, processes.count],
            }  # fmt: skip
            file = TrainingCheckpoint(checkpoint, checkpoint_every, asked)
            first = file.resume(trainings, processes)
        judged = {steps * i // _EVALUATIONS for i in range(1, _EVALUATIONS + 1)}
        with progress_bar("Training", "step", steps, progress) as bar:
            bar.update(first)
            order = itertools.islice(_order(len(train), seed), first, steps)
            for step, number in enumerate(order, first):
                run = runs.start(number)
                for training in trainings:
                    training.step(run, step)
                if step + 1 in judged:
                    _judge(trainings, held, scorer, processes, step + 1, last=step + 1 == steps)
                    bar.set_postfix_str(
                        "held-out excess " + ", ".join(training.said for training in trainings)
                    )
                bar.update()
                if file is not None:
                    file.advance(trainings, step + 1, last=step + 1 == steps)
        made = {training.hook_point: training.basis() for training in trainings}
    return next(iter(made.values())) if isinstance(basis, Basis) else made


def _starts(
    model: Any, basis: Basis | Mapping[str, Basis], k: int | None, hook_point: str | None
) -> dict[str, Basis]:
    """The bases to start from by hook point, checked to be of there and to be large enough."""
    if isinstance(basis, Basis):
        place = basis.provenance.hook_point if hook_point is None else hook_point
        if not place:
            raise ValueError(
                "This basis does not know where it was made: say where with hook_point."
            )
        starts = {place: basis}
    else:
        check_bases(basis, "by hook point, or one Basis")
        starts = dict(basis)
        if hook_point is not None:
            raise ValueError(
                f"hook_point is {hook_point!r}, but the bases are by hook point already: leave it out."
            )
        if not starts:
            raise ValueError("No bases were given; pass one, or a dict of them by hook point.")
    for place, start in starts.items():
        resolve_one(model, place)
        start.check_place(made_at(model, place))
        if k is not None:
            rank = checked_count("k", k, least=0)
            if not 1 <= rank <= start.n_components:
                raise ValueError(
                    f"k is {k}; expected 1..{start.n_components}, the components of this basis."
                )
        elif start.n_components < start.width:
            raise ValueError(
                f"This basis has {start.n_components} components of width {start.width}; a basis for every "
                f"rank starts from a complete one: pass that, or k={start.n_components} for this rank alone."
            )
    return starts


def _split(
    every: Sequence[Batch], steps: int, seed: int, n_processes: int = 1
) -> tuple[list[Batch], list[Batch]]:
    """Batches to hold out and batches to train on: a fifth, or what costs half as much as training."""
    if len(every) < 2:
        raise ValueError("There is one batch; pass at least two, one to train on and one held out.")
    # Batches may come sorted by length: the last would be of positions that the others never reach.
    order = torch.randperm(
        len(every), generator=torch.Generator().manual_seed(seed), device="cpu"
    ).tolist()
    # A step is three passes; an evaluation ten, one a rank; the start is evaluated too.
    affordable = steps * 3 // (2 * 10 * (_EVALUATIONS + 1))
    at_least = -(
        -16 // (len(every[0].inputs) * n_processes)
    )  # sequences enough to tell noise from gain
    n_heldout = max(1, min(len(every) // 5, max(affordable, at_least)))
    return [every[i] for i in order[:n_heldout]], [every[i] for i in order[n_heldout:]]


def _begin(
    trainings: Sequence[Training], held: KeptRuns, scorer: Scorer, processes: Processes
) -> None:
    """Make the bottlenecks, and score them as they start.

    Raises:
        ValueError: where the held-out batches have nothing to predict.
        NonFiniteError: where a start's score is NaN or infinite.
    """
    with torch.no_grad():
        for number in range(len(held)):
            held.start(number)
            for training in trainings:
                training.watch()
    for training in trainings:
        training.begin()
    scores, baseline, terms = evaluated(trainings, held, scorer, processes)
    if not bool(terms.sum() > 0):
        raise ValueError(
            "The held-out batches have no token to predict, so nothing can be said of what was trained: "
            "pass more sequences, of two tokens or more."
        )
    for training, found in zip(trainings, scores, strict=True):
        if not bool(found.isfinite().all() and baseline.isfinite().all()):
            raise NonFiniteError(
                f"The {scorer.unit} of the start at {training.hook_point!r} is NaN or infinite on the "
                "held-out batches: look at what the model gives there."
            )
        training.hold_out(found, baseline, terms)


def _judge(
    trainings: Sequence[Training], held: KeptRuns, scorer: Scorer, processes: Processes, step: int,
    *, last: bool,
) -> None:  # fmt: skip
    """Consider the present states; the last ones again without what makes them worse at some ranks."""
    left = list(trainings)
    while left:
        scores, _, _ = evaluated(left, held, scorer, processes)
        worse = [one.consider(found, step) for one, found in zip(left, scores, strict=True)]
        if not last:
            break
        left = [one for one, ks in zip(left, worse, strict=True) if ks and one.bottleneck.undo(ks)]


def _order(n: int, seed: int) -> Any:
    """Batch numbers again and again, each time in another order."""
    for epoch in itertools.count():
        generator = seeded(seed, epoch)
        yield from torch.randperm(n, generator=generator, device="cpu").tolist()
