"""What is known of a component, and of all components that were asked about."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from tl_weighted_pca.ablation.curves import AblationCurves, Estimate
from tl_weighted_pca.feature_cards.facts import SIGNIFICANT, FactScore
from tl_weighted_pca.feature_cards.histogram import Histogram
from tl_weighted_pca.support.files import write_text_atomically

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Context:
    """A token at which a component is strong, with the tokens around it."""

    sequence: int
    """The place of the sequence in the data."""
    position: int
    """The token's position, from the sequence's first real token."""
    tokens: list[str]
    """What is shown."""
    coordinates: list[float]
    """z at each of them; NaN at positions that do not count."""
    focus: int
    """Which of them is the token."""

    @property
    def token(self) -> str:
        """The token itself."""
        return self.tokens[self.focus]

    @property
    def coordinate(self) -> float:
        """z at the token."""
        return self.coordinates[self.focus]


@dataclass(frozen=True)
class FeatureCard:
    """One component: what it writes, where it is strong, what it accounts for, what losing it costs."""

    component: int
    """Its number in the basis, from 0; in a basis per head, in its head's."""
    head: int | None
    """Its head, in a basis per head."""
    eigenvalue: float
    """λ, in the units of the basis's own objective."""
    explained_ratio: float
    """λ over the sum of all eigenvalues (of all heads)."""
    histogram: Histogram
    """Of the coordinate z = (f − μ)E at the tokens that count, with its mean and deviation."""
    promoted: list[tuple[str, float]]
    """Tokens with the highest direct logits of D alone, and these logits; see `direct_logits`."""
    suppressed: list[tuple[str, float]]
    """Tokens with the lowest."""
    highest: list[Context]
    """Contexts with the highest coordinate, one a sequence."""
    lowest: list[Context]
    """Contexts with the lowest."""
    cost: Estimate | None
    """Rise of the score when this component alone is ablated to the centre, with its interval."""
    facts: list[FactScore]
    """What it tells of the sequence's known facts, best first."""

    @property
    def told(self) -> list[FactScore]:
        """The facts it tells beyond what chance would, each once, best first."""
        best: dict[str, FactScore] = {}
        for score in self.facts:
            if score.p_value <= SIGNIFICANT:
                best.setdefault(score.fact, score)
        return list(best.values())

    @property
    def name(self) -> str:
        """ "component 3", or "head 1, component 3"."""
        head = "" if self.head is None else f"head {self.head}, "
        return f"{head}component {self.component}"


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
            if card.promoted:
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
        names = ["component", "head", *(field.name for field in dataclasses.fields(FactScore))]
        table = pd.DataFrame(rows, columns=names)
        return table.drop(columns="head") if table["head"].isna().all() else table

    def to_html(self) -> str:
        """One self-contained page."""
        from tl_weighted_pca.feature_cards.page import page

        return page(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page; a file in its place is replaced whole.

        Raises:
            OSError: if it cannot be written, naming the path.
        """
        write_text_atomically(path, self.to_html())

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
