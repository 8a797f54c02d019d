"""What a dictionary is trained for: the terms of the loss, their units, and the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder
from tl_weighted_pca.moments.second_moment import Moments
from tl_weighted_pca.support.whole_numbers import checked_count

Penalty = Literal["l1", "sqrt", "log"]
"""What is summed over features: |v|, √|v| or log(1 + |v|/0.03). The last two punish one large value
less than many small ones."""

AttributionUnit = Literal["token", "stream"]
"""In units of a token's own total attribution, or of the stream's: see `Recipe.attribution_unit`."""


@dataclass(frozen=True)
class Recipe:
    """loss = ‖x − x̂‖² + λ₁ Σ_i p(f_i) + λ_a Σ_i p(a_i) + λ_u (g·(x − x̂))², mean over tokens.

    g = ∂L/∂x, and a_i = f_i (g·d_i) is the attribution of feature i: to first order, what L loses with
    it. p is the penalty, by default |·|. Every term is a pure number, so that one recipe fits models of
    any scale: activations are centred and scaled to E‖x‖² = 1, and attributions are divided by their
    unit. Source: Taggart 2024 for the first two terms; attribution dictionary learning (2024) for the
    last two, with p = |·|.
    """

    sparsity: float = 0.1
    """λ₁."""
    attribution: float = 0.0
    """λ_a: sparsity in what features do."""
    unexplained: float = 0.0
    """λ_u: what the reconstruction error does, in the same unit."""
    penalty: Penalty = "l1"
    """p. |a_i| falls most where a feature with a large effect shrinks, the very one that the loss needs;
    the concave penalties fall most where a small one goes. A λ fits one penalty only: λ₁ = 0.1 with
    "l1" is about as sparse as 0.01 with "sqrt" and 0.003 with "log"."""
    attribution_unit: AttributionUnit = "token"
    """"token": √(gᵀCg), the standard deviation of a token's total attribution g·(x − μ), so that every
    token counts the same. "stream": √tr(QC), its root mean square over the stream."""
    learning_rate: float = 3e-3
    """Of Adam, at its height. 3e-3 and more suit width 64; at width 576 nearly all features of the kinds here
    die at 3e-3: take 1e-3 with "relu", 3e-4 with ProLU."""
    batch_size: int = 1024
    """Tokens a step."""
    warmup: float = 0.1
    """The share of the steps in which λ₁, λ_a and λ_u rise from zero."""
    decay: float = 0.3
    """The share of the steps, at the end, in which the learning rate falls to zero."""
    resample: float = 0.6
    """Until this share of the steps, dead features are started again; 0 for never."""
    resample_times: int = 4
    """How often, evenly spaced until then."""
    unit: float = 1.0
    """The root mean square of a coordinate of x when the straight-through rule looks at m: only its
    factor 1 + m depends on a unit. Larger values drive biases further down, to sparser features."""
    seed: int = 0
    """Of the first weights, of resampling and of shuffling."""

    def __post_init__(self) -> None:
        for name in ("sparsity", "attribution", "unexplained"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0.")
        for name in ("warmup", "decay", "resample"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a share of the steps, 0 to 1."
                )
        positive = (self.learning_rate, self.batch_size, self.resample_times, self.unit)
        for name in ("batch_size", "resample_times", "seed"):
            checked_count(name, getattr(self, name), least=0)
        if not all(value > 0 for value in positive):
            raise ValueError(
                f"learning_rate={self.learning_rate}, batch_size={self.batch_size}, "
                f"resample_times={self.resample_times} and unit={self.unit}; expected all to be positive."
            )
        if self.penalty not in get_args(Penalty):
            raise ValueError(f"penalty is {self.penalty!r}; expected 'l1', 'sqrt' or 'log'.")
        if self.attribution_unit not in get_args(AttributionUnit):
            raise ValueError(
                f"attribution_unit is {self.attribution_unit!r}; expected 'token' or 'stream'."
            )

    @property
    def needs_gradients(self) -> bool:
        """Whether a term looks at gradients."""
        return self.attribution > 0 or self.unexplained > 0

    def learning_rate_at(self, done: float) -> float:
        """A short rise, a plateau, and a linear fall to zero; `done` is the share of the steps."""
        rise = min(1.0, (done + 1e-3) / 0.02)
        fall = min(1.0, (1 - done) / self.decay) if self.decay else 1.0
        return self.learning_rate * rise * fall

    def warm(self, done: float) -> float:
        """The factor of the λ's, rising from 0 to 1."""
        return min(1.0, done / self.warmup) if self.warmup else 1.0


_TINY = 1e-30
_ROUND = 1e-3
"""√|v| is rounded off below the square of this: its slope at zero is infinite."""
_KNEE = 0.03
"""Where log(1 + |v|/knee) turns from a slope into a count, as a share of what is typical of a token."""


