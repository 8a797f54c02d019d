"""Ablation curves: scores by rank, kept per sequence, so that every comparison has an interval."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.ablation.bootstrap import Estimate, estimate, interval, resamples
from tl_weighted_pca.bases.names import display_names
from tl_weighted_pca.support.notebook import sparkline, summary
from tl_weighted_pca.support.whole_numbers import checked_counts

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class AblationCurves:
    """score_b(k) = Σ_x s_b(k, x) / Σ_x n(x): what is left of a model's score at rank k of basis b.

    Intervals are paired percentile bootstraps over sequences: every basis and rank sees the same
    resampled sequences, so that what the sequences share cancels out of a comparison. Of a single
    sequence nothing can be resampled, and its intervals are the whole line.
    """

    ranks: list[int]
    """k, ascending: of bases at several hook points, the components kept at all of them together."""
    width: int
    """d, or its sum over hook points: at rank d every complete basis is the identity."""
    per_sequence: dict[str, Float[Tensor, "rank sequence"]]
    """s_b(k, x) by basis, summed over the positions of each sequence, in the order of the data."""
    baseline_per_sequence: Float[Tensor, " sequence"]
    """The same of the unablated model."""
    counts: Float[Tensor, " sequence"]
    """n(x): predicted tokens for "loss", positions for "kl", 1 for a callable score."""
    hook_point: str = ""
    """Where was ablated."""
    unit: str = "score"
    """What a score is, for tables and pictures."""
    kept: list[dict[str, int]] = field(default_factory=list)
    """The components kept at each hook point, one dict per rank."""
    predicted_per_sequence: dict[str, Float[Tensor, "rank sequence"]] = field(default_factory=dict)
    """½ (Σ_s g_s·δ_s)² by basis, where `predicted` was asked for: the excess to second order."""
    eigenvalue_prediction: dict[str, list[float]] = field(default_factory=dict)
    """½ Σ_{i>k} Λ_i per term by basis, of those in the predicted objective's own metric."""
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many positions were left as they are for their norm, by hook point and position."""

    def __repr__(self) -> str:
        place = f" at {self.hook_point!r}" if self.hook_point else ""
        return (
            f"AblationCurves({', '.join(self.per_sequence)}{place}: {len(self.ranks)} ranks from "
            f"{min(self.ranks)} to {max(self.ranks)} of {self.width}, {len(self.counts)} sequences)"
        )

    def __getitem__(self, name: str) -> list[float]:
        """The scores of one basis, one per rank."""
        if name not in self.per_sequence:
            raise KeyError(
                f"There is no curve {name!r}; these curves are of {', '.join(self.per_sequence)}."
            )
        return self.scores[name]

    __iter__ = None  # a mapping by name it is not: its names are those of `per_sequence`

    def _repr_html_(self) -> str:
        """What a notebook shows: the mean excess of each basis over the ranks, and the curves."""
        labels = display_names(self.per_sequence)
        rows: dict[str, object] = {f"unablated {self.unit}": f"{self.baseline:.4f}"}
        if len(self.ranks) > 1:
            rows |= {f"mean excess of {labels[name]}": self.area(name) for name in labels}
        excess = {labels[n]: [s - self.baseline for s in of] for n, of in self.scores.items()}
        span = f"ranks {min(self.ranks)} to {max(self.ranks)} of {self.width}"
        rows["ranks"] = f"{span}, {len(self.counts)} sequences"
        picture = sparkline(excess, f"Excess by rank, logarithmic, {span}")
        return summary(f"Node ablation at {self.hook_point}", rows, picture)

    @property
    def baseline(self) -> float:
        """The unablated model's score."""
        return float(self.baseline_per_sequence.sum() / self.counts.sum())

    @property
    def scores(self) -> dict[str, list[float]]:
        """Scores by basis, one per rank."""
        total = self.counts.sum()
        return {name: (s.sum(1) / total).tolist() for name, s in self.per_sequence.items()}

    def excess(self, name: str, *, level: float = 0.95, seed: int = 0) -> list[Estimate]:
        """score_b(k) − baseline at each rank, with its interval."""
        draws = resamples(self.counts, seed)
        resampled = self._excess(name, draws)
        point = self._excess(name, None)[:, 0]
        return [estimate(p, r, level) for p, r in zip(point, resampled, strict=True)]

    def predicted(self, name: str, *, level: float = 0.95, seed: int = 0) -> list[Estimate]:
        """½ E(Σ_s g_s·δ_s)² per term at each rank: the excess to second order, with its interval.

        Raises:
            ValueError: where no prediction was asked for.
        """
        if name not in self.predicted_per_sequence:
            raise ValueError(
                f"There is no prediction of {name!r}: ask for it with ablation_curves(…, predicted=True)."
            )
        values, draws = self.predicted_per_sequence[name], resamples(self.counts, seed)
        point = values.sum(1) / self.counts.sum()
        resampled = (values @ draws) / (self.counts @ draws)
        return [estimate(p, r, level) for p, r in zip(point, resampled, strict=True)]

    def difference(
        self, name: str, *, to: str = "pca", level: float = 0.95, seed: int = 0
    ) -> list[Estimate]:
        """score_name(k) − score_to(k) at each rank, with its paired interval."""
        draws = resamples(self.counts, seed)
        point = (self._excess(name, None) - self._excess(to, None))[:, 0]
        resampled = self._excess(name, draws) - self._excess(to, draws)
        return [estimate(p, r, level) for p, r in zip(point, resampled, strict=True)]

    def smallest_rank(
        self, name: str, tolerance: float = 0.1, *, level: float = 0.95, seed: int = 0
    ) -> Estimate:
        """min {k : score_b(k) − baseline ≤ tolerance}, over the ranks that were evaluated.

        Infinite where no rank has so small an excess; that of rank d, where a basis is the identity, is
        0. The interval is that of the same minimum in resampled sequences.
        """
        at = torch.tensor([*self.ranks, torch.inf], dtype=torch.float64, device="cpu")
        whole = at[:-1, None] == self.width  # where all excess is rounding

        def smallest(excess: Tensor) -> Tensor:
            excess = excess.masked_fill(whole, 0)
            enough = torch.cat([excess <= tolerance, torch.ones_like(excess[:1], dtype=torch.bool)])
            return at[enough.byte().argmax(0)]

        point = smallest(self._excess(name, None))[0]
        resampled = smallest(self._excess(name, resamples(self.counts, seed)))
        return estimate(point, resampled, level, discrete=True)

    def area(self, name: str, *, level: float = 0.95, seed: int = 0) -> Estimate:
        """∫ (score_b(k) − baseline) dk over the ranks, by trapezoids, divided by their range.

        The mean excess over ranks. Ranks where every basis is hopeless dominate it: to compare
        bases where it matters, use `relative_excess`.
        """
        if len(self.ranks) < 2:
            raise ValueError(f"An area needs at least two ranks; these curves have {self.ranks}.")
        at = torch.tensor(self.ranks, dtype=torch.float64, device="cpu")

        def integral(excess: Tensor) -> Tensor:
            return torch.trapezoid(excess, at, dim=0) / (at[-1] - at[0])

        point = integral(self._excess(name, None))[0]
        return estimate(point, integral(self._excess(name, resamples(self.counts, seed))), level)

    def relative_excess(
        self,
        name: str,
        *,
        to: str = "pca",
        ranks: Sequence[int] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> Estimate:
        """exp mean_k log[(score_b(k) − baseline) / (score_to(k) − baseline)]: below 1 beats `to`.

        The geometric mean over ranks, by default those from d/8 to 7d/8 that were evaluated. An
        excess that is not positive is floored at its interval's half-width, with a warning, and any at
        the rounding of float32, a millionth of the baseline. Where that of either basis is positive at no
        rank, there is no ratio: NaN, with a warning.

        Raises:
            ValueError: if no such rank was evaluated.
        """
        if ranks is None:
            chosen = [k for k in self.ranks if self.width / 8 <= k <= 7 * self.width / 8]
        else:
            chosen = checked_counts("ranks", ranks)
            missing = [k for k in chosen if k not in self.ranks]
            if missing:
                raise ValueError(f"Ranks {missing} were not evaluated; these were: {self.ranks}.")
        if not chosen:
            raise ValueError(
                f"No rank between {self.width}/8 and 7·{self.width}/8 was evaluated; these were: "
                f"{self.ranks}."
            )
        rows = [self.ranks.index(k) for k in chosen]
        draws = resamples(self.counts, seed)
        logs, floored = [], []
        for which in (name, to):
            point, resampled = self._excess(which, None)[rows], self._excess(which, draws)[rows]
            low, high = interval(resampled, level)
            # Below the rounding of float32 scores an excess is nothing, and its logarithm is noise.
            rounding = max(1e-6 * abs(self.baseline), torch.finfo(torch.float64).tiny)
            # Of a single sequence the half-width is unknown: that would floor at infinity.
            half = ((high - low) / 2).nan_to_num(posinf=rounding)
            floor = half.clamp(min=rounding)[:, None]
            floored += [(which, k) for k, p in zip(chosen, point[:, 0], strict=True) if p <= 0]
            logs.append(
                [
                    torch.where(e > 0, e.clamp(min=rounding), floor).log().mean(0)
                    for e in (point, resampled)
                ]
            )
        nothing = [w for w in dict.fromkeys((name, to)) if {(w, k) for k in chosen} <= {*floored}]
        if nothing:
            warnings.warn(
                f"The excess of {' and '.join(nothing)} is not positive at any of the ranks {chosen}: there "
                "is no ratio, and it is NaN.",
                stacklevel=2,
            )
            return Estimate(math.nan, math.nan, math.nan)
        if floored:
            where = ", ".join(f"{which} at rank {k}" for which, k in floored)
            warnings.warn(
                f"The excess of {where} is not positive; it was floored at its interval's half-width.",
                stacklevel=2,
            )
        point, resampled = ((mine - theirs).exp() for mine, theirs in zip(*logs, strict=True))
        return estimate(point[0], resampled, level)

    def to_pandas(self, *, level: float = 0.95) -> pd.DataFrame:
        """A tidy table: hook_point, basis, rank, score, excess, and the excess's interval."""
        import pandas as pd

        scores = self.scores
        rows = [
            {
                "hook_point": self.hook_point, "basis": name, "rank": k, "score": scores[name][i],
                "excess": float(e), "excess_low": e.low, "excess_high": e.high,
            }
            for name in self.per_sequence
            for i, (k, e) in enumerate(zip(self.ranks, self.excess(name, level=level), strict=True))
        ]  # fmt: skip
        table = pd.DataFrame(rows)
        if self.predicted_per_sequence:
            names = list(self.per_sequence)
            table["predicted"] = [float(p) for name in names for p in self.predicted(name)]
            nothing = [float("nan")] * len(self.ranks)
            table["eigenvalue_prediction"] = [
                p for name in names for p in self.eigenvalue_prediction.get(name, nothing)
            ]
        return table

    def plot(self, *, relative_to: str | None = None, **options: Any) -> Any:
        """A figure of the curves, with the baseline and confidence bands: matplotlib's, or plotly's.

        Args:
            relative_to: a basis's name: draw every excess over that basis's own, rank by rank.
            options: `names`, `level`, `title`, `ax`, `interactive` (a plotly figure) and, without
                `relative_to`, `excess`: those of `plots.plot_ablation_curves` and
                `plots.plot_relative_excess`.
        """
        from tl_weighted_pca.ablation.picture import plot_ablation_curves, plot_relative_excess

        if relative_to is not None:
            return plot_relative_excess(self, relative_to=relative_to, **options)
        return plot_ablation_curves(self, **options)

    def _excess(self, name: str, draws: Tensor | None) -> Float[Tensor, "rank resample"]:
        if name not in self.per_sequence:
            raise ValueError(
                f"There is no curve {name!r}; these curves are of {', '.join(self.per_sequence)}."
            )
        over = self.per_sequence[name] - self.baseline_per_sequence
        if draws is None:
            return over.sum(1, keepdim=True) / self.counts.sum()
        return (over @ draws) / (self.counts @ draws)
