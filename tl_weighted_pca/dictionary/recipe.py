"""What a dictionary is trained for: the terms of the loss, their units, and the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder
from tl_weighted_pca.moments import Moments

Penalty = Literal["l1", "sqrt"]
"""Σ|f|, or Σ√|f| which punishes a large feature less than many small ones."""

GradientScale = Literal["token", "stream"]
"""Gradients in units of their own token's expected attribution, or of the whole stream's."""


@dataclass(frozen=True)
class Recipe:
    """loss = ‖x − x̂‖² + λ₁ Σ_i |f_i| + λ_a Σ_i |f_i (g·d_i)| + λ_u (g·(x − x̂))², mean over tokens.

    Every term is a pure number, so that one recipe fits models of any scale: activations are centred
    and scaled to E‖x‖² = 1, and attributions are in units of the total attribution (see `Units`).
    """

    sparsity: float = 0.1
    """λ₁."""
    attribution: float = 0.0
    """λ_a: sparsity in what features do."""
    unexplained: float = 0.0
    """λ_u: what the reconstruction error does."""
    penalty: Penalty = "l1"
    """How features are summed in the λ₁ term."""
    gradient_scale: GradientScale = "token"
    """The unit of attribution."""
    detach_decoder: bool = False
    """Whether the attribution term shapes features only, and leaves directions alone."""
    learning_rate: float = 3e-3
    """Of Adam, at its height."""
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
    seed: int = 0
    """Of resampling and shuffling."""
    unit: float = 1.0
    ratio: str = "none"

    def __post_init__(self) -> None:
        for name in ("sparsity", "attribution", "unexplained"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0.")
        for name in ("warmup", "decay", "resample"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a share of the steps, 0 to 1."
                )
        if self.learning_rate <= 0 or self.batch_size < 1 or self.resample_times < 1:
            raise ValueError(
                f"learning_rate={self.learning_rate}, batch_size={self.batch_size} and "
                f"resample_times={self.resample_times}; expected all to be positive."
            )
        if self.penalty not in get_args(Penalty):
            raise ValueError(f"penalty is {self.penalty!r}; expected 'l1' or 'sqrt'.")
        if self.gradient_scale not in get_args(GradientScale):
            raise ValueError(
                f"gradient_scale is {self.gradient_scale!r}; expected 'token' or 'stream'."
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


@dataclass(frozen=True)
class Units:
    """The scales of a stream, taken from its moments, in which a `Recipe` is a list of pure numbers.

    With C the covariance and Q the gradients' second moment, both per token: activations are measured
    from their mean in units of √tr C, the attribution of a token with gradient g in units of √(gᵀCg),
    the standard deviation of g·(x − μ), or, over the stream, of its mean square √tr(QC).
    """

    center: Float[Tensor, "d"]
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
        self, g: Float[Tensor, "tokens d"], kind: GradientScale
    ) -> Float[Tensor, "tokens d"]:
        """g such that g·x of scaled activations is an attribution in its unit.

        Tokens whose gradient all but vanishes stay small: the unit of a token is at least 1% of the
        stream's.
        """
        g = g.float() * self.scale
        if kind == "stream":
            return g / max(self.attribution, 1e-30)
        own = ((g @ self.covariance.to(g)) * g).sum(-1, keepdim=True).clamp(min=0).sqrt()
        return g / own.clamp(min=max(0.01 * self.attribution, 1e-30))

    def to(self, device: torch.device | str) -> Units:
        """The same on another device."""
        return Units(
            self.center.to(device), self.scale, self.covariance.to(device), self.attribution
        )


@dataclass(frozen=True)
class Losses:
    """The four terms, means over tokens, before their λ's."""

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
    """The terms of a `Recipe` on scaled activations and gradients, and the features."""
    u = recipe.unit
    f = dictionary.encode(x)
    error = x - dictionary.decode(f)
    size = f / u if recipe.penalty == "l1" else ((f / u + 1e-6).sqrt() - 1e-3)
    nothing = error.new_zeros(())
    attribution = unexplained = nothing
    if g is not None and recipe.attribution > 0:
        directions = dictionary.W_dec.detach() if recipe.detach_decoder else dictionary.W_dec
        a = (f / u) * (g @ directions.T)
        if recipe.ratio == "none":
            attribution = a.abs().sum(1).mean()
        elif recipe.ratio == "l2":
            attribution = (a.abs().sum(1) / (a.square().sum(1) + 0.05**2).sqrt()).mean()
        else:
            attribution = ((a.abs() + 1e-4).sqrt().sum(1) / (a.abs().sum(1) + 0.05).sqrt()).mean()
    if g is not None and recipe.unexplained > 0:
        unexplained = (g * error).sum(1).square().mean() / u**2
    terms = Losses(
        error.square().sum(1).mean() / u**2, size.sum(1).mean(), attribution, unexplained
    )
    return terms, f
