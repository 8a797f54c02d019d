"""What a dictionary is worth: to the eye (how sparse), to x̂ (how close) and to the model (how right)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.ablation.scores import Scorer
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.data.batches import batches, check_rereadable
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder
from tl_weighted_pca.dictionary.scores import CodeSums, Scores, share
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.fingerprint import made_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import resolve
from tl_weighted_pca.objectives.losses import Objective, next_token_loss
from tl_weighted_pca.streaming.pairs import stream_pairs

if TYPE_CHECKING:
    import pandas as pd


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
    here = made_at(model, hook_point)
    if different := made.differences(here):
        raise ValueError(
            f"The dictionary was trained elsewhere than it would be used: they differ in {different}: "
            "evaluate it where it was trained."
        )
    bases = dict(bases or {})
    if "dictionary" in bases:
        raise ValueError(
            "A basis is named 'dictionary', which is the dictionary's own row: rename it."
        )
    for basis in bases.values():
        basis.check_place(here)
    check_rereadable(data, "an evaluation goes through it up to three times")

    def summed(codes: Mapping[str, SparseAutoencoder | Basis]) -> dict[str, CodeSums]:
        sums = {name: CodeSums(code) for name, code in codes.items()}
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
    losses, divergences = dict.fromkeys(edits, 0.0), dict.fromkeys(edits, 0.0)
    clean = terms = positions_scored = 0.0
    of_loss, of_kl = Scorer("loss"), Scorer("kl")
    with quiet(model, gradients=False):
        downstream = Downstream(model, hook_point, positions)
        for batch in batches(data, batch_size, max_tokens=max_tokens):
            run = downstream.start(batch)
            values, counted = of_loss(run, run.output)
            clean, terms = clean + float(values.sum()), terms + float(counted.sum())
            for name, edit in edits.items():
                output = downstream.resume(edit)
                losses[name] += float(of_loss(run, output)[0].sum())
                kl, of_positions = of_kl(run, output)
                divergences[name] += float(kl.sum())
            positions_scored += float(of_positions.sum())
    loss, ablated = clean / terms, losses["mean"] / terms
    scores = {
        name: one.scores(
            share(ablated - losses[name] / terms, ablated - loss),
            divergences[name] / positions_scored,
        )
        for name, one in sums.items()
    }
    return Evaluation(scores, own.frequencies, dictionary.biases.cpu(), loss, ablated, own.n_tokens)
