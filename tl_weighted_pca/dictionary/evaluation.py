"""What a dictionary is worth: to the eye (how sparse), to x̂ (how close) and to the model (how right)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.basis import Basis
from tl_weighted_pca.data import Positions, batches, check_rereadable
from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder
from tl_weighted_pca.downstream import Downstream
from tl_weighted_pca.hook_points import model_name, resolve
from tl_weighted_pca.objectives import (
    Objective,
    Run,
    counted_targets,
    language_logits,
    next_token_loss,
    target_losses,
)
from tl_weighted_pca.pairs import stream_pairs
from tl_weighted_pca.quiet_model import quiet

if TYPE_CHECKING:
    import pandas as pd

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


@dataclass(frozen=True)
class Evaluation:
    """Scores of a dictionary, beside those of bases of the same size."""

    scores: dict[str, Scores]
    """"dictionary", and each basis by name, cut to as many components as the dictionary has features
    at a token: round(l0)."""
    frequencies: Float[Tensor, "features"]
    """The share of tokens at which each feature of the dictionary fired."""
    biases: Float[Tensor, "features"]
    """b_enc of the dictionary; `plot_biases` shows them."""
    loss: float
    """L_x, nats per predicted token."""
    ablated_loss: float
    """L_μ, with the mean activation at `positions`."""
    n_tokens: int
    """Positions evaluated."""

    def to_pandas(self) -> pd.DataFrame:
        """One row for the dictionary and one for each basis."""
        import pandas as pd

        return pd.DataFrame.from_dict(
            {name: vars(scores) for name, scores in self.scores.items()}, orient="index"
        )


def evaluate_dictionary(
    model: Any,
    data: Any,
    dictionary: SparseAutoencoder,
    hook_point: str | None = None,
    *,
    bases: Mapping[str, Basis] | None = None,
    objective: Objective = next_token_loss,
    positions: Positions = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
) -> Evaluation:
    """Sparsity, fidelity and effect of x ↦ x̂ at a hook point, beside bases of the same size.

    Goes through the data up to three times: sums over tokens, the same for bases once their rank is
    known, and the model run again with x̂ in the place of x. The model is left as it was.

    Args:
        model: as for `collect`.
        data: as for `collect`, and to be gone through again; held out, or the scores flatter.
        dictionary: in the model's units, as `train_dictionary` gives it.
        hook_point: by default where the dictionary was trained.
        bases: by name, such as {"pca": pca(m), "fisher": metric_pca(m)}; a basis counts as a
            dictionary whose features are its first round(l0) coordinates.
        objective: what attributions are of.
        positions: which positions count, and are replaced.
        batch_size: sequences a batch.
        max_tokens: stop before exceeding so many tokens of data.

    Raises:
        ValueError: for a dictionary or basis of another place or width, a basis named "dictionary", data
            that can be read only once, positions that select nothing or at which x does not vary, or
            what `collect` and `ablation_curves` refuse.
    """
    made = dictionary.provenance
    if hook_point is None and not made.hook_point:
        raise ValueError("The dictionary does not say where it was trained: pass `hook_point`.")
    (hook_point,) = resolve(model, [hook_point or made.hook_point])
    here = (model_name(model), hook_point)
    if (made.model and made.model != here[0]) or (made.hook_point and made.hook_point != here[1]):
        raise ValueError(
            f"The dictionary was trained at {made.hook_point!r} of {made.model!r}, but is to be used at "
            f"{here[1]!r} of {here[0]!r}: evaluate it where it was trained."
        )
    bases = dict(bases or {})
    if "dictionary" in bases:
        raise ValueError(
            "A basis is named 'dictionary', which is the dictionary's own row: rename it."
        )
    for basis in bases.values():
        basis.check_place(*here)
    check_rereadable(data, "an evaluation goes through it up to three times")

    def summed(codes: Mapping[str, SparseAutoencoder | Basis]) -> dict[str, _Sums]:
        sums = {name: _Sums(code) for name, code in codes.items()}
        for pairs in stream_pairs(
            model, data, hook_point, objective=objective, positions=positions,
            batch_size=batch_size, max_tokens=max_tokens,
        ):  # fmt: skip
            x, g = pairs[hook_point].rows()
            for one in sums.values():
                one.add(x, g)
        return sums

    sums = summed({"dictionary": dictionary})
    own = sums["dictionary"]
    if not own.n_tokens:
        raise ValueError(
            f"positions={positions!r} selects no token of the data: choose others, or None for all."
        )
    if own.variance <= 0:
        raise ValueError(
            f"The activations at {hook_point!r} do not vary over the {own.n_tokens} tokens that count: "
            "pass more data, or other positions."
        )
    rank = round(own.l0)
    cut = {name: basis.truncate(min(rank, basis.n_components)) for name, basis in bases.items()}
    if cut:
        sums |= summed(cut)
    mean = own.mean

    def to_mean(tensor: Tensor) -> Tensor:
        heads = tensor.shape[2:] if tensor.ndim == 4 else tensor.shape[-1:]
        return mean.to(tensor).reshape(heads).expand_as(tensor)

    edits: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": to_mean,
        "dictionary": lambda tensor: dictionary.hook()(tensor, None),
    }
    edits |= {name: basis.project for name, basis in cut.items()}
    totals = dict.fromkeys(edits, 0.0)
    divergences = dict.fromkeys(edits, 0.0)
    clean = terms = 0.0
    with quiet(model, gradients=False):
        downstream = Downstream(model, hook_point, positions)
        for batch in batches(data, batch_size, max_tokens=max_tokens):
            run = downstream.start(batch)
            clean += float(target_losses(run).sum())
            counted = counted_targets(run)
            terms += float(target_losses(run).numel() if counted is None else counted.sum())
            for name, edit in edits.items():
                edited = Run(downstream.resume(edit), run.inputs, run.mask, run.sequence_index)
                totals[name] += float(target_losses(edited).sum())
                divergences[name] += float(_divergence(run, edited))
    loss, ablated = clean / terms, totals["mean"] / terms
    scores = {
        name: one.scores(
            _share(ablated - totals[name] / terms, ablated - loss), divergences[name] / terms
        )
        for name, one in sums.items()
    }
    return Evaluation(scores, own.frequencies, dictionary.biases.cpu(), loss, ablated, own.n_tokens)


class _Sums:
    """Sums over tokens for one dictionary or basis, in float64."""

    def __init__(self, code: SparseAutoencoder | Basis) -> None:
        self.code = code
        self.n_tokens = self.n_attributed = 0
        self.active = self.holders = self.error = self.unexplained = 0.0
        self.shift = self.first = self.fired = self.square = torch.zeros(0)
        # (g·(x − μ))² with μ known only at the end takes Σ(g·(x − σ))², Σ(g·(x − σ))g and Σ g gᵀ.
        self.attributed = self.attributed_first = self.attributed_outer = torch.zeros(0)

    @torch.no_grad()
    def add(self, x: Float[Tensor, "tokens d"], samples: Float[Tensor, "samples tokens d"]) -> None:
        x = x.float()
        f = self.code.encode(x)
        error = _wide(x - self.code.decode(f))
        wide = _wide(x)
        directions = self.code.decoder.to(f)
        if not self.n_tokens:
            d = x.shape[1]
            # About a shift near the data, so that a large mean costs no digits.
            self.shift = wide.mean(0)
            self.first, self.attributed_first = wide.new_zeros(2, d)
            self.square, self.attributed = wide.new_zeros(2)
            self.attributed_outer = wide.new_zeros(d, d)
            self.fired = wide.new_zeros(f.shape[1])
        self.n_tokens += len(x)
        self.first += (wide - self.shift).sum(0)
        self.square += (wide - self.shift).square().sum()
        self.error += float(error.square().sum())
        on = f != 0
        self.fired += on.sum(0).to(self.fired.device)
        for g in samples.float():
            a = (f * (g @ directions.T)).abs()
            whole = a.sum(1)
            held = a.sort(1, descending=True).values.cumsum(1)
            counted = whole > 0
            holders = (held < _HELD * held[:, -1:]).sum(1) + 1
            self.holders += float(holders[counted].sum())
            self.n_attributed += int(counted.sum())
            wide_g = _wide(g)
            self.unexplained += float((wide_g * error).sum(1).square().sum())
            about = (wide_g * (wide - self.shift)).sum(1)
            self.attributed += about.square().sum()
            self.attributed_first += (about[:, None] * wide_g).sum(0)
            self.attributed_outer += wide_g.T @ wide_g

    @property
    def mean(self) -> Float[Tensor, "d"]:
        return self.shift + self.first / self.n_tokens

    @property
    def frequencies(self) -> Float[Tensor, "features"]:
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
        offset = self.first / self.n_tokens
        attribution = float(
            self.attributed
            - 2 * offset @ self.attributed_first
            + offset @ self.attributed_outer @ offset
        )
        return Scores(
            n_features=len(self.fired),
            l0=self.l0,
            explained_variance=1 - self.error / self.variance,
            loss_recovered=loss_recovered,
            kl=kl,
            attribution_l0=self.holders / max(self.n_attributed, 1),
            unexplained_attribution=_share(self.unexplained, attribution),
            dead=float((self.fired == 0).double().mean()),
            dense=float((self.frequencies > 0.1).double().mean()),
        )


def _divergence(run: Run, edited: Run) -> Float[Tensor, ""]:
    """Σ KL(model ‖ edited) over the positions that predict a counted token."""
    reference = language_logits(run)[:, :-1].log_softmax(-1)
    other = language_logits(edited)[:, :-1].log_softmax(-1)
    each = (reference.exp() * (reference - other)).sum(-1)
    counted = counted_targets(run)
    return (each if counted is None else each.masked_fill(~counted, 0.0)).cpu().double().sum()


def _wide(rows: Tensor) -> Tensor:
    """In float64: on their device, or on the CPU where the device has none, as MPS."""
    return (rows.cpu() if rows.device.type == "mps" else rows).double()


def _share(part: float, whole: float) -> float:
    """part / whole, and NaN where there is nothing to have a share of."""
    return part / whole if whole else math.nan
