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
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tl_weighted_pca.ansatz.weight_ansatz import WeightAnsatz
from tl_weighted_pca.ansatz.weight_check import check_weights
from tl_weighted_pca.data.batches import is_rereadable
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.data.sharding import Shard
from tl_weighted_pca.models.weights import Weight, model_weights
from tl_weighted_pca.moments.second_moment import Moments
from tl_weighted_pca.objectives.losses import (
    Objective,
    ObjectiveName,
    checked_objective,
    objective_name,
)
from tl_weighted_pca.streaming.one_pass import collect
from tl_weighted_pca.support.whole_numbers import checked_counts

if TYPE_CHECKING:
    import pandas as pd


def feature_ansatz(
    model: Any,
    data: Any,
    layers: Sequence[int] | Sequence[Weight] | None = None,
    objective: Objective | ObjectiveName | Mapping[str, Objective | ObjectiveName] = "logits",
    *,
    folded: bool = False,
    positions: Positions = None,
    batch_size: int = 16,
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
    first on a few sequences: h − x W must be constant, or the weight is refused, and the gradient at an
    input that several share must be theirs alone, or their sum has no row (as where attention and
    MLP read one norm in parallel).

    Args:
        model: a HookedTransformer, a TransformerBridge, or a module with `weights()` (`HookedMLP`).
        data: as for `collect`.
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
        TypeError: for a model whose weights are not known, or an objective that is no callable.
        ValueError: for unknown layers, a `Weight` that does not lead from its input to its output,
            or one too wide whose input is shared.
    """
    given = objective if isinstance(objective, Mapping) else {"": objective}
    if not given:
        raise ValueError("The dict of objectives is empty: pass at least one.")
    named = {key: checked_objective(value) for key, value in given.items()}
    weights = _weights(model, layers, folded)
    head, data = _peekable(data)
    alone = check_weights(
        model, head, weights, next(iter(named.values())), positions, batch_size, max_tokens
    )
    measured, at = [], dict[str, None]()
    readers = _by_input(weights)
    for weight in weights:
        at_output = weight.writes is not None and weight.matrix.shape[1] <= max_width
        if not at_output and (len(readers[weight.reads]) > 1 or weight.reads not in alone):
            raise ValueError(
                f"{weight.name} has output width {weight.matrix.shape[1]} and shares its input with "
                f"others: raise max_width (it is {max_width}), or leave that layer out."
            )
        measured.append(_Measured((weight,), weight.writes if at_output else None))
        at[str(weight.writes) if at_output else weight.reads] = None
        if weight.after is not None and weight.matrix.shape[1] <= max_width:
            at[weight.after] = None
    for reads, sharing in readers.items():
        if len(sharing) > 1 and reads in alone:
            measured.append(_Measured(tuple(sharing), None))
            at[reads] = None
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
class FeatureAnsatz:
    """What `feature_ansatz` found: one entry a weight and objective."""

    rows: tuple[WeightAnsatz, ...]

    def __repr__(self) -> str:
        names = self._names
        objectives = ", ".join(dict.fromkeys(row.objective for row in self))
        return f"FeatureAnsatz({len(names)} weights, {names[0]} … {names[-1]}; {objectives})"

    def __getitem__(self, name: str) -> WeightAnsatz:
        """The entry of a weight, by its name, under the first objective."""
        for row in self:
            if row.name == name:
                return row
        raise KeyError(f"{name!r} was not measured; these were: {', '.join(self._names)}.")

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(row.name for row in self))

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

        def others(row: WeightAnsatz) -> list[WeightAnsatz]:
            alike = (row.kind, row.objective)
            return [r for r in self if (r.kind, r.objective) == alike and r.name != row.name]

        return pd.DataFrame([row.row(others(row), power) for row in self])

    def plot(self, **options: Any) -> Any:
        """A figure: the cosine and its baselines by layer, one panel a kind of weight."""
        from tl_weighted_pca.ansatz.picture import plot_feature_ansatz

        return plot_feature_ansatz(self, **options)

    def plot_captured(self, **options: Any) -> Any:
        """A figure: captured gradient variance by k, one panel a kind of weight."""
        from tl_weighted_pca.ansatz.picture import plot_captured

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
    if before is not None:
        agop = matrix @ before @ matrix.mT
    elif first.change is None:
        agop = at(first.reads)
    else:
        change = first.change.double().cpu()
        agop = change @ at(first.reads) @ change.mT
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
    if layers is None:
        return model_weights(model, folded=folded)
    if isinstance(layers, Iterable) and not isinstance(layers, str):
        given = list(layers)
        if given and all(isinstance(layer, Weight) for layer in given):
            return given
        if not any(isinstance(layer, Weight) for layer in given):
            numbers = checked_counts("layers", given)
            return model_weights(model, numbers, folded=folded)
    shown = repr(layers) if isinstance(layers, (int, str)) else f"a {type(layers).__name__}"
    raise TypeError(
        f"layers is {shown}; expected a list of numbers of layers, such as [0, 1], or a list of Weight."
    )


def _by_input(weights: Iterable[Weight]) -> dict[str, list[Weight]]:
    found: dict[str, list[Weight]] = {}
    for weight in weights:
        found.setdefault(weight.reads, []).append(weight)
    return found


def _peekable(data: Any) -> tuple[Any, Any]:
    """The data twice over. What may be readable only once is read from one iterator, first by the one and
    then, with what that has taken, by the other."""
    share = Shard.of(data)
    kind_is_wrong = isinstance(share.data, Mapping) or not isinstance(share.data, Iterable)
    if is_rereadable(share.data) or kind_is_wrong:  # which `collect` will say
        return data, data
    taken, source = [], iter(share.data)

    def head() -> Iterator[Any]:
        for item in source:
            taken.append(item)
            yield item

    return replace(share, data=head()), replace(share, data=chain(taken, source))