@dataclass(frozen=True)
class Units:
    """The scales of a stream, taken from its moments, in which a `Recipe` is a list of pure numbers.

    With C the covariance and Q the gradients' second moment, both per token: activations are measured
    from their mean in units of √tr C, the attribution of a token with gradient g in units of √(gᵀCg),
    the standard deviation of g·(x − μ), or, over the stream, of its mean square √tr(QC).
    """

    center: Float[Tensor, " d"]
    """μ."""
    scale: float
    """√tr C."""
    covariance: Float[Tensor, "d d"]
    """C / tr C, of the scaled activations."""
    attribution: float
    """√tr(QC), in the objective's unit; 0 where there are no gradient statistics."""

    @classmethod
    def of(cls, moments: Moments) -> Units:
        """The units of a stream with these moments.

        Raises:
            ValueError: without activation statistics, per head, or for a stream that is constant.
        """
        activation = moments.require("activation")
        if activation.shift.ndim > 1:
            raise ValueError(
                "These moments are per head; a dictionary takes all heads together: collect with "
                "per_head=False."
            )
        mean = activation.mean
        covariance = activation.about(mean) / moments.n_tokens
        total = float(covariance.trace())
        if total <= 0:
            raise ValueError(
                f"The activations at {moments.provenance.hook_point!r} do not vary: there is nothing "
                "to learn a dictionary of."
            )
        attribution = 0.0
        if moments.gradient is not None:
            attribution = float((moments.gradient.second * covariance).sum() / moments.n_tokens)
        return cls(
            mean.float().cpu(),
            total**0.5,
            (covariance / total).float().cpu(),
            max(attribution, 0.0) ** 0.5,
        )

    def activations(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        """(x − μ)/√tr C."""
        return (x.float() - self.center.to(x.device)) / self.scale

    def gradients(
        self, g: Float[Tensor, "tokens d"], unit: AttributionUnit
    ) -> Float[Tensor, "tokens d"]:
        """g such that g·x, with x the scaled activations, is an attribution in its unit.

        The unit of a token is at least 1% of the stream's, so that tokens whose gradient all but
        vanishes (such as the last of a sequence) do not speak up.
        """
        g = g.float() * self.scale
        if unit == "stream":
            return g / max(self.attribution, _TINY)
        own = ((g @ self.covariance.to(g)) * g).sum(-1, keepdim=True).clamp(min=0).sqrt()
        return g / own.clamp(min=max(0.01 * self.attribution, _TINY))

    def to(self, device: torch.device | str) -> Units:
        """The same on another device."""
        return Units(
            self.center.to(device), self.scale, self.covariance.to(device), self.attribution
        )


@dataclass(frozen=True)
class Losses:
    """The terms, means over tokens, before their λ's; those that do not apply are 0."""

    reconstruction: Float[Tensor, ""]
    sparsity: Float[Tensor, ""]
    attribution: Float[Tensor, ""]
    unexplained: Float[Tensor, ""]

    def total(self, recipe: Recipe, warm: float = 1.0) -> Float[Tensor, ""]:
        """Their sum under a recipe, with λ's at the share `warm` of their height."""
        return self.reconstruction + warm * (
            recipe.sparsity * self.sparsity
            + recipe.attribution * self.attribution
            + recipe.unexplained * self.unexplained
        )


def losses(
    dictionary: SparseAutoencoder,
    x: Float[Tensor, "tokens d"],
    g: Float[Tensor, "tokens d"] | None,
    recipe: Recipe,
) -> tuple[Losses, Float[Tensor, "tokens features"]]:
    """The terms of a `Recipe` on activations and gradients as `Units` gives them, and the features."""
    f = dictionary.encode(x)
    attribution = unexplained = f.new_zeros(())
    if g is not None and recipe.attribution > 0:
        attribution = _penalised((f * (g.to(f) @ dictionary.W_dec.T)).abs(), recipe.penalty)
    error = x - dictionary.decode(f)
    if g is not None and recipe.unexplained > 0:
        unexplained = (g * error).sum(1).square().mean()
    reconstruction = error.square().sum(1).mean()
    return Losses(reconstruction, _penalised(f, recipe.penalty), attribution, unexplained), f


def _penalised(sizes: Float[Tensor, "tokens features"], penalty: Penalty) -> Float[Tensor, ""]:
    """Σ p(v) over features, mean over tokens, of sizes that are not below zero."""
    if penalty == "sqrt":
        sizes = (sizes + _ROUND**2).sqrt() - _ROUND
    elif penalty == "log":
        sizes = torch.log1p(sizes / _KNEE)
    return sizes.sum(1).mean()
