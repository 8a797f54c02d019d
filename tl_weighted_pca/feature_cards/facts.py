"""Which known fact of a sequence a component tells: correlation ratios, and what chance would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_weighted_pca.support.randomness import seeded

_POSITIONS, _KINDS = "fact_positions", "fact_kinds"
"""Columns that say where in a sequence which fact is recalled, as `embedded.stories` has them."""

SIGNIFICANT = 0.05
"""p-values up to this count as told."""

_FEWEST = 8
"""Sequences without which nothing is said; besides, two for each value that a fact takes."""

_DEALS = 200
"""Random deals of the values among the sequences, to see what chance gives."""


@dataclass(frozen=True)
class FactScore:
    """η² = Σ_v n_v (z̄_v − z̄)² / Σ_x (z_x − z̄)²: the share of z's variance that a fact accounts for.

    z_x is one number a sequence; v runs over the fact's values. For a column of numbers it is the
    squared correlation r².
    """

    fact: str
    """The column."""
    where: str
    """"mean": z_x is the mean over the sequence's positions that count. "recall": over the positions
    from which a token that follows from this very fact is predicted."""
    eta_squared: float
    beyond_chance: float
    """(η² − E) / (1 − E), E = (m − 1)/(N − 1) being its mean over all ways to deal the m values out
    among the N sequences: Kelley's ε², zero on average where nothing is told."""
    chance: float
    """95% of random deals give a lower η²."""
    p_value: float
    """The share of random deals in which *any* fact, mean or recall, does as well for this component, in
    standard deviations of its own η² over deals: looking for the best of many facts is paid for."""
    n_sequences: int
    """N: the sequences that have both the fact and the positions."""


