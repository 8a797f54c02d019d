"""The making of cards: one pass over the data to see, and one in which each component is ablated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.scores import Score
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.data.batches import batches, check_rereadable
from tl_weighted_pca.data.positions import Outliers, Positions
from tl_weighted_pca.data.progress import Progress
from tl_weighted_pca.feature_cards.card import Context, DirectLogits, FeatureCard, QuantileGroup
from tl_weighted_pca.feature_cards.card_set import FeatureCards
from tl_weighted_pca.feature_cards.components import Components
from tl_weighted_pca.feature_cards.contexts import Window
from tl_weighted_pca.feature_cards.direct_logits import direct_logits
from tl_weighted_pca.feature_cards.facts import FactScore, FactSums
from tl_weighted_pca.feature_cards.histogram import HistogramSums
from tl_weighted_pca.feature_cards.neighbours import SOUGHT
from tl_weighted_pca.feature_cards.observation import Latest, Observation
from tl_weighted_pca.feature_cards.prompt_view import prompt_ids
from tl_weighted_pca.feature_cards.single_ablation import single_ablations
from tl_weighted_pca.feature_cards.token_text import TokenText
from tl_weighted_pca.models.fingerprint import made_at, model_name
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import resolve_one
from tl_weighted_pca.streaming.recorder import Recorder
from tl_weighted_pca.support.whole_numbers import checked_count, checked_counts

QUANTILES = 10
"""Groups of equal share, by coordinate."""

OF_A_QUANTILE = 5
"""Contexts of each."""


def cards(
    model: Any,
    data: Any,
    basis: Basis,
    n: int = 20,
    *,
    hook_point: str | None = None,
    compare: Basis | None = None,
    prompts: str | Sequence[str] = (),
    facts: Sequence[str] | None = None,
    contexts: int = 8,
    window: tuple[int, int] = (24, 8),
    n_promoted: int = 10,
    score: Score | None = "loss",
    positions: Positions = None,
    outliers: float | None = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    ablation_tokens: int | None = None,
    tokenizer: Any = None,
    anywhere: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> FeatureCards:
    """For each leading component z_i = (f − μ)E_i, f̂ = μ + Σ z_i D_i: what it means, as a card.

    What D_i promotes through the unembedding, where z_i is highest and lowest and what lies between,
    its histogram, its neighbours, its eigenvalue, what the model loses with f ↦ f − z_i D_i, and which
    known fact of the sequence z_i tells. Memory is flat in the number of tokens, but for a few numbers
    per sequence.

    Args:
        model: a language model, as for `collect`.
        data: as for `collect`, read twice: nothing that can be read only once.
        basis: any; of one per head, the components of highest eigenvalue in whichever head.
        n: cards; fewer where the basis has fewer components.
        hook_point: where; the basis's own by default.
        compare: another basis of the same model, at any hook point, whose nearest components are shown.
        prompts: texts to show on the page token by token: see `FeatureCards.prompt`.
        facts: names of columns of `data`, then a `datasets.Dataset`, that hold strings, booleans or
            numbers, one per sequence: which of them a component tells. Columns `fact_positions` and
            `fact_kinds`, if there are any, say where in a sequence which fact is recalled.
        contexts: at either end, one per sequence, none twice.
        window: tokens to show before and after these.
        n_promoted: tokens promoted, and as many suppressed.
        score: what an ablation costs, as for `ablation_curves`: "loss", "kl" or a callable; None leaves
            the ablations out, which take most of the time: n passes through what lies downstream.
        positions: which positions count, and are ablated.
        outliers: as for `collect`: positions of so large a norm neither count nor are ablated.
        batch_size: sequences a batch.
        max_tokens: stop before exceeding so many tokens of data.
        ablation_tokens: the same for the ablations alone.
        tokenizer: Hugging Face's; the model's own by default.
        anywhere: use the bases also at another hook point or model than they were made from.
        seed: of the random deals behind the facts' chance levels, and of the tokens shown by quantile.
        progress: show progress bars.

    Returns:
        The cards, in the basis's own order (per head by descending eigenvalue); `save` writes the page.

    Raises:
        ValueError: for a basis of another width, hook point or model, data that can be read only once
            or are no tokens, unknown columns, numbers below one, a basis without components, or a
            prompt that is empty or longer than the model's context.
        NonFiniteError: on NaN or infinity in the activations, naming the batch.
    """
    place = _place_of(model, basis, hook_point, anywhere)
    there = place
    if compare is not None:
        there = _place_of(model, compare, compare.provenance.hook_point or place, anywhere)
    _check_counts(contexts, n_promoted, batch_size, window)
    check_rereadable(data, "cards read it twice")
    components = Components.leading(basis, n)
    texts = [prompt_ids(model, one) for one in ([prompts] if isinstance(prompts, str) else prompts)]
    told = FactSums(data, facts) if facts else None
    text = TokenText(getattr(model, "tokenizer", None) if tokenizer is None else tokenizer)
    ablations = None  # first, so that a hook point that cannot be ablated is refused at once
    if score is not None:
        ablations = single_ablations(
            model, data, components, place, score=score, positions=positions,
            outliers=outliers, batch_size=batch_size, progress=progress,
            max_tokens=max_tokens if ablation_tokens is None else ablation_tokens,
        )  # fmt: skip
    with Progress(data, batch_size, max_tokens, progress) as bar, quiet(model, gradients=False):
        # Made in here: what the caller's inference mode makes cannot be added to outside of it.
        seen = Observation(
            components,
            Components.leading(basis, max(len(components), SOUGHT)),
            None if compare is None else Components.leading(compare, SOUGHT),
            contexts, window, told, seed, Outliers.checked(outliers),
        )  # fmt: skip
        sinks = {name: Latest() for name in (place, there)}
        with (recorder := Recorder(sinks, {}, None)).attached(model):
            for batch in batches(data, batch_size, max_tokens=max_tokens):
                recorder.run(model, batch)
                activations = {name: sink.taken() for name, sink in sinks.items()}
                seen.add(batch, activations[place], activations[there], positions)
                bar.advance(batch)
    if not seen.n_tokens:
        raise ValueError(
            f"positions={positions!r} selects no token of the data: choose others, or leave positions out."
        )
    logits, notes = _direct_logits(model, place, components, n_promoted, text)
    compared = "" if compare is None else _title(compare, there, basis, place)
    scores = [[] for _ in components.places] if seen.facts is None else seen.facts.result(seed)
    if facts and not any(scores):
        notes.append(
            "Facts: there are too few sequences or values to tell; a fact needs two values, two "
            "sequences for each, and eight in all."
        )
    if seen.outliers is not None and (found := seen.outliers.found[""]):
        notes.append(
            f"Outliers: {found.total()} tokens, whose norm exceeds {seen.outliers.times:g} medians of "
            f"their sequence; most often at position {found.most_common(1)[0][0]}."
        )
    made = FeatureCards(
        cards=_made(components, seen, logits, compared, ablations, scores, text),
        model=model_name(model), hook_point=place, method=basis.method, n_tokens=seen.n_tokens,
        n_sequences=seen.n_sequences, ablations=ablations, notes=notes, compared=compared,
        components=components, positions=positions, outliers=outliers,
    )  # fmt: skip
    return replace(made, prompts=[made.prompt(model, one, tokenizer=tokenizer) for one in texts])


def _place_of(model: Any, basis: Basis, hook_point: str | None, anywhere: bool) -> str:
    """The hook point of a basis, its own by default, checked to be one where it may be used."""
    chosen = basis.provenance.hook_point if hook_point is None else hook_point
    if not chosen:
        raise ValueError("The basis does not say where it was made: pass hook_point=.")
    name = resolve_one(model, chosen)
    if not anywhere:
        basis.check_place(made_at(model, name), "pass anywhere=True")
    return name


def _check_counts(contexts: int, n_promoted: int, batch_size: int, window: Any) -> None:
    counts = {"contexts": contexts, "n_promoted": n_promoted, "batch_size": batch_size}
    for name, count in counts.items():
        checked_count(name, count)
    if len(checked_counts("window", window)) != 2:
        raise ValueError(f"window is {window!r}; expected two numbers of tokens, (before, after).")


def _title(other: Basis, there: str, basis: Basis, here: str) -> str:
    """What to call a basis that another one is compared with."""
    name = other.method or "the other basis"
    return name if there == here and name != basis.method else f"{name} at {there}"


def _direct_logits(
    model: Any, hook_point: str, components: Components, count: int, text: TokenText
) -> tuple[list[DirectLogits | None], list[str]]:
    """The direct logits of each component, or a note that says why there are none."""
    try:
        logits = direct_logits(model, hook_point, components.basis.decoder)
    except ValueError as reason:
        return [None] * len(components), [str(reason)]
    sums = HistogramSums(len(components))
    sums.add(logits.T)
    sides = []
    for largest in (True, False):
        values, ids = logits.topk(min(count, logits.shape[1]), 1, largest=largest)
        sides.append(
            [
                list(zip(text(row_ids.tolist()), row.tolist(), strict=True))
                for row_ids, row in zip(ids, values, strict=True)
            ]
        )
    return [DirectLogits(*each) for each in zip(sums.result(), *sides, strict=True)], []


def _made(
    components: Components,
    seen: Observation,
    logits: Sequence[DirectLogits | None],
    compared: str,
    ablations: AblationCurves | None,
    scores: Sequence[list[FactScore]],
    text: TokenText,
) -> list[FeatureCard]:
    """A card of each component, out of all that was seen."""
    histograms = seen.histograms.result()
    highest, lowest, near = seen.highest.result(), seen.lowest.result(), seen.nearest(compared)
    basis, made = components.basis, []
    for i, (head, number) in enumerate(components.places):
        groups = seen.sample.by_quantile(i, histograms[i], QUANTILES, OF_A_QUANTILE)
        made.append(
            FeatureCard(
                component=number,
                head=head,
                eigenvalue=float(basis.eigenvalues[i]),
                explained_ratio=float(basis.explained_ratio[i]),
                block=components.blocks[i],
                histogram=histograms[i],
                direct_logits=logits[i],
                highest=[_as_text(each, text) for each in highest[i]],
                lowest=[_as_text(each, text) for each in lowest[i]],
                quantiles=[
                    QuantileGroup(low, high, share, [_as_text(each, text) for each in windows])
                    for low, high, share, windows in groups
                ],
                nearest=near[i],
                cost=None if ablations is None else ablations.excess(components.names[i])[0],
                facts=scores[i],
            )
        )
    return made


def _as_text(window: Window, text: TokenText) -> Context:
    return Context(
        window.sequence, window.position, text(window.token_ids), window.coordinates, window.focus
    )
