"""Second moments: what is kept of a stream of activations, and the algebra that it allows.

For each sequence x let F ∈ ℝ^{S×d} be its activations and M(x) ∈ ℝ^{S×S} a row metric. Three sums,

    weight  c = Σ_x 1ᵀ M 1          first  b = Σ_x Fᵀ M 1          second  G = Σ_x Fᵀ M F,

determine the second moment about every centre μ, exactly and after the fact:

    G(μ) = G − b μᵀ − μ bᵀ + c μ μᵀ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.moments.packed import Packed, shift_terms
from tl_weighted_pca.moments.statistics import STATISTICS
from tl_weighted_pca.support.notebook import sparkline, summary


@dataclass(frozen=True, eq=False, repr=False)
class SecondMoment:
    """c = Σ 1ᵀM1, b = Σ FᵀM1 and G = Σ FᵀMF, kept about a shift σ.

    The sums are stored for F − 1σᵀ, so that a mean a thousand times the spread costs no digits;
    `first` and `second` give them about zero, `about(μ)` about any centre. Leading dimensions, where
    there are any, are attention heads. Moments add: `a + b` is the moment of both streams together.
    """

    weight: Float[Tensor, "*head"]
    """c: the token count when M is the identity."""
    shifted_first: Float[Tensor, "*head d"]
    """b of F − 1σᵀ."""
    packed_second: Packed
    """G of F − 1σᵀ, its upper triangle; `shifted_second` is the whole."""
    shift: Float[Tensor, "*head d"]
    """σ, a vector near the data."""

    @classmethod
    def about_zero(cls, weight: Tensor, first: Tensor, second: Tensor) -> SecondMoment:
        """The moment with the given c [*head], b [*head, d] and G [*head, d, d], all about zero."""
        shift = torch.zeros_like(first).double()
        return cls(weight.double(), first.double(), Packed.of(second.double()), shift)

    def __repr__(self) -> str:
        return f"SecondMoment(of vectors {list(self.shift.shape)}, weight {self.weight.sum():.6g})"

    @property
    def width(self) -> int:
        """d, the dimension of the space."""
        return self.shift.shape[-1]

    @property
    def shifted_second(self) -> Float[Tensor, "*head d d"]:
        """G of F − 1σᵀ, unpacked in float64."""
        return self.packed_second.full()

    @property
    def first(self) -> Float[Tensor, "*head d"]:
        """b = Σ FᵀM1 = b_σ + c σ."""
        return self.shifted_first + self.weight[..., None] * self.shift

    @property
    def second(self) -> Float[Tensor, "*head d d"]:
        """G = Σ FᵀMF, about zero."""
        return self.about(torch.zeros_like(self.shift))

    @property
    def mean(self) -> Float[Tensor, "*head d"]:
        """b / c, the mean under the row metric.

        Raises:
            ValueError: where c is not positive, as can happen under a gradient row metric.
        """
        if not bool((self.weight > 0).all()):
            raise ValueError(
                "The row metric's weight 1ᵀM1 is zero, so it has no mean of its own: "
                "centre on the token mean (center=True) or pass a vector."
            )
        return self.shift + self.shifted_first / self.weight[..., None]

    def about(self, center: Float[Tensor, "*head d"]) -> Float[Tensor, "*head d d"]:
        """G(μ) = Σ (F − 1μᵀ)ᵀ M (F − 1μᵀ) = G − bμᵀ − μbᵀ + cμμᵀ.

        Args:
            center: μ, one vector [d], or one per head [*head, d].

        Raises:
            ValueError: if the width of `center` differs from that of the moment.
        """
        if center.shape[-1:] != self.shift.shape[-1:]:
            raise ValueError(
                f"The centre has shape {tuple(center.shape)}, but this moment is over vectors of "
                f"width {self.width}: pass a vector of that width."
            )
        return self.reshifted(center.to(self.shift).expand(self.shift.shape)).shifted_second

    def reshifted(self, shift: Float[Tensor, "*head d"]) -> SecondMoment:
        """The same moment kept about another shift, in float64."""
        by = self.shift - shift
        second = self.packed_second.to(torch.float64, copy=True)
        second.add_products_(*shift_terms(self.weight, self.shifted_first, by))
        first = self.shifted_first + self.weight[..., None] * by
        return SecondMoment(self.weight, first, second, shift)

    def __add__(self, other: SecondMoment) -> SecondMoment:
        if not isinstance(other, SecondMoment):
            return NotImplemented
        if other.shift.shape != self.shift.shape:
            raise ValueError(
                f"Cannot add second moments of shapes {tuple(self.shift.shape)} and "
                f"{tuple(other.shift.shape)}: they must come from the same hook point."
            )
        other = other.to(self.shift.device)
        # The heavier side keeps its shift: the lighter one is moved, which costs it fewer digits.
        shift = self.shift if self.weight.abs().sum() >= other.weight.abs().sum() else other.shift
        mine, theirs = self.reshifted(shift), other.reshifted(shift)
        return SecondMoment(
            mine.weight + theirs.weight,
            mine.shifted_first + theirs.shifted_first,
            mine.packed_second.add_(theirs.packed_second),
            shift,
        )

    def state(self) -> dict[str, Tensor]:
        """Tensors for a file."""
        second = self.packed_second.flat
        return {
            "weight": self.weight, "shifted_first": self.shifted_first, "packed_second": second,
            "shift": self.shift,
        }  # fmt: skip

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> SecondMoment:
        """What `state` gave; files of the first version hold G whole."""
        shift = state["shift"]
        if "packed_second" in state:
            packed = Packed(state["packed_second"], shift.shape[-1])
        else:
            packed = Packed.of(state["shifted_second"])
        return cls(state["weight"], state["shifted_first"], packed, shift)

    def to(self, device: torch.device | str) -> SecondMoment:
        """The same moment on another device."""
        return SecondMoment(*(getattr(self, f.name).to(device) for f in dataclasses.fields(self)))


_QUICK = 1024
"""Widths up to which a notebook's repr may take eigenvalues."""


