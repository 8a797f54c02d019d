"""What to differentiate: scalars of a model run, one per sequence.

An objective is a callable `objective(run) -> Tensor [batch]`, or [samples, batch], whose gradients at
the hook points are what the collector keeps. It is a sum over the positions of its own sequence, so
that nothing depends on the batch size; a padded target contributes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.models.run import Run
from tl_weighted_pca.objectives.sign_probes import SignProbes
from tl_weighted_pca.support.randomness import uniform
from tl_weighted_pca.support.whole_numbers import checked_count

_NO_TARGET = -100

Objective = Callable[[Run], Float[Tensor, "*samples batch"]]
ObjectiveName = Literal["loss", "fisher", "logits"]


def next_token_loss(run: Run) -> Float[Tensor, " batch"]:
    """L(x) = −Σ_s log p(x_{s+1} | x_{≤s}), in nats, summed over each sequence.

    Its gradient second moment is the *empirical* Fisher information: labels come from the data.
    Targets that are padding, or follow padding, contribute nothing.

    Raises:
        ValueError: if the model gave no logits [batch, pos, vocab], or sequences are shorter than 2.
    """
    return target_losses(run).sum(1)


def target_losses(run: Run) -> Float[Tensor, "batch pos-1"]:
    """−log p(x_{s+1} | x_{≤s}) for each target, zero where the target is padding or follows it."""
    logits = language_logits(run)
    # The last position is given no target, instead of being cut off: a slice of the logits would be
    # copied, forward and backward, and over a large vocabulary that costs as much as the loss.
    targets = F.pad(run.inputs[:, 1:].long(), (0, 1), value=_NO_TARGET)
    counted = counted_targets(run)
    if counted is not None:
        targets = targets.masked_fill(~F.pad(counted, (0, 1)), _NO_TARGET)
    if int(targets.max()) >= logits.shape[-1]:  # on a GPU it would fail beyond repair
        raise ValueError(
            f"The data holds token {int(targets.max())}, but the model predicts "
            f"only 0..{logits.shape[-1] - 1}: pass an objective of your own, or a model that predicts "
            "its whole vocabulary."
        )
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=_NO_TARGET
    )
    return losses.view(logits.shape[:2])[:, :-1]


def counted_targets(run: Run) -> Bool[Tensor, "batch pos-1"] | None:
    """Where a next token counts: both it and the token before it are real; None if all do."""
    return None if run.mask is None else run.mask[:, 1:] & run.mask[:, :-1]


def language_logits(run: Run, *, at_least: int = 2) -> Float[Tensor, "batch pos vocab"]:
    """The run's logits in float32 or wider, checked to be those of a language model."""
    logits = run.output
    if not isinstance(logits, Tensor) or logits.ndim != 3 or run.inputs.is_floating_point():
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else ()
        what = f"a tensor of shape {shape}" if shape else type(logits).__name__
        raise ValueError(
            f"The model gave {what}; a token loss needs token ids in and logits [batch, pos, vocab] "
            "out: for another kind of model pass your own objective(run) -> [batch]."
        )
    if run.inputs.shape[1] < at_least:
        raise ValueError(
            f"The sequences have length {run.inputs.shape[1]}; this loss needs at least {at_least} "
            "tokens in each."
        )
    return logits if logits.dtype == torch.float64 else logits.float()


def objective_name(objective: Objective) -> str:
    """A name for files and messages: its attribute `name`, the function's, or a configured one's repr.

    The same in every process: of objects that have no repr of their own, the class's name.
    """
    if isinstance(name := getattr(objective, "name", None), str):
        return name
    if isinstance(objective, functools.partial):
        options = [repr(value) for value in objective.args]
        options += [f"{key}={value!r}" for key, value in objective.keywords.items()]
        return f"{objective_name(objective.func)}({', '.join(options)})"
    if name := getattr(objective, "__name__", None):
        return name
    plain = type(objective).__repr__ is object.__repr__
    return type(objective).__name__ if plain else repr(objective)


def checked_objective(objective: Any) -> Objective:
    """An objective, those of this package also by name: "loss", "fisher" or "logits".

    Raises:
        TypeError: for what is no such name, and cannot be called with a run.
    """
    if isinstance(objective, str) and objective in NAMED:
        return NAMED[objective]
    if isinstance(objective, type):
        name = objective.__name__
        raise TypeError(f"The objective is the class {name}; expected one of its kind: {name}(…).")
    if not callable(objective):
        raise TypeError(
            f"The objective is {objective!r}; expected a callable (run) -> [batch], or one of "
            f"{', '.join(map(repr, NAMED))}."
        )
    return objective


def checked_values(
    objective: Objective, values: Any, n: int, hook_points: Sequence[str]
) -> Float[Tensor, "samples batch"]:
    """The values for n sequences; raises ValueError for another shape, or without a gradient."""
    if not isinstance(values, Tensor) or values.ndim not in (1, 2) or values.shape[-1] != n:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"The objective {objective_name(objective)} gave {got}; expected one scalar per sequence, "
            f"shape ({n},), or (samples, {n})."
        )
    if not values.requires_grad:
        raise ValueError(
            f"The objective {objective_name(objective)} carries no gradient to "
            f"{', '.join(hook_points)}: they do not influence it, or it was detached."
        )
    return values if values.ndim == 2 else values[None]


