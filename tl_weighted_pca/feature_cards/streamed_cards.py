"""The making of cards: one pass over the data to see, and one in which each component is ablated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.ablation.scores import Score
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.data.batches import Batch, check_rereadable
from tl_weighted_pca.data.batches import batches as cut
from tl_weighted_pca.data.positions import Positions, selected
from tl_weighted_pca.data.progress import Progress
from tl_weighted_pca.feature_cards.card import Context, FeatureCard, FeatureCards
from tl_weighted_pca.feature_cards.components import Components
from tl_weighted_pca.feature_cards.contexts import Extremes, Window
from tl_weighted_pca.feature_cards.direct_logits import direct_logits
from tl_weighted_pca.feature_cards.facts import FactSums
from tl_weighted_pca.feature_cards.histogram import HistogramSums
from tl_weighted_pca.feature_cards.single_ablation import single_ablations
from tl_weighted_pca.feature_cards.token_text import TokenText
from tl_weighted_pca.models.fingerprint import made_at, model_name
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import hooked, resolve_one
from tl_weighted_pca.streaming.recorder import Recorder
from tl_weighted_pca.support.whole_numbers import checked_count, checked_counts


def cards(
    model: Any,
    batches: Any,
    basis: Basis,
    n: int = 20,
    *,
    hook_point: str | None = None,
    facts: Sequence[str] | None = None,
    contexts: int = 8,
    window: tuple[int, int] = (24, 8),
    n_promoted: int = 10,
    score: Score | None = "loss",
    positions: Positions = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    ablation_tokens: int | None = None,
    tokenizer: Any = None,
    anywhere: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> FeatureCards:
    """For each leading component z_i = (f − μ)E_i, f̂ = μ + Σ z_i D_i: what it means, as a card.

    What D_i promotes through the unembedding, where z_i is highest and lowest, its histogram, its
    eigenvalue, what the model loses with f ↦ f − z_i D_i, and which known fact of the sequence z_i tells.
    Memory is flat in the number of tokens, but for a few numbers a sequence.

    Args:
        model: a language model, as for `collect`.
        batches: data as for `collect`, read twice: nothing that can be read only once.
        basis: any; of one per head, the components of highest eigenvalue in whichever head.
        n: cards; fewer where the basis has fewer components.
        hook_point: where; the basis's own by default.
        facts: names of columns of `batches`, then a `datasets.Dataset`, that hold strings, booleans or
            numbers, one a sequence: which of them a component tells. Columns `fact_positions` and
            `fact_kinds`, if there are any, say where in a sequence, from its first real token, which
            fact is recalled.
        contexts: at either end, one a sequence, none twice.
        window: tokens to show before and after a context's token.
        n_promoted: tokens promoted, and as many suppressed.
        score: what an ablation costs, as for `ablation_curves`: "loss", "kl" or a callable; None
            leaves the ablations out, which are the dearer part: n passes through what lies downstream.
        positions: which positions count, and are ablated. The first, if it is a special token, is
            often an outlier: slice(1, None) leaves it out.
        batch_size: sequences a batch.
        max_tokens: stop before exceeding so many tokens of data.
        ablation_tokens: the same for the ablations alone.
        tokenizer: Hugging Face's; the model's own by default.
        anywhere: use the basis also at another hook point or model than it was made from.
        seed: of the random deals behind the facts' chance levels.
        progress: show progress bars.

    Returns:
        The cards, in the basis's own order (per head by descending eigenvalue); `save` writes them as one
        HTML file.

    Raises:
        ValueError: for a basis of another width, hook point or model, data that can be read only once
            or are no tokens, unknown columns, numbers below one, or a basis without components.
        NonFiniteError: on NaN or infinity in the activations, naming the batch.
    """
    hook_point = basis.provenance.hook_point if hook_point is None else hook_point
    if not hook_point:
        raise ValueError("The basis does not say where it was made: pass hook_point=.")
    hook_point = resolve_one(model, hook_point)
    if not anywhere:
        basis.check_place(made_at(model, hook_point), "pass anywhere=True")
    counts = {"contexts": contexts, "n_promoted": n_promoted, "batch_size": batch_size}
    for name, count in counts.items():
        checked_count(name, count)
    sizes = checked_counts("window", window)
    if len(sizes) != 2:
        raise ValueError(f"window is {window!r}; expected two numbers of tokens, (before, after).")
    check_rereadable(batches, "cards read it twice")
    components = Components.leading(basis, n)
    told = FactSums(batches, facts) if facts else None
    text = TokenText(getattr(model, "tokenizer", None) if tokenizer is None else tokenizer)
    ablations = None  # first, so that a hook point that cannot be ablated is refused at once
    if score is not None:
        ablations = single_ablations(
            model, batches, components, hook_point, score=score, positions=positions,
            batch_size=batch_size, progress=progress,
            max_tokens=max_tokens if ablation_tokens is None else ablation_tokens,
        )  # fmt: skip
    with Progress(batches, batch_size, max_tokens, progress) as bar, quiet(model, gradients=False):
        # Made in here: what the caller's inference mode makes cannot be added to outside of it.
        seen = _Seen(components, contexts, (sizes[0], sizes[1]), told)
        recorder = Recorder({hook_point: seen}, {}, None)
        with hooked(model, recorder.hooks(model)):
            for batch in cut(batches, batch_size, max_tokens=max_tokens):
                recorder.run(model, batch)
                seen.add(batch, positions)
                bar.advance(batch)
    if not seen.n_tokens:
        raise ValueError(
            f"positions={positions!r} selects no token of the data: choose others, or None for all."
        )
    notes = []
    try:
        logits = direct_logits(model, hook_point, components.basis.decoder)
        promoted, suppressed = _outermost(logits, n_promoted, text)
    except ValueError as reason:
        notes.append(str(reason))
        promoted = suppressed = [[] for _ in components.names]
    scores = [[] for _ in components.names] if seen.facts is None else seen.facts.result(seed)
    if facts and not any(scores):
        notes.append(
            "Facts: there are too few sequences or values to tell; a fact needs two values, two sequences "
            "for each, and eight in all."
        )
    highest, lowest = seen.highest.result(), seen.lowest.result()
    made = [
        FeatureCard(
            component=number,
            head=head,
            eigenvalue=float(components.basis.eigenvalues[i]),
            explained_ratio=float(components.basis.explained_ratio[i]),
            histogram=histogram,
            promoted=promoted[i],
            suppressed=suppressed[i],
            highest=[_as_text(each, text) for each in highest[i]],
            lowest=[_as_text(each, text) for each in lowest[i]],
            cost=None if ablations is None else ablations.excess(components.names[i])[0],
            facts=scores[i],
        )
        for i, ((head, number), histogram) in enumerate(
            zip(components.places, seen.histograms.result(), strict=True)
        )
    ]
    return FeatureCards(
        made, model_name(model), hook_point, basis.method, seen.n_tokens, seen.n_sequences,
        ablations, notes,
    )  # fmt: skip


class _Seen:
    """A recorder's sink that sums up coordinates, batch by batch."""

    def __init__(
        self, components: Components, k: int, window: tuple[int, int], facts: FactSums | None
    ) -> None:
        n = len(components.places)
        self._components = components
        self.histograms = HistogramSums(n)
        self.highest, self.lowest = (Extremes(n, k, window, sign) for sign in (1, -1))
        self.facts = facts
        self.n_tokens = self.n_sequences = 0
        self._activations: Tensor | None = None
        self._mask: Tensor | None = None

    def begin(
        self, activations: Tensor, mask: Tensor | None = None, *, gradients_to_come: int = 0
    ) -> None:
        self._activations, self._mask = activations, mask

    def gradient(self, gradients: Tensor, objective: str = "", scale: float = 1.0) -> None:
        raise AssertionError("no gradients were asked for")

    def check(self) -> list[Tensor]:
        x, mask = self._activations, self._mask
        assert x is not None
        return [(x if mask is None else x[mask]).float().sum()]

    def commit(self) -> None:
        """Nothing to do: `add` follows."""

    def discard(self) -> None:
        self._activations = self._mask = None

    def add(self, batch: Batch, positions: Positions) -> None:
        """Sum up the batch that the recorder has just run."""
        assert self._activations is not None
        if batch.inputs.is_floating_point() or batch.inputs.shape != self._activations.shape[:2]:
            raise ValueError(
                f"The inputs have shape {tuple(batch.inputs.shape)} and the activations "
                f"{tuple(self._activations.shape)}; cards are of token ids [batch, pos] and one vector a "
                "token."
            )
        z = self._components.coordinates(self._activations).cpu()
        counted = selected(positions, batch.mask, (z.shape[0], z.shape[1]))
        counted = torch.ones(z.shape[:2], dtype=torch.bool) if counted is None else counted.cpu()
        self.discard()
        self.histograms.add(z[counted])
        self.highest.add(batch, z, counted)
        self.lowest.add(batch, z, counted)
        if self.facts is not None:
            self.facts.add(batch.sequence_index, z, counted, batch.mask)
        self.n_tokens += int(counted.sum())
        self.n_sequences += len(z)


def _outermost(
    logits: Float[Tensor, "n vocab"], count: int, text: TokenText
) -> tuple[list[list[tuple[str, float]]], list[list[tuple[str, float]]]]:
    """The tokens of the highest logits of each row, and of the lowest, outermost first."""
    sides = []
    for largest in (True, False):
        values, ids = logits.topk(min(count, logits.shape[1]), 1, largest=largest)
        sides.append(
            [
                list(zip(text(row_ids.tolist()), row.tolist(), strict=True))
                for row_ids, row in zip(ids, values, strict=True)
            ]
        )
    return sides[0], sides[1]


def _as_text(window: Window, text: TokenText) -> Context:
    return Context(
        window.sequence, window.position, text(window.token_ids), window.coordinates, window.focus
    )
