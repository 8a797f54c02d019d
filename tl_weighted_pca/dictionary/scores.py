"""What a dictionary, or a basis, scores at the tokens of its hook point: sums over them, and the scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder

_HELD = 0.99
"""The share of a token's Σ|attribution| whose holders are counted."""


@dataclass(frozen=True)
class Scores:
    """A dictionary, or a basis at some rank, on held-out data."""

    n_features: int
    """How many directions there are."""
    l0: float
    """E #{i: f_i ≠ 0}, features at a token."""
    explained_variance: float
    """1 − E‖x − x̂‖²/E‖x − μ‖²."""
    loss_recovered: float
    """(L_μ − L_x̂)/(L_μ − L_x): 1 as good as the model itself, 0 as bad as the mean of x put there; NaN
    where that does not change the loss."""
    kl: float
    """KL divergence from the model itself, in nats per predicted token."""
    attribution_l0: float
    """How many features, largest first, hold 99% of Σ_i |f_i (g·d_i)| at a token; mean over the tokens
    at which at least one feature fires and has an attribution, so that at very low L0 it can exceed L0."""
    unexplained_attribution: float
    """E(g·(x − x̂))²/E(g·(x − μ))²; NaN without a gradient."""
    dead: float
    """The share of features that never fired."""
    dense: float
    """The share of features that fired at more than a tenth of the tokens."""


class CodeSums:
    """Sums over tokens for one dictionary or basis, in float64."""

    def __init__(self, code: SparseAutoencoder | Basis) -> None:
        self.code = code
        self.n_tokens = self.n_attributed = 0
        self.active = self.holders = self.error = self.unexplained = 0.0
        self.shift = self.first = self.fired = self.square = torch.zeros(0, device="cpu")
        # With μ known only at the end, Σ(g·(x − μ))² = vᵀ(Σ h hᵀ)v of h = (g·(x − σ), g), v = (1, σ − μ).
        self.attributed = torch.zeros(0, device="cpu")

    @torch.no_grad()
    def add(self, x: Float[Tensor, "tokens d"], samples: Float[Tensor, "samples tokens d"]) -> None:
        x = x.float()
        f = self.code.encode(x)
        error = _wide(x - self.code.decode(f))
        f = f.to(torch.promote_types(f.dtype, torch.float32))
        wide = _wide(x)
        directions = self.code.decoder.to(f)
        if not self.n_tokens:
            d = x.shape[1]
            # About a shift near the data, so that a large mean costs no digits.
            self.shift = wide.mean(0)
            self.first, self.square = wide.new_zeros(d), wide.new_zeros(())
            self.attributed = wide.new_zeros(d + 1, d + 1)
            self.fired = wide.new_zeros(f.shape[1])
        self.n_tokens += len(x)
        self.first += (wide - self.shift).sum(0)
        self.square += (wide - self.shift).square().sum()
        self.error += float(error.square().sum())
        on = f != 0
        self.fired += on.sum(0).to(self.fired.device)
        for g in samples.to(f):
            a = (f * (g @ directions.T)).abs()
            whole = a.sum(1)
            held = a.sort(1, descending=True).values.cumsum(1)
            counted = whole > 0
            holders = (held < _HELD * held[:, -1:]).sum(1) + 1
            self.holders += float(holders[counted].sum())
            self.n_attributed += int(counted.sum())
            wide_g = _wide(g)
            self.unexplained += float((wide_g * error).sum(1).square().sum())
            about = (wide_g * (wide - self.shift)).sum(1, keepdim=True)
            h = torch.cat([about, wide_g], 1)
            self.attributed += h.mT @ h

    @property
    def mean(self) -> Float[Tensor, " d"]:
        return self.shift + self.first / self.n_tokens

    @property
    def frequencies(self) -> Float[Tensor, " features"]:
        return (self.fired / self.n_tokens).cpu()

    @property
    def l0(self) -> float:
        return float(self.fired.sum() / self.n_tokens)

    @property
    def variance(self) -> float:
        """Σ‖x − μ‖²."""
        offset = self.first / self.n_tokens
        return float(self.square - self.n_tokens * offset.square().sum())

    def scores(self, loss_recovered: float, kl: float) -> Scores:
        v = torch.cat([self.first.new_ones(1), -self.first / self.n_tokens])
        return Scores(
            n_features=len(self.fired),
            l0=self.l0,
            explained_variance=1 - self.error / self.variance,
            loss_recovered=loss_recovered,
            kl=kl,
            attribution_l0=self.holders / max(self.n_attributed, 1),
            unexplained_attribution=share(self.unexplained, float(v @ self.attributed @ v)),
            dead=float((self.fired == 0).double().mean()),
            dense=float((self.frequencies > 0.1).double().mean()),
        )


def _wide(rows: Tensor) -> Tensor:
    """In float64: on their device, or on the CPU where the device has none, as MPS."""
    return (rows.cpu() if rows.device.type == "mps" else rows).double()


def share(part: float, whole: float) -> float:
    """part / whole, and NaN where there is nothing to have a share of."""
    return part / whole if whole else math.nan
