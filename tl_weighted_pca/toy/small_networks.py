"""Small tasks and a training loop, for networks whose structure is known: seconds on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tl_weighted_pca.support.randomness import seeded
from tl_weighted_pca.support.whole_numbers import checked_count


def modular_addition(p: int = 31) -> tuple[Float[Tensor, "p² 2p"], Int[Tensor, "p²"]]:
    """All pairs (a, b) as two one-hot vectors side by side, and the labels (a + b) mod p."""
    checked_count("p", p)
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    return torch.cat([F.one_hot(a, p), F.one_hot(b, p)], 1).float(), (a + b) % p


def low_rank_regression(
    n: int = 2000, width: int = 32, *, seed: int = 0
) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n 1"]]:
    """Gaussian x and y = u₁·x u₂·x + ½ (u₃·x)² − ½, for orthonormal u: only three directions matter."""
    checked_count("n", n)
    checked_count("width", width, least=3)  # the directions that matter
    generator = seeded(seed)
    x = torch.randn(n, width, generator=generator)
    u = torch.linalg.qr(torch.randn(width, 3, generator=generator)).Q
    z = x @ u
    return x, (z[:, 0] * z[:, 1] + 0.5 * z[:, 2] ** 2 - 0.5)[:, None]


def train(
    model: Any,
    inputs: Tensor,
    targets: Tensor,
    *,
    steps: int,
    batch_size: int | None = None,
    learning_rate: float = 1e-2,
    weight_decay: float = 0.0,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    seed: int = 0,
    at: Iterable[int] = (),
    then: Callable[[int], Any] | None = None,
) -> float:
    """Train in place with a cosine schedule, on squared error or, for labels, on cross entropy.

    Args:
        model: a module from inputs to outputs.
        inputs: one row an example.
        targets: [n, outputs] for squared error, [n] labels for cross entropy.
        steps: how many.
        batch_size: examples a step, drawn with replacement; None takes them all.
        learning_rate: at the start; it falls to zero.
        weight_decay: the optimizer's, on all parameters.
        optimizer: a class of `torch.optim`.
        seed: of the batches.
        at: steps before which to call `then`; `steps` itself is the end.
        then: takes a step number: a place to keep a checkpoint or to measure.

    Returns:
        The mean loss over all examples at the end.
    """
    steps = checked_count("steps", steps)
    generator = seeded(seed)
    steps_of = optimizer(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps_of, steps)
    labels = not targets.is_floating_point()
    if not labels and targets.ndim != 2:
        raise ValueError(
            f"The targets have shape {tuple(targets.shape)}; expected [n, outputs] for squared error, or "
            "labels [n] of whole numbers."
        )
    moments = set(at)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        output = model(x)
        return F.cross_entropy(output, y) if labels else 0.5 * (output - y).square().sum(1).mean()

    for step in range(steps):
        if then is not None and step in moments:
            then(step)
        rows: Tensor | slice = slice(None)
        if batch_size is not None:
            rows = torch.randint(len(inputs), (batch_size,), generator=generator)
        steps_of.zero_grad()
        loss_of(inputs[rows], targets[rows]).backward()
        steps_of.step()
        schedule.step()
    if then is not None and steps in moments:
        then(steps)
    with torch.no_grad():
        return float(loss_of(inputs, targets))
