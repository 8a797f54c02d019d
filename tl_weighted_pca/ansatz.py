"""The deep neural feature ansatz: do weights look like the gradients at their input?

Radhakrishnan, Beaglehole, Pandit and Belkin (arXiv 2212.13881) claim that, after training,

    W Wᵀ ∝ AGOP = E[g gᵀ],      g the gradient at the input of x @ W

(in their notation, Wx, it reads WᵀW). By the chain rule the gradient that passes through W is g_h Wᵀ,
with g_h that at the pre-activation h = x W + b, so that exactly

    AGOP = W K Wᵀ,               K = E[g_h g_hᵀ]

and the ansatz holds wherever K is a multiple of the identity: where gradients at the pre-activation
form a tight frame. Both claims are measured here, each beside what chance alone would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.alignment import (
    captured,
    captured_by_chance,
    centred_cosine,
    centred_cosine_sd,
    cosine,
    participation_ratio,
    power_of,
    principal_angles,
    replaced_cosine,
    support_condition,
)
from tl_weighted_pca.collect import collect
from tl_weighted_pca.data import Positions
from tl_weighted_pca.moments import Moments
from tl_weighted_pca.objectives import Objective, logit_probe, objective_name
from tl_weighted_pca.weights import Weight, check_weights, model_weights

if TYPE_CHECKING:
    import pandas as pd

_LOGITS = logit_probe()


def feature_ansatz(
    model: Any,
    batches: Any,
    layers: Sequence[int] | Sequence[Weight] | None = None,
    objective: Objective | Mapping[str, Objective] = _LOGITS,
    *,
    folded: bool = False,
    positions: Positions = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    max_width: int = 4096,
    progress: bool = True,
) -> FeatureAnsatz:
    """cos(W Wᵀ, E[g gᵀ]) for a model's weights, with baselines, controls and tightness (2212.13881).

    g is the gradient of the objective at the input of x @ W, *through that W alone*: g = g_h Wᵀ, so
    that its second moment is W K Wᵀ with K = Σ g_h g_hᵀ / n_tokens at the pre-activation h. Where
    several weights read one input (Q, K and V; a gated MLP's W_in and W_gate) each has a row of its
    own, and their sum Σ W Wᵀ has one, against the whole gradient at that input.

    Everything comes from one `collect` over the data; the same pairs of hook points are checked
    first: h − x W must be constant, or the weight is refused.

    Args:
        model: a HookedTransformer, a TransformerBridge, or a module with `weights()` (`HookedMLP`).
        batches: data, as for `collect`.
        layers: numbers of layers (the unembedding counts as the one after the last), or a list of
            `Weight` for a model of one's own; all by default.
        objective: what to differentiate: by default a probe of the outputs, Σ JᵀJ, the paper's AGOP
            of the model's function; or `next_token_loss`, `sampled_token_loss()`, `squared_error(y)`,
            or a dict of several, which share one forward pass.
        folded: whether the claim is about γ⊙W at the normalised activations (True) or about W as it
            is stored, at its own input γ⊙x̂ + β (False). See `model_weights`.
        positions: which positions count.
        batch_size: sequences a batch.
        max_tokens: stop before exceeding so many tokens of data.
        max_width: pre-activations wider than this keep no K: the AGOP is then measured at the input,
            where no other weight reads it, and tightness is not reported.
        progress: show a progress bar.

    Returns:
        A `FeatureAnsatz`: `.to_pandas()` and `.plot()`.

    Raises:
        TypeError: for a model whose weights are not known.
        ValueError: for unknown layers, a `Weight` that does not lead from its input to its output,
            or one too wide whose input is shared.
    """
    weights = _weights(model, layers, folded)
    head, data = _first_kept(batches)
    check_weights(model, head, weights, positions)
    measured, at = [], dict[str, None]()
    readers = _by_input(weights)
    for weight in weights:
        at_output = weight.writes is not None and weight.matrix.shape[1] <= max_width
        if not at_output and not (weight.alone and len(readers[weight.reads]) == 1):
            raise ValueError(
                f"{weight.name} has output width {weight.matrix.shape[1]} and shares its input with "
                f"others: raise max_width (it is {max_width}), or leave that layer out."
            )
        measured.append(_Measured((weight,), weight.writes if at_output else None))
        at[str(weight.writes) if at_output else weight.reads] = None
        if weight.after is not None and weight.matrix.shape[1] <= max_width:
            at[weight.after] = None
    for sharing in readers.values():
        if len(sharing) > 1 and all(weight.alone for weight in sharing):
            measured.append(_Measured(tuple(sharing), None))
            at[sharing[0].reads] = None
    named = dict(objective) if isinstance(objective, Mapping) else {"": objective}
    collections = collect(
        model, data, list(at), objective=named, statistics=("gradient",),
        row_metric="identity", positions=positions, batch_size=batch_size, max_tokens=max_tokens,
        progress=progress,
    )  # fmt: skip
    rows = [
        _row(what, key or objective_name(named[key]), moments)
        for key, moments in collections.items()
        for what in measured
    ]
    return FeatureAnsatz(tuple(rows))


@dataclass(frozen=True)
class WeightAnsatz:
    """One weight (or several that read one input) and the gradients on either side of it."""

    name: str
    kind: str
    layer: int
    objective: str
    matrix: Float[Tensor, "d_in d_out"]
    """W, float64; several weights lie side by side."""
    agop: Float[Tensor, "d_in d_in"]
    """E[g gᵀ] at the input, through this weight, per token."""
    before: Float[Tensor, "d_out d_out"] | None
    """K = E[g_h g_hᵀ] at the pre-activation, per token: with the activation's derivative."""
    after: Float[Tensor, "d_out d_out"] | None
    """The same past the non-linearity: without its derivative."""
    n_tokens: int

    @property
    def gram(self) -> Float[Tensor, "d_in d_in"]:
        """W Wᵀ."""
        return self.matrix @ self.matrix.mT

    def cosine(self, power: float = 1.0) -> float:
        """cos(W Wᵀ, AGOP^power)."""
        return cosine(self.gram, power_of(self.agop, power))

    def captured(self) -> Float[Tensor, "rank"]:
        """The share of the best k directions' gradient variance that W's top k hold, k = 1 … rank."""
        return captured(self.matrix, self.agop)

    def captured_by_chance(self) -> Float[Tensor, "rank"]:
        """The same for random directions, on average."""
        return captured_by_chance(self.matrix, self.agop)

    def principal_angles(self, k: int) -> Float[Tensor, "k"]:
        """Angles, in radians, between W's top k input directions and the AGOP's."""
        return principal_angles(self.matrix, self.agop, k)

    def row(self, others: Sequence[WeightAnsatz], power: float) -> dict[str, Any]:
        """This weight's line of the table; `others` are the same kind in other layers."""
        gram, agop = self.gram, power_of(self.agop, power)
        eye = torch.eye(len(gram), dtype=gram.dtype)
        d_in, d_out = self.matrix.shape
        same = [other.gram for other in others if other.gram.shape == gram.shape]
        k = max(1, min(d_in, d_out) // 8)
        kept = self.matrix.mT @ self.matrix
        before, after = self.before, self.after
        # The frame that W's columns or rows make, whichever there are fewer of.
        small = gram if d_in <= d_out else kept
        nan = float("nan")
        return {
            "name": self.name, "kind": self.kind, "layer": self.layer, "objective": self.objective,
            "d_in": d_in, "d_out": d_out,
            "cosine": cosine(gram, agop),
            "identity": cosine(eye, agop),
            "rotated": cosine(eye, agop) * cosine(eye, gram),
            "centred": centred_cosine(gram, agop),
            "centred_sd": centred_cosine_sd(d_in),
            "other_layers": sum(cosine(g, agop) for g in same) / len(same) if same else nan,
            "replaced": nan if before is None or power != 1 else replaced_cosine(self.matrix, before),
            "left": nan if before is None else cosine(kept, before),
            "left_identity": nan if before is None else participation_ratio(before) ** 0.5,
            "captured": float(self.captured().mean()),
            "captured_by_chance": float(self.captured_by_chance().mean()),
            "angles_k": k,
            "mean_cos2_angle": float(self.principal_angles(k).cos().square().mean()),
            "tight_before": nan if before is None else participation_ratio(before),
            "condition_before": nan if before is None else support_condition(before),
            "tight_after": nan if after is None else participation_ratio(after),
            "condition_after": nan if after is None else support_condition(after),
            "tight_weight": participation_ratio(small),
            "condition_weight": support_condition(small),
            "n_tokens": self.n_tokens,
        }  # fmt: skip


@dataclass(frozen=True)
class FeatureAnsatz:
    """What `feature_ansatz` found: one entry a weight and objective."""

    rows: tuple[WeightAnsatz, ...]

    def __getitem__(self, name: str) -> WeightAnsatz:
        """The entry of a weight, by its name, under the first objective."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(
            f"{name!r} was not measured; these were: {', '.join(dict.fromkeys(r.name for r in self.rows))}."
        )

    def __iter__(self) -> Iterator[WeightAnsatz]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_pandas(self, *, power: float = 1.0) -> pd.DataFrame:
        """A table, one line a weight and objective.

        `cosine` is cos(W Wᵀ, AGOP^power). Beside it, what it would be for the `identity` in place of
        W Wᵀ, for W Wᵀ `rotated` at random (the expectation, exact: the product of the two matrices'
        cosines with I), for the W of `other_layers`, and `replaced`: cos(W̃W̃ᵀ, W̃KW̃ᵀ) for a
        random W̃ with W's singular values (for power 1). `centred` is the cosine of the two matrices'
        traceless parts: 0 ± `centred_sd` under rotation. `left` compares WᵀW with K, the gradients
        after it, beside its `left_identity`. `captured` is the mean over k of the share of gradient
        variance that W's top k directions hold, of what the best k would; `mean_cos2_angle` is over
        the principal angles of the top `angles_k`. `tight_…` are participation ratios tr(K)²/(d tr K²),
        `condition_…` λmin/λmax on the support, of K `before` and `after` the non-linearity and of W.

        Args:
            power: exponent on the AGOP; ½ where a linear network of two balanced layers has it.
        """
        import pandas as pd

        table = []
        for row in self.rows:
            others = [
                other
                for other in self.rows
                if other.kind == row.kind
                and other.objective == row.objective
                and other.name != row.name
            ]
            table.append(row.row(others, power))
        return pd.DataFrame(table)

    def plot(self, **options: Any) -> Any:
        """A matplotlib figure: the cosine and its baselines by layer, one panel a kind of weight."""
        from tl_weighted_pca.ansatz_plots import plot_feature_ansatz

        return plot_feature_ansatz(self, **options)

    def plot_captured(self, **options: Any) -> Any:
        """A matplotlib figure: captured gradient variance by k, one panel a kind of weight."""
        from tl_weighted_pca.ansatz_plots import plot_captured

        return plot_captured(self, **options)


@dataclass(frozen=True)
class _Measured:
    """Which weights a row is about, and where their K is, if anywhere."""

    weights: tuple[Weight, ...]
    pre_activation: str | None


def _row(what: _Measured, objective: str, moments: Mapping[str, Moments]) -> WeightAnsatz:
    def at(hook_point: str) -> Tensor:
        m = moments[hook_point]
        return m.require("gradient").second.cpu() / m.n_tokens

    first = what.weights[0]
    matrix = torch.cat([weight.claimed for weight in what.weights], dim=1)
    before = None if what.pre_activation is None else at(what.pre_activation)
    if before is None:
        agop = at(first.reads)
        if first.change is not None:
            change = first.change.double().cpu()
            agop = change @ agop @ change.mT
    else:
        agop = matrix @ before @ matrix.mT
    module = first.name.rpartition(".")[0]
    kind = "+".join(weight.kind for weight in what.weights)
    shared = len(what.weights) > 1
    return WeightAnsatz(
        name=f"{module}.{kind}" if shared else first.name,
        kind=kind,
        layer=first.layer,
        objective=objective,
        matrix=matrix,
        agop=(agop + agop.mT) / 2,
        before=before,
        after=at(first.after) if before is not None and first.after and not shared else None,
        n_tokens=moments[what.pre_activation or first.reads].n_tokens,
    )


def _weights(model: Any, layers: Any, folded: bool) -> list[Weight]:
    given = None if layers is None else list(layers)
    if given and all(isinstance(layer, Weight) for layer in given):
        return given
    return model_weights(model, given, folded=folded)


def _by_input(weights: Iterable[Weight]) -> dict[str, list[Weight]]:
    found: dict[str, list[Weight]] = {}
    for weight in weights:
        found.setdefault(weight.reads, []).append(weight)
    return found


def _first_kept(data: Any) -> tuple[Any, Any]:
    """The data twice over: an iterator gives its first batch to both."""
    if not isinstance(data, Iterator):
        return data, data
    first = list(x for _, x in zip(range(1), data, strict=False))
    return first, chain(first, data)
