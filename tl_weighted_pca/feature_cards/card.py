"""What is known of one component."""

from __future__ import annotations

from dataclasses import dataclass

from tl_weighted_pca.ablation.curves import Estimate
from tl_weighted_pca.feature_cards.facts import SIGNIFICANT, FactScore
from tl_weighted_pca.feature_cards.histogram import Histogram


@dataclass(frozen=True)
class Context:
    """A token, with the tokens around it and the coordinate at each."""

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
class QuantileGroup:
    """Random contexts among the tokens whose coordinate lies in [low, high)."""

    low: float
    high: float
    share: float
    """Of all tokens that count, how many lie there."""
    contexts: list[Context]
    """By descending coordinate."""


@dataclass(frozen=True)
class Neighbour:
    """Another component, and how near it is."""

    basis: str
    """What made the other's basis, if that is another one (`compare=`); "" for this basis."""
    component: int
    head: int | None
    cosine: float | None
    """D·D′ / ‖D‖‖D′‖ of the decoders; None where the two spaces are different ones."""
    correlation: float
    """Of the coordinates z and z′, over the tokens that count."""


@dataclass(frozen=True)
class DirectLogits:
    """ℓ of one direction: see `direct_logits`."""

    histogram: Histogram
    """Of ℓ over the vocabulary."""
    promoted: list[tuple[str, float]]
    """Tokens with the highest logits, and these."""
    suppressed: list[tuple[str, float]]
    """Tokens with the lowest."""


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
    block: range
    """The components (of its head) whose eigenvalues are near-equal to its own, itself among them: see
    `Basis.blocks`."""
    histogram: Histogram
    """Of the coordinate z = (f − μ)E at the tokens that count, with its mean and deviation."""
    direct_logits: DirectLogits | None
    """What D alone says to the unembedding; None where no linear map leads there."""
    highest: list[Context]
    """Contexts with the highest coordinate, one per sequence."""
    lowest: list[Context]
    """Contexts with the lowest."""
    quantiles: list[QuantileGroup]
    """Random contexts from each tenth of the tokens, the highest coordinates first."""
    nearest: list[Neighbour]
    """The components nearest by correlation, and by cosine: of this basis, then of the other one."""
    cost: Estimate | None
    """Rise of the score when this component alone is ablated to the centre, with its interval."""
    facts: list[FactScore]
    """What it tells of the sequence's known facts, best first."""

    @property
    def promoted(self) -> list[tuple[str, float]]:
        """Tokens with the highest direct logits of D alone, and these logits."""
        return [] if self.direct_logits is None else self.direct_logits.promoted

    @property
    def suppressed(self) -> list[tuple[str, float]]:
        """Tokens with the lowest."""
        return [] if self.direct_logits is None else self.direct_logits.suppressed

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

    @property
    def label(self) -> str:
        """ "3", or "1.3" for component 3 of head 1."""
        return str(self.component) if self.head is None else f"{self.head}.{self.component}"
