"""The cards of all components that were asked about, and what can be made of them."""

from __future__ import annotations

import html
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import torch

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.feature_cards.card import FeatureCard
from tl_weighted_pca.feature_cards.components import Components
from tl_weighted_pca.feature_cards.facts import SIGNIFICANT, FactScore
from tl_weighted_pca.feature_cards.prompt_view import PromptView, prompt_view

if TYPE_CHECKING:
    import pandas as pd

_TWICE = 2.0
"""A fact tells a component from the others if it is told so many times as well as by their median."""


@dataclass(frozen=True, eq=False, repr=False)
class FeatureCards(Sequence[FeatureCard]):
    """The cards of a basis's leading components, in the order of their eigenvalues."""

    cards: list[FeatureCard]
    model: str
    hook_point: str
    method: str
    """What made the basis."""
    n_tokens: int
    """Tokens that counted: neither padding nor outside `positions`."""
    n_sequences: int
    """Sequences read."""
    ablations: AblationCurves | None
    """The scores behind the costs, per sequence; None if nothing was ablated."""
    notes: list[str]
    """What is left out, and why."""
    components: Components
    """The components themselves."""
    positions: Positions = None
    """Which positions counted."""
    outliers: float | None = None
    """Medians of its sequence's norms above which a position did not count."""
    compared: str = ""
    """The basis that neighbours were sought in besides."""
    prompts: list[PromptView] = field(default_factory=list)
    """The texts that the page shows token by token."""

    @overload
    def __getitem__(self, index: int) -> FeatureCard: ...
    @overload
    def __getitem__(self, index: slice) -> list[FeatureCard]: ...
    def __getitem__(self, index: int | slice) -> FeatureCard | list[FeatureCard]:
        return self.cards[index]

    def __len__(self) -> int:
        return len(self.cards)

    def __iter__(self) -> Iterator[FeatureCard]:
        return iter(self.cards)

    def prompt(
        self, model: Any, text: Any, *, token: str | int | None = None, tokenizer: Any = None
    ) -> PromptView:
        """For each token of a text: the components that are strong there, and those that move a logit.

        Args:
            model: the one that the cards are of.
            text: a text, to which the model's tokenizer adds what it adds, or token ids [pos].
            token: whose logit is asked about at each position, a string of one token or its id. By
                default the text's next token, and at the last position what the model finds likeliest.
            tokenizer: Hugging Face's; the model's own by default.

        Raises:
            ValueError: for an empty text, one longer than the model's context, or a `token` that is
                not one token.
        """
        deviations = torch.tensor(
            [card.histogram.std for card in self.cards], dtype=torch.float64, device="cpu"
        )
        return prompt_view(
            model, text, self.components, self.hook_point, deviations, token=token,
            positions=self.positions, outliers=self.outliers, tokenizer=tokenizer,
        )  # fmt: skip

    def distinctive(self, card: FeatureCard) -> list[FactScore]:
        """The facts that tell this component from the others, best first, each once.

        Those told with p ≤ 0.05 whose ε² is at least twice the median ε² of the other components.
        """
        found: dict[str, FactScore] = {}
        for score in card.facts:
            if self.tells_apart(card, score):
                found.setdefault(score.fact, score)
        return list(found.values())

    def tells_apart(self, card: FeatureCard, score: FactScore) -> bool:
        """Whether a card's score is significant, and at least twice what is usual."""
        usual = self.usual(card, score)
        return score.p_value <= SIGNIFICANT and score.beyond_chance >= _TWICE * usual

    def usual(self, card: FeatureCard, score: FactScore) -> float:
        """The median ε² of the other cards for the same fact, at least zero."""
        others = [
            value for owner, value in self._by_fact[score.fact, score.where] if owner is not card
        ]
        return max(0.0, statistics.median(others)) if others else 0.0

    @cached_property
    def _by_fact(self) -> dict[tuple[str, str], list[tuple[FeatureCard, float]]]:
        """Every card's ε² by fact, and by where it is read off."""
        found: dict[tuple[str, str], list[tuple[FeatureCard, float]]] = {}
        for card in self.cards:
            for score in card.facts:
                found.setdefault((score.fact, score.where), []).append((card, score.beyond_chance))
        return found

    def to_pandas(self) -> pd.DataFrame:
        """One row a component; columns that do not apply are left out."""
        import pandas as pd

        rows = []
        for card in self.cards:
            row: dict[str, object] = {
                "component": card.component, "head": card.head, "eigenvalue": card.eigenvalue,
                "explained_ratio": card.explained_ratio, "mean": card.histogram.mean,
                "std": card.histogram.std,
            }  # fmt: skip
            if card.cost is not None:
                row |= {
                    "cost": float(card.cost), "cost_low": card.cost.low, "cost_high": card.cost.high,
                }  # fmt: skip
            if card.direct_logits is not None:
                row["promoted"] = [token for token, _ in card.promoted]
                row["suppressed"] = [token for token, _ in card.suppressed]
            row["highest"] = [context.token for context in card.highest]
            row["lowest"] = [context.token for context in card.lowest]
            if card.facts:
                best = card.facts[0]
                row |= {
                    "best_fact": best.fact, "best_where": best.where,
                    "eta_squared": best.eta_squared, "beyond_chance": best.beyond_chance,
                    "p_value": best.p_value,
                }  # fmt: skip
            rows.append(row)
        return pd.DataFrame(rows).dropna(axis="columns", how="all")

    def facts_to_pandas(self) -> pd.DataFrame:
        """One row a component and fact: the fields of `FactScore`, named also where there are no rows."""
        import dataclasses

        import pandas as pd

        rows = [
            {"component": card.component, "head": card.head, **dataclasses.asdict(score)}
            for card in self.cards
            for score in card.facts
        ]
        # Named also where there are no rows, so that a query finds its column.
        names = ["component", "head", *(each.name for each in dataclasses.fields(FactScore))]
        table = pd.DataFrame(rows, columns=names)
        return table.drop(columns="head") if table["head"].isna().all() else table

    def to_json(self) -> str:
        """All that is on the cards, as JSON; docs/feature_cards.md says what is where."""
        from tl_weighted_pca.feature_cards.as_json import as_json

        return as_json(self)

    def to_html(self) -> str:
        """One self-contained page, however many cards there are."""
        from tl_weighted_pca.feature_cards.page import page

        return page(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page; a file in its place is replaced whole.

        Past 64 cards it is an index, and a folder beside it, `NAME_components` for `NAME.html`, holds one
        page per component.

        Raises:
            OSError: if it cannot be written, naming the path.
        """
        from tl_weighted_pca.feature_cards.page import save_pages

        save_pages(self, path)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that a notebook's style and the page's stay apart."""
        from tl_weighted_pca.feature_cards.page import page

        return (
            '<iframe title="Feature cards" style="width:100%;height:44rem;border:1px solid #8884" '
            f'srcdoc="{html.escape(page(self, framed=True))}"></iframe>'
        )

    def __repr__(self) -> str:
        return (
            f"FeatureCards({len(self.cards)} components of {self.method or 'a basis'} at "
            f"{self.hook_point!r}, {self.n_tokens} tokens)"
        )
