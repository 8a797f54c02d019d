"""What a dictionary is worth: to the eye (how sparse), to x̂ (how close) and to the model (how right)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.ablation.scores import Scorer
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.data.batches import Batch, batches, check_rereadable
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder
from tl_weighted_pca.dictionary.scores import CodeSums, Scores, share
from tl_weighted_pca.models.downstream import Downstream, Edit
from tl_weighted_pca.models.fingerprint import made_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import resolve_one
from tl_weighted_pca.moments.second_moment import Provenance
from tl_weighted_pca.objectives.losses import Objective, ObjectiveName
from tl_weighted_pca.streaming.pairs import stream_pairs

if TYPE_CHECKING:
    import pandas as pd

_UNEDITED, _MEAN = 0, 1
"""Keys that no name of a basis equals."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a dictionary, beside those of bases of the same size."""

    scores: dict[str, Scores]
    """"dictionary", and each basis by name, cut to as many components as the dictionary has features
    at a token: round(l0)."""
    frequencies: Float[Tensor, " features"]
    """The share of tokens at which each feature of the dictionary fired."""
    biases: Float[Tensor, " features"]
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
    objective: Objective | ObjectiveName = "loss",
    positions: Positions = None,
    batch_size: int = 16,
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
    here = _place(model, dictionary, hook_point)
    bases = dict(bases or {})
    if "dictionary" in bases:
        raise ValueError(
            "A basis is named 'dictionary', which is the dictionary's own row: rename it."
        )
    for basis in bases.values():
        basis.check_place(here)
    check_rereadable(data, "an evaluation goes through it up to three times")
    options: dict[str, Any] = {"batch_size": batch_size, "max_tokens": max_tokens}

    def summed(codes: Mapping[str, SparseAutoencoder | Basis]) -> dict[str, CodeSums]:
        sums = {name: CodeSums(code) for name, code in codes.items()}
        for pairs in stream_pairs(
            model, data, here.hook_point, objective=objective, positions=positions, **options
        ):
            x, g = pairs[here.hook_point].rows()
            for one in sums.values():
                one.add(x, g)
        return sums

    sums = summed({"dictionary": dictionary})
    own = sums["dictionary"]
    if not own.n_tokens:
        raise ValueError(
            f"positions={positions!r} selects no token of the data: choose others, or leave positions out."
        )
    if own.variance <= 0:
        raise ValueError(
            f"The activations at {here.hook_point!r} do not vary over the {own.n_tokens} tokens that count: "
            "pass more data, or other positions."
        )
    rank = round(own.l0)
    cut = {name: basis.truncate(min(rank, basis.n_components)) for name, basis in bases.items()}
    if cut:
        sums |= summed(cut)
    edits: dict[str | int, Edit] = {
        _MEAN: lambda x: own.mean.to(x).view(x.shape[2:]).expand_as(x),
        "dictionary": lambda x: dictionary.hook()(x, None),
        **{name: basis.project for name, basis in cut.items()},
    }
    downstream = Downstream(model, here.hook_point, positions)
    with quiet(model, gradients=False):
        loss, kl = _effects(downstream, edits, batches(data, **options))
    clean, ablated = loss[_UNEDITED], loss[_MEAN]
    scores = {
        name: one.scores(share(ablated - loss[name], ablated - clean), kl[name])
        for name, one in sums.items()
    }
    return Evaluation(
        scores, own.frequencies, dictionary.biases.cpu(), clean, ablated, own.n_tokens
    )


def _place(model: Any, dictionary: SparseAutoencoder, hook_point: str | None) -> Provenance:
    """The hook point where a dictionary is evaluated; ValueError if it was trained elsewhere."""
    made = dictionary.provenance
    if hook_point is None and not made.hook_point:
        raise ValueError("The dictionary does not say where it was trained: pass `hook_point`.")
    hook_point = resolve_one(model, hook_point or made.hook_point)
    here = made_at(model, hook_point)
    if different := made.differences(here):
        raise ValueError(
            f"The dictionary was trained elsewhere than it would be used: they differ in {different}: "
            "evaluate it where it was trained."
        )
    return here


def _effects(
    downstream: Downstream, edits: Mapping[str | int, Edit], data: Iterable[Batch]
) -> list[dict[str | int, float]]:
    """The loss per predicted token and the KL divergence per position, of the model unedited and edited."""
    scorers = Scorer("loss"), Scorer("kl")
    sums = [
        {name: torch.zeros(2, dtype=torch.float64, device="cpu") for name in (_UNEDITED, *edits)}
        for _ in scorers
    ]
    for batch in data:
        run = downstream.start(batch)
        for name in (_UNEDITED, *edits):
            output = downstream.resume(edits[name]) if name in edits else run.output
            for scorer, of in zip(scorers, sums, strict=True):
                of[name] += torch.stack(scorer(run, output)).sum(1)
    if not bool(sums[0][_UNEDITED][1]):
        raise ValueError(
            "The data have no token to predict, and so no loss: pass sequences of two tokens or more."
        )
    return [{name: float(total / terms) for name, (total, terms) in of.items()} for of in sums]