class FactSums:
    """One number a sequence and component: means of z, over all and at the positions of recall.

    Args:
        data: a `datasets.Dataset`, whose row is found by a sequence's place in the data.
        facts: names of columns of strings, booleans or numbers; one value a row, None if unknown.

    Raises:
        ValueError: for data that has no columns, an unknown column, or values of another kind.
    """

    def __init__(self, data: Any, facts: Sequence[str]) -> None:
        facts = [facts] if isinstance(facts, str) else list(dict.fromkeys(facts))
        columns = getattr(data, "column_names", None)
        if not isinstance(columns, list) or not hasattr(data, "__len__"):
            raise ValueError(
                f"facts were given, but the data is a {type(data).__name__}; expected a "
                "datasets.Dataset with those columns."
            )
        unknown = [name for name in facts if name not in columns]
        if unknown or not facts:
            raise ValueError(
                f"facts has {', '.join(map(repr, unknown)) or 'no names'}; the data's columns are "
                f"{', '.join(columns)}."
            )
        self._columns = {name: _Column.read(name, list(data[name])) for name in facts}
        recalled = _POSITIONS in columns and _KINDS in columns
        self._recalls = list(zip(data[_POSITIONS], data[_KINDS], strict=True)) if recalled else None
        self._rows: list[int] = []
        self._means: list[Tensor] = []
        self._recalled: dict[str, list[tuple[int, Tensor]]] = {name: [] for name in facts}

    def add(
        self,
        index: Int[Tensor, " batch"],
        z: Float[Tensor, "batch pos n"],
        counted: Bool[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        """See a batch; a sequence's places count from its first real token, by the mask of padding."""
        z = z.double()
        first = [0] * len(z) if mask is None else mask.int().argmax(1).tolist()
        for row, number in enumerate(index.tolist()):
            if not counted[row].any():
                continue
            self._rows.append(number)
            self._means.append(z[row, counted[row]].mean(0))
            if self._recalls is None:
                continue
            before: dict[str, list[int]] = {}
            for position, kind in zip(*self._recalls[number], strict=True):
                at = first[row] + int(position) - 1
                if kind in self._recalled and first[row] <= at < z.shape[1] and counted[row, at]:
                    before.setdefault(kind, []).append(at)
            for kind, positions in before.items():
                self._recalled[kind].append((number, z[row, positions].mean(0)))

    def result(self, seed: int = 0) -> list[list[FactScore]]:
        """The scores of each component, the fact best told first; none from too few sequences or values."""
        n = len(self._means[0])
        cells = []
        told: dict[str, tuple[Sequence[int], Sequence[Tensor]]]
        for fact, column in self._columns.items():
            recalled = self._recalled[fact]
            told = {
                "mean": (self._rows, self._means),
                "recall": ([row for row, _ in recalled], [value for _, value in recalled]),
            }
            for where, (rows, values) in told.items():
                known = [i for i, row in enumerate(rows) if bool(column.known[row])]
                kept = column.rows([rows[i] for i in known])
                if kept.freedom and len(known) >= max(_FEWEST, 2 * (kept.freedom + 1)):
                    cells.append(_Cell(fact, where, kept, torch.stack([values[i] for i in known])))
        if not cells:
            return [[] for _ in range(n)]
        deals = torch.stack([cell.dealt(seed) for cell in cells])  # [cell, deal, n]
        # In units of each cell's own spread: else those of few sequences would set the bar for all.
        spread, center = deals.std(1).clamp(min=1e-300), deals.mean(1)
        largest = ((deals - center[:, None]) / spread[:, None]).amax(0)
        scores: list[list[FactScore]] = [[] for _ in range(n)]
        for c, cell in enumerate(cells):
            eta = cell.column.share_explained(cell.z)
            over = cell.column.beyond_chance(eta)
            p_value = (1 + (largest >= (eta - center[c]) / spread[c]).sum(0)) / (1 + _DEALS)
            chance = deals[c].quantile(0.95, dim=0)
            for i in range(n):
                eta_i, over_i, chance_i, p_i = (float(x[i]) for x in (eta, over, chance, p_value))
                score = FactScore(cell.fact, cell.where, eta_i, over_i, chance_i, p_i, len(cell.z))
                scores[i].append(score)
        return [sorted(each, key=_best_first) for each in scores]


def _best_first(score: FactScore) -> tuple[bool, float]:
    """What may be chance comes after what is not."""
    return score.p_value > SIGNIFICANT, -score.beyond_chance


@dataclass(frozen=True)
class _Column:
    """What a column says of each row: one of m values, or a number."""

    values: Float[Tensor, "rows"]
    """Numbers, or the values' codes 0..m−1."""
    known: Bool[Tensor, "rows"]
    numeric: bool

    @classmethod
    def read(cls, name: str, values: list[Any]) -> _Column:
        # A dataset's format may wrap each value: `with_format("torch")` in a tensor, "numpy" in a scalar.
        values = [value.item() if getattr(value, "ndim", None) == 0 else value for value in values]
        known = torch.tensor([value is not None for value in values], device="cpu")
        present = [value for value in values if value is not None]
        kinds = {type(value) for value in present}
        if kinds <= {int, float}:
            numbers = torch.tensor(
                [0.0 if v is None else v for v in values], dtype=torch.float64, device="cpu"
            )
            return cls(numbers, known & numbers.isfinite(), True)
        if kinds not in ({str}, {bool}):
            raise ValueError(
                f"The column {name!r} holds {', '.join(sorted(kind.__name__ for kind in kinds))}; "
                "expected strings, booleans or numbers, one a row."
            )
        codes = {value: code for code, value in enumerate(dict.fromkeys(present))}
        coded = [codes.get(value, -1) for value in values]
        return cls(torch.tensor(coded, dtype=torch.float64, device="cpu"), known, False)

    def rows(self, numbers: list[int]) -> _Column:
        """The column of these rows alone."""
        chosen = torch.tensor(numbers, dtype=torch.long, device="cpu")
        return _Column(self.values[chosen], self.known[chosen], self.numeric)

    @property
    def freedom(self) -> int:
        """m − 1 for m values, 1 for numbers: E[η²] = freedom/(rows − 1) where nothing is told.

        0 where all rows have one value or number, which tells nothing.
        """
        more = len(self.values.unique()) - 1
        return min(more, 1) if self.numeric else more

    def share_explained(self, z: Float[Tensor, "rows n"]) -> Float[Tensor, " n"]:
        """η² of each column of z under the values, or r² under the numbers; 0 where z is constant."""
        z = z - z.mean(0)
        whole = z.square().sum(0)
        if self.numeric:
            x = self.values - self.values.mean()
            between = (x @ z).square() / x.square().sum().clamp(min=1e-300)
        else:
            codes = self.values.long()
            sizes = torch.bincount(codes).clamp(min=1)
            sums = torch.zeros(len(sizes), z.shape[1], dtype=z.dtype, device="cpu").index_add_(
                0, codes, z
            )
            between = (sums.square() / sizes[:, None]).sum(0)
        return torch.where(whole > 0, between / whole, 0.0).clamp(max=1.0)

    def beyond_chance(self, eta_squared: Float[Tensor, "*any n"]) -> Float[Tensor, "*any n"]:
        """ε² = (η² − E)/(1 − E)."""
        expected = self.freedom / (len(self.values) - 1)
        return (eta_squared - expected) / (1 - expected)


@dataclass(frozen=True)
class _Cell:
    """One fact, one way to sum up a sequence, and the sequences that have both."""

    fact: str
    where: str
    column: _Column
    z: Float[Tensor, "rows n"]

    def dealt(self, seed: int) -> Float[Tensor, "deals n"]:
        """η² with the fact's values dealt out anew among the sequences."""
        generator = seeded(seed)
        return torch.stack(
            [
                self.column.share_explained(
                    self.z[torch.randperm(len(self.z), generator=generator, device="cpu")]
                )
                for _ in range(_DEALS)
            ]
        )