@dataclass(frozen=True)
class sampled_token_loss:
    """L(x) = −Σ_s log p(y_s | x_{≤s}) with labels y_s sampled from the model itself.

    The expectation of its gradient second moment is the Fisher information Σ_s E_y[g gᵀ]; labels at
    different positions are independent, so cross-position terms vanish on average. Converges as
    1/√n in the number of samples. What a sequence draws depends on the seed and its place in the
    data alone.

    Args:
        n_samples: independent sets of labels; they share the forward pass.
        seed: of the labels.
    """

    n_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        checked_count("n_samples", self.n_samples)
        checked_count("seed", self.seed, least=0)

    def __call__(self, run: Run) -> Float[Tensor, "samples batch"]:
        logits = language_logits(run, at_least=1)
        log_probs = F.log_softmax(logits, -1)
        cumulative = log_probs.detach().double().exp().cumsum(-1)
        sequence = run.sequence_index.to(logits.device)[:, None, None]
        position = real_positions(run.mask, logits)[..., None]
        sample = torch.arange(self.n_samples, device=logits.device)
        draws = uniform(self.seed, sequence, position, sample)  # [batch, pos, samples]
        # Up to the whole sum, not 1: rounding must not push a draw past the last token.
        labels = torch.searchsorted(cumulative, draws * cumulative[..., -1:])
        labels = labels.clamp(max=logits.shape[-1] - 1)
        losses = -log_probs.gather(-1, labels)  # [batch, pos, samples]
        if run.mask is not None:
            losses = losses.masked_fill(~run.mask[..., None], 0.0)
        return losses.sum(1).T


@dataclass(frozen=True)
class logit_probe:
    """L(x) = Σ_s v_s · logits_s with random signs v_s: E[g gᵀ] = Σ JᵀJ, the AGOP of the logits.

    Args:
        n_probes: independent probes; they share the forward pass.
        seed: of the probes.
    """

    n_probes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        checked_count("n_probes", self.n_probes)
        checked_count("seed", self.seed, least=0)

    def __call__(self, run: Run) -> Float[Tensor, "samples batch"]:
        output = run.output
        if not isinstance(output, Tensor) or output.ndim < 2:
            raise ValueError(
                f"The model gave {type(output).__name__}; a probe of its outputs needs a tensor "
                "[batch, …, outputs]."
            )
        return _probed(run, output, self.n_probes, self.seed)


@dataclass(frozen=True)
class hook_probe:
    """L(x) = Σ_s v_s · (f_s − μ)E with random signs v_s, f the activations at a later hook point.

    E[g gᵀ] = Σ JᵀEEᵀJ, the second moment of the Jacobian to that hook point's coordinates.

    Args:
        hook_point: downstream of every hook point that is collected.
        basis: whose encoder E gives the coordinates; None probes the activations themselves.
        n_probes: independent probes; they share the forward pass.
        seed: of the probes.
        anywhere: use a basis that was made at another hook point.

    Raises:
        ValueError: for a basis of another hook point.
    """

    hook_point: str
    basis: Basis | None = None
    n_probes: int = 1
    seed: int = 0
    anywhere: bool = False

    def __post_init__(self) -> None:
        checked_count("n_probes", self.n_probes)
        checked_count("seed", self.seed, least=0)
        if self.basis is not None and not self.anywhere:
            here = replace(self.basis.provenance, hook_point=self.hook_point)
            self.basis.check_place(here, "pass anywhere=True")

    def __repr__(self) -> str:
        """Of the basis a digest: moments under another one are others."""
        digest = None if self.basis is None else self.basis.digest
        return (
            f"hook_probe(hook_point={self.hook_point!r}, basis={digest}, n_probes={self.n_probes}, "
            f"seed={self.seed})"
        )

    @property
    def hook_points(self) -> tuple[str, ...]:
        """What the collector must show in `run.activations`."""
        return (self.hook_point,)

    def __call__(self, run: Run) -> Float[Tensor, "samples batch"]:
        activations = run.activations[self.hook_point]
        coordinates = activations if self.basis is None else self.basis.encode(activations)
        return _probed(run, coordinates, self.n_probes, self.seed)


def _probed(
    run: Run, values: Float[Tensor, "batch *pos outputs"], n_probes: int, seed: int
) -> Float[Tensor, "samples batch"]:
    """Σ over positions and outputs of random signs times values."""
    if values.ndim > 3:
        values = values.flatten(2)
    if values.ndim == 2:
        values = values[:, None]
    # Masked by the padding of the tokens, where the values have the tokens' positions.
    mask = run.mask if run.mask is not None and run.mask.shape == values.shape[:2] else None
    if mask is not None:
        values = values.masked_fill(~mask[..., None], 0.0)
    sequence = run.sequence_index.to(values.device)
    return SignProbes.apply(values, seed, sequence, real_positions(mask, values), n_probes)


NAMED: dict[str, Objective] = {
    "loss": next_token_loss, "fisher": sampled_token_loss(), "logits": logit_probe(),
}  # fmt: skip
"""The objectives that have a name: with one sample a sequence, of seed 0."""


def real_positions(
    mask: Bool[Tensor, "batch pos"] | None, values: Float[Tensor, "batch pos ..."]
) -> Int[Tensor, "batch pos"]:
    """Positions counted from the first real token, so that padding changes no draw."""
    if mask is None:
        return torch.arange(values.shape[1], device=values.device).expand(values.shape[:2])
    return mask.cumsum(1) - 1
