"""A basis trained through the model: the limit that computed bases are held against."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from tl_weighted_pca.ablation.scores import Scorer
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.data.batches import Batch, batches
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.data.progress import progress_bar
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.fingerprint import made_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import resolve_one
from tl_weighted_pca.moments.accumulator import NonFiniteError
from tl_weighted_pca.support.whole_numbers import checked_count


def optimize_basis(
    model: Any,
    data: Any,
    basis: Basis,
    k: int,
    *,
    hook_point: str | None = None,
    loss: Literal["loss", "kl"] = "loss",
    steps: int = 300,
    lr: float = 0.01,
    positions: Positions = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
    progress: bool = True,
) -> Basis:
    """argmin over E, D, μ of the model's loss with f ↦ μ + (f − μ)ED: a rank-k bottleneck, trained.

    Starts from the first k components of `basis` and takes Adam through the model, whose own parameters
    stay as they are; where the model class can start at a layer, only what lies downstream of the hook
    point runs again. This is the limit to quote beside bases that are computed. What was trained is kept
    only if it is surely better than the start on a fifth of the batches, held out, by a paired one-sided
    test at 95%: where there is next to nothing to gain, a few sequences would take noise for a gain.

    Args:
        model: as for `collect`.
        data: as for `collect`; read whole, and then gone through again and again in other orders.
        basis: where to start.
        k: components to keep, 1..n_components.
        hook_point: where; by default where the basis was made.
        loss: "loss" (next-token loss) or "kl" (Kullback-Leibler divergence from the unablated model).
        steps: batches to train on.
        lr: Adam's first step size, in units of the coordinates' and directions' own scales; it falls to
            zero as a cosine.
        positions: where the bottleneck applies.
        batch_size: sequences a batch.
        max_tokens: stop before exceeding so many tokens of data, which are kept in memory.
        progress: show a progress bar.

    Returns:
        A basis of k components that is better than its start on held-out batches, or the start itself.
        Its eigenvalues are those of the start.

    Raises:
        ValueError: if k is outside 1..n_components, there are too few batches to hold one out, or
            those held out have nothing to predict.
        NonFiniteError: where the score of the start is NaN or infinite.
    """
    place = basis.provenance.hook_point if hook_point is None else hook_point
    if not place:
        raise ValueError("This basis does not know where it was made: say where with hook_point.")
    place = resolve_one(model, place)
    basis.check_place(made_at(model, place))
    k = checked_count("k", k, least=0)
    if not 1 <= k <= basis.n_components:
        raise ValueError(
            f"k is {k}; expected 1..{basis.n_components}, the components of this basis."
        )
    if loss not in ("loss", "kl"):
        raise ValueError(f"loss is {loss!r}; expected 'loss' or 'kl'.")
    scorer = Scorer(loss)
    start = basis.truncate(k)
    every = list(batches(data, batch_size, max_tokens=max_tokens))
    if len(every) < 2:
        raise ValueError("There is one batch; pass at least two, one to train on and one held out.")
    # Batches may come sorted by length: the last would be of positions that the others never reach.
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    n_heldout = max(1, len(every) // 5)
    heldout, train = ([every[i] for i in part] for part in (order[:n_heldout], order[n_heldout:]))
    with quiet(model, gradients=True):
        downstream = Downstream(model, place, positions)
        bottleneck = _Bottleneck(start, next(model.parameters()).device)
        before = _per_sequence(downstream, bottleneck, heldout, scorer)
        if not bool(before[0].isfinite().all()):
            raise NonFiniteError(
                f"The {scorer.unit} of the start is NaN or infinite on the held-out batches: look at what "
                "the model gives there, and take loss='loss' where some of its logits are infinite."
            )
        if not bool(before[1].sum() > 0):
            raise ValueError(
                "The held-out batches have no token to predict, so nothing can be said of what was trained: "
                "pass more sequences, of two tokens or more."
            )
        optimiser = torch.optim.Adam(bottleneck.parameters, lr=lr, betas=(0.9, 0.99))
        bar = progress_bar("Optimising", "step", steps, progress, iterable=range(steps))
        for step, batch in zip(bar, _forever(train), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            values, terms = _scores(downstream, bottleneck, batch, scorer)
            optimiser.zero_grad()
            (values.sum() / terms.sum()).backward()
            torch.nn.utils.clip_grad_norm_(bottleneck.parameters, 1.0)
            optimiser.step()
        after = _per_sequence(downstream, bottleneck, heldout, scorer)
    return bottleneck.basis() if _surely_lower(after, before) else start


class _Bottleneck:
    """E, D and μ in units of their own: E's columns by the spread of the coordinates, D's rows by theirs."""

    def __init__(self, start: Basis, device: torch.device) -> None:
        self.start = start
        norms = start.decoder.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        # Unit rows of D, so that a step means the same in every component.
        self.encoder = (start.encoder * norms.mT).float().to(device).requires_grad_()
        self.decoder = (start.decoder / norms).float().to(device).requires_grad_()
        self.center = start.center.to(device, torch.float32, copy=True).requires_grad_()
        self.parameters = [self.encoder, self.decoder, self.center]

    def __call__(self, f: Tensor) -> Tensor:
        return self.basis_of(self.encoder, self.decoder, self.center).project(f)

    def basis_of(self, encoder: Tensor, decoder: Tensor, center: Tensor) -> Basis:
        return dataclasses.replace(self.start, encoder=encoder, decoder=decoder, center=center)

    def basis(self) -> Basis:
        values = [parameter.detach().double().cpu() for parameter in self.parameters]
        return dataclasses.replace(self.basis_of(*values), method="optimize_basis")


def _scores(
    downstream: Downstream, edit: _Bottleneck, batch: Batch, scorer: Scorer
) -> tuple[Tensor, Tensor]:
    """The scores of the edited run, one a sequence, and the number of their terms."""
    with torch.no_grad():
        run = downstream.start(batch)
    return scorer(run, downstream.resume(edit))


def _per_sequence(
    downstream: Downstream, edit: _Bottleneck, data: list[Batch], scorer: Scorer
) -> tuple[Tensor, Tensor]:
    """The same for several batches, without a graph."""
    with torch.no_grad():
        scores = [_scores(downstream, edit, batch, scorer) for batch in data]
    values, terms = (torch.cat(parts) for parts in zip(*scores, strict=True))
    return values, terms


def _surely_lower(after: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]) -> bool:
    """Whether Σ after / Σ terms is below Σ before / Σ terms by more than 1.64 standard errors, paired."""
    difference, terms = after[0] - before[0], after[1]
    n = len(terms)
    if n < 2:  # of a single sequence there is no spread to be sure by
        return False
    mean = difference.sum() / terms.sum()
    error = (difference - mean * terms).square().sum().mul(n / (n - 1)).sqrt() / terms.sum()
    return bool(mean + 1.64 * error < 0)


def _forever(data: list[Batch]) -> Iterator[Batch]:
    """The batches again and again, each time in another order."""
    for epoch in itertools.count():
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch))
        yield from (data[i] for i in order.tolist())
