"""The joint basis: PCA that keeps how gradient and activation depend on each other, token by token.

A metric basis minimises E‖Q^½(f − f̂)‖², in which the gradient of a token enters only through the
average Q. The joint objective asks for what the average throws away,

    J_k = E[(g · (f − f̂_k))²],   f̂_k = μ + (f − μ) E_k D_k,

over tokens and over gradients g of labels sampled from the model. It is a quadratic form in the map,
with the fourth-order moment E[(g⊗f)(g⊗f)ᵀ] for a matrix: d² × d² numbers, too many to keep, and too
many to estimate, so that on its own it overfits. Two things mend that. The coordinates of all ranks
are nested, f̂_k − f̂_{k−1} being one product per token, so one pass over a batch of pairs gives J_k for
every k at once, in the memory of the batch. And J is shrunk toward the Fisher-metric objective, for
which the fourth-order moment is Q ⊗ C, by a weight that held-out pairs choose.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.bases.principal_components import Center, metric_pca
from tl_weighted_pca.data.progress import progress_bar
from tl_weighted_pca.moments.accumulator import NonFiniteError
from tl_weighted_pca.moments.second_moment import Moments, Provenance
from tl_weighted_pca.streaming.pairs import Pairs
from tl_weighted_pca.support.randomness import seeded
from tl_weighted_pca.support.whole_numbers import checked_count

SHRINKAGES = (0.1, 0.3, 0.5, 0.8, 0.95)
"""Weights of the Fisher-metric objective that are tried where none is given."""


def joint_pca(
    moments: Moments,
    pairs: Iterable[Pairs | Mapping[str, Pairs]],
    *,
    n_components: int | None = None,
    center: Center = True,
    shrinkage: float | Sequence[float] = SHRINKAGES,
    max_pairs: int = 65_536,
    steps: int = 400,
    batch_size: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> Basis:
    """argmin Σ_k log[(1 − α) J_k + α F_k] over bases E, D = E⁻¹: the Fisher-metric basis, improved.

    J_k = E[(g·(f − f̂_k))²] over tokens, F_k = E‖Q^½(f − f̂_k)‖² with the token-averaged Q. Starts from
    `metric_pca(moments)`; the ranks are nested, and every rank counts by its ratio. α is chosen by J
    on held-out pairs, and the Fisher-metric basis itself is kept where nothing beats it there. Takes
    `steps` · 12 · `batch_size` · d² floating-point operations for each α, and the memory of `max_pairs`
    pairs of vectors, whatever the number of tokens.

    Args:
        moments: with activation and gradient statistics, of labels sampled from the model
            (`sampled_token_loss`): Q, C and μ are from here.
        pairs: of the same hook point and objective: `stream_pairs(…)`, or only the `Pairs` of the hook
            point; a uniform sample is kept.
        n_components: as in `pca`.
        center: as in `pca`.
        shrinkage: α in 0..1, or several to choose from by held-out pairs.
        max_pairs: how many (activation, gradient) pairs to keep.
        steps: of Adam.
        batch_size: pairs a step.
        seed: of the sample and the batches.
        progress: show a progress bar.

    Returns:
        An oblique basis; eigenvalues are the drops of J with each component, on all pairs kept, in the
        order of the components; they need not descend.

    Raises:
        ValueError: if there are fewer than two pairs, they are of another hook point, objective or model,
            α is outside 0..1, or the moments are per head.
        NonFiniteError: on NaN or infinity in the pairs.
    """
    alphas = [shrinkage] if isinstance(shrinkage, (int, float)) else shrinkage
    known = isinstance(alphas, Sequence) and all(isinstance(a, (int, float)) for a in alphas)
    if not known or not alphas or any(not 0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"shrinkage is {shrinkage!r}; expected numbers between 0 and 1.")
    max_pairs = checked_count("max_pairs", max_pairs, least=2)
    steps = checked_count("steps", steps)
    batch_size = checked_count("batch_size", batch_size)
    start = metric_pca(moments, center=center)
    if start.per_head:
        raise ValueError("These moments are per head; a joint basis is of one space at a time.")
    start.check_rank(start.n_components if n_components is None else n_components)
    # What is trained here needs a graph, and float32.
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        F, G = _sampled(_of_one_place(pairs, moments, start), max_pairs, seed)
        if len(F) < 2:
            raise ValueError(
                "There is one pair; expected at least two, one of them to be held out."
            )
        problem = _Coordinates(start, F, G)
        if problem.used < 2:
            return start.truncate(n_components)
        n_heldout = max(1, len(F) // 5)
        heldout, rest = slice(0, n_heldout), slice(n_heldout, None)
        fits: dict[float, Tensor] = {}
        with progress_bar("Joint basis", "step", steps * len(alphas), progress) as bar:
            for alpha in alphas:
                fits[alpha] = problem.fit(alpha, rest, steps, batch_size, seed, bar)
        identity = torch.eye(problem.used, dtype=torch.float32, device="cpu")
        scores = {alpha: problem.score(encoder, heldout) for alpha, encoder in fits.items()}
        best = min(scores, key=lambda alpha: scores[alpha])
        if not scores[best] < problem.score(identity, heldout):
            warnings.warn(
                "No joint basis was better than the metric basis on the pairs held out, and so that is what "
                f"is returned: {len(F):,} pairs were too few, or there is nothing to gain.",
                stacklevel=2,
            )
            return start.truncate(n_components)
        return problem.basis(fits[best]).truncate(n_components)


def _of_one_place(
    pairs: Iterable[Pairs | Mapping[str, Pairs]], moments: Moments, start: Basis
) -> Iterator[Pairs]:
    """The pairs of the moments' own hook point, checked to be of it and of their objective.

    Raises:
        TypeError: for what holds no pairs.
        ValueError: for pairs of another hook point, objective or model.
        NonFiniteError: on NaN or infinity.
    """
    place = _whatever_was_drawn(moments.provenance)
    for number, found in enumerate([pairs] if isinstance(pairs, (Pairs, Mapping)) else pairs):
        batch = found
        if isinstance(found, Mapping):
            if place.hook_point not in found and len(found) != 1:
                raise ValueError(
                    f"The pairs are of {', '.join(found)}, and the moments of {place.hook_point!r}: "
                    "stream those of that hook point."
                )
            batch = found.get(place.hook_point, next(iter(found.values())))
        if not isinstance(batch, Pairs):
            raise TypeError(
                f"The pairs hold a {type(batch).__name__}; expected stream_pairs(model, data, hook_point, …)."
            )
        made = _whatever_was_drawn(batch.provenance)
        width = batch.activations.shape[-1]
        different = made.differences(place)
        if width != start.width:
            different = f"{different}, width {width} and {start.width}".removeprefix(", ")
        if different:
            raise ValueError(
                f"The pairs and the moments differ: {different}. Stream pairs of the same model, hook point "
                "and objective."
            )
        # Of the positions that count: what a model makes of padding is its own affair.
        if not all(bool(part.isfinite().all()) for part in batch.rows()):
            raise NonFiniteError(
                f"The pairs of {made.hook_point!r} hold NaN or infinity in batch {number}."
            )
        yield batch


def _whatever_was_drawn(made: Provenance) -> Provenance:
    """The provenance, but for how many samples of the objective there were, and which."""
    objective = re.sub(r"(n_samples|n_probes|seed)=\d+,? ?", "", made.objective)
    return replace(made, objective=objective, row_metric="")


def _sampled(
    pairs: Iterable[Pairs], max_pairs: int, seed: int
) -> tuple[Float[Tensor, "pairs d"], Float[Tensor, "pairs d"]]:
    """A uniform sample of (f, g) pairs, in random order: those with the smallest random keys."""
    generator = seeded(seed)
    kept: tuple[Tensor, Tensor, Tensor] | None = None
    for batch in pairs:
        activations, gradients = batch.rows()
        for of_sample in gradients:
            keys = torch.rand(
                len(of_sample), generator=generator, dtype=torch.float64, device="cpu"
            )
            new = (keys, activations.float().cpu(), of_sample.float().cpu())
            kept = new if kept is None else tuple(map(torch.cat, zip(kept, new, strict=True)))  # type: ignore[assignment]
            assert kept is not None
            # Twice the room before it is cut back, so that cutting costs little on average.
            if len(kept[0]) > 2 * max_pairs:
                kept = _lowest(kept, max_pairs)
    if kept is None or not len(kept[0]):
        raise ValueError("There are no pairs: pass those of stream_pairs, with an objective.")
    _, F, G = _lowest(kept, max_pairs)
    return F, G


def _lowest(kept: tuple[Tensor, Tensor, Tensor], n: int) -> tuple[Tensor, Tensor, Tensor]:
    order = kept[0].argsort()[:n]
    return kept[0][order], kept[1][order], kept[2][order]


class _Coordinates:
    """The problem in the Fisher-metric basis's own coordinates, where the start is the identity.

    x = (f − μ)E₀Λ^-½ has unit variance, and h = Λ^½D₀g carries the gradient; directions with Λ = 0 do
    not enter J, and stay as they are.
    """

    def __init__(self, start: Basis, F: Tensor, G: Tensor) -> None:
        self.start = start
        self.used = int((start.eigenvalues > 0).sum())
        self.scale = start.eigenvalues[: self.used].sqrt()
        encoder = start.encoder[:, : self.used] / self.scale
        decoder = start.decoder[: self.used] * self.scale[:, None]
        self.x = (F - start.center.float()) @ encoder.float()
        self.h = G @ decoder.float().T
        # What the pairs' own averages make of F_k: Q and C are Λ and I in these coordinates.
        self.metric = start.eigenvalues[: self.used].float()
        ends = self.metric.flip(0).cumsum(0).flip(0)
        self.fisher_tail = torch.cat([ends, ends.new_zeros(1)])
        size = self.joint(torch.eye(self.used, dtype=torch.float32, device="cpu"), slice(None))
        # A rank that has nothing left to lose would have weight without end.
        self.floor = 1e-4 * size[0]
        self.fisher_scale = size[0] / self.fisher_tail[0]

    def joint(self, encoder: Tensor, rows: slice | Tensor) -> Float[Tensor, " ranks"]:
        """J_k for k = 0 … r − 1: the residual g·(f − f̂_k) is a sum over the components not kept."""
        x, h = self.x[rows], self.h[rows]
        parts = (x @ encoder) * (h @ torch.linalg.inv(encoder).T)
        left = parts.flip(1).cumsum(1).flip(1)
        return left.square().mean(0)

    def fisher(self, encoder: Tensor) -> Float[Tensor, " ranks"]:
        """F_k for k = 0 … r − 1, scaled so that F_0 = J_0: Σ_{i,j>k} (EᵀE)_ij (DΛDᵀ)_ij."""
        decoder = torch.linalg.inv(encoder)
        terms = (encoder.T @ encoder) * (decoder @ (self.metric[:, None] * decoder.T))
        corners = terms.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
        return self.fisher_scale * corners

    def score(self, encoder: Tensor, rows: slice) -> float:
        """Σ_k log J_k on some pairs."""
        with torch.no_grad():
            return float((self.joint(encoder, rows) + self.floor).log().sum())

    def fit(
        self, alpha: float, rows: slice, steps: int, batch_size: int, seed: int, bar: Any
    ) -> Tensor:
        n = len(self.x[rows])
        first = rows.start or 0
        generator = seeded(seed)
        # Adam moves each of d² entries by about this, however weak its gradient: rows grow by noise, and the
        # more the wider the space.
        most = min(0.01, 0.64 / self.used)
        with torch.enable_grad():
            encoder = torch.eye(self.used, dtype=torch.float32, device="cpu").requires_grad_()
            optimiser = torch.optim.Adam([encoder], lr=most, betas=(0.9, 0.99))
            for step in range(steps):
                for group in optimiser.param_groups:
                    group["lr"] = most * 0.5 * (1 + math.cos(math.pi * step / steps))
                drawn = (
                    torch.randint(n, (min(batch_size, n),), generator=generator, device="cpu")
                    + first
                )
                mixed = (1 - alpha) * self.joint(encoder, drawn) + alpha * self.fisher(encoder)
                loss = (mixed + self.floor).log().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                bar.update()
        return encoder.detach()

    def basis(self, inner: Tensor) -> Basis:
        """The fitted basis in activation space, its components with their largest entry positive."""
        start, used = self.start, self.used
        inner = inner.double()
        encoder = start.encoder[:, :used] / self.scale @ inner
        decoder = torch.linalg.inv(inner) @ (start.decoder[:used] * self.scale[:, None])
        norms = decoder.norm(dim=1)
        largest = encoder.gather(0, encoder.abs().argmax(0, keepdim=True))[0]
        turned = torch.where(largest < 0, -norms, norms)
        encoder, decoder = encoder * turned, decoder / turned[:, None]
        left = torch.cat(
            [self.joint(inner.float(), slice(None)).double(), torch.zeros(1, device="cpu").double()]
        )
        falls = left[:-1] - left[1:]
        return Basis(
            torch.cat([encoder, start.encoder[:, used:]], 1),
            torch.cat([decoder, start.decoder[used:]], 0),
            start.center,
            torch.cat([falls, start.eigenvalues[used:]]),
            falls.sum(),
            "joint_pca",
            start.provenance,
        )