@dataclass(frozen=True)
class Provenance:
    """Where numbers come from: enough to refuse to mix them with others."""

    model: str = ""
    """The model's name, as its configuration gives it."""
    hook_point: str = ""
    """The hook point, as the user named it."""
    objective: str = ""
    """What the gradients are of; empty where no gradients were collected."""
    row_metric: str = ""
    """The row metric M of the weighted moment."""
    weights: str = ""
    """Class and dtype of the model, and a digest of its weights, to be compared where these are the same."""

    readers: str = ""
    """Which readers the gradients count, where versions of this package differ in that; else empty."""
    objective_code: str = ""
    """Of an objective of the user's own, the Python that ran and a digest of its source."""
    row_metric_code: str = ""
    """The same of a row metric."""

    def agrees_with(self, other: Provenance) -> bool:
        """Whether both say the same wherever both say anything."""
        return not self.differences(other)

    def differences(self, other: Provenance) -> str:
        """What the two say differently: "hook point 'a' and 'b'"; empty where they agree."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        # The same weights in another dtype or class, and code in another Python, have another digest.
        for name in ("weights", "objective_code", "row_metric_code"):
            if mine[name].split()[:-1] != theirs[name].split()[:-1]:
                mine[name] = ""
        for name in ("objective", "row_metric"):
            if mine[name] != theirs[name]:  # which says enough
                mine[f"{name}_code"] = ""
        # Here empty is not unknown, once there are gradients.
        if self.objective and other.objective:
            mine["readers"], theirs["readers"] = self.readers or "some", other.readers or "some"
        return ", ".join(
            f"{name.replace('_', ' ')} {a!r} and {theirs[name]!r}"
            for name, a in mine.items()
            if a and theirs[name] and a != theirs[name]
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """All that `collect` keeps of one hook point: three second moments and two counts.

    `a + b` is of both streams together; `print` says what is held.

    Attributes:
        activation: Σ FᵀF, a `SecondMoment`, or None where it was not collected.
        gradient: Σ gᵀg, averaged over the objective's samples, or None.
        weighted: Σ FᵀMF with the row metric that was asked for, or None.
        n_tokens: positions counted: neither padding nor outside `positions`.
        n_sequences: sequences seen.
        provenance: of which model, hook point, objective and row metric.

    Raises:
        ValueError: on `a + b`, if the two come from different hook points, models (by name or by weights),
            objectives or row metrics, or hold different statistics.
    """

    activation: SecondMoment | None
    gradient: SecondMoment | None
    weighted: SecondMoment | None
    n_tokens: int
    n_sequences: int
    provenance: Provenance = Provenance()

    @property
    def held(self) -> dict[str, SecondMoment]:
        """Those second moments that there are, by name."""
        return {name: m for name in STATISTICS if (m := getattr(self, name)) is not None}

    def __repr__(self) -> str:
        made = self.provenance
        place = f" at {made.hook_point!r}" if made.hook_point else ""
        place += f" of {made.objective}" if made.objective else ""
        counts = f"{self.n_tokens} tokens in {self.n_sequences} sequences"
        return f"Moments({', '.join(self.held)}{place}: {counts})"

    def _repr_html_(self) -> str:
        """What a notebook shows: what is held, of how many tokens, and the spectrum of narrow spaces."""
        width = next((m.width for m in self.held.values()), 0)
        rows = {
            "statistics": ", ".join(self.held) or "none",
            "tokens": f"{self.n_tokens:,} in {self.n_sequences:,} sequences",
            "width": width,
            "objective": self.provenance.objective or "none",
            "model": self.provenance.model or "–",
        }
        picture = ""
        if self.activation is not None and self.n_tokens and width <= _QUICK:
            covariance = self.activation.about(self.activation.mean) / self.n_tokens
            values = torch.linalg.eigvalsh(covariance).flip(-1).reshape(-1, width).mean(0)
            ratio = float(values.sum() ** 2 / values.square().sum().clamp(min=1e-300))
            rows["participation ratio"] = f"{ratio:.1f}"
            picture = sparkline({"variances": values.tolist()}, "Variances, logarithmic")
        place = self.provenance.hook_point
        return summary(f"Moments at {place}" if place else "Moments", rows, picture)

    def __add__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        if different := self.provenance.differences(other.provenance):
            raise ValueError(f"Cannot add moments of different things: they differ in {different}.")

        def merged(name: str) -> SecondMoment | None:
            mine, theirs = getattr(self, name), getattr(other, name)
            if (mine is None) != (theirs is None):
                raise ValueError(
                    f"Cannot add moments of {self.provenance.hook_point or 'one hook point'!r}: only "
                    f"one of them has {name!r} statistics; collect both with the same `statistics`."
                )
            return None if mine is None else mine + theirs

        return Moments(
            **{name: merged(name) for name in STATISTICS},
            n_tokens=self.n_tokens + other.n_tokens,
            n_sequences=self.n_sequences + other.n_sequences,
            provenance=self.provenance,
        )

    def to(self, device: torch.device | str) -> Moments:
        """The same moments on another device."""
        moved: dict[str, Any] = {kind: each.to(device) for kind, each in self.held.items()}
        return dataclasses.replace(self, **moved)

    def require(self, name: str) -> SecondMoment:
        """The statistic `name` ("activation", "gradient" or "weighted"), or a clear ValueError."""
        moment: SecondMoment | None = getattr(self, name)
        if moment is None or self.n_tokens == 0:
            what = "no tokens" if moment is not None else f"no {name} statistics"
            raise ValueError(
                f"These moments of {self.provenance.hook_point or 'a hook point'!r} hold {what}: "
                f"collect again with statistics including {name!r}, and an objective if they are of "
                "gradients, on non-empty data."
            )
        return moment
