"""Streaming accumulation of second moments: float32 products, each batch about its own mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_weighted_pca.moments.memory import Budget
from tl_weighted_pca.moments.packed import packed_size
from tl_weighted_pca.moments.row_metric import (
    RowMetric,
    about_their_mean,
    plain_sums,
    row_metric_name,
    weighted_sums,
)
from tl_weighted_pca.moments.running_sums import Precision, Sums, all_finite, home_of, products_in
from tl_weighted_pca.moments.second_moment import Moments, Provenance, SecondMoment
from tl_weighted_pca.moments.statistics import STATISTICS, as_rows, checked_statistics, kept_moments

SumsDtype = Literal["float64", "float32"]
"""What the sums of all batches are kept in; the products of one are float32 or wider."""


class NonFiniteError(ValueError):
    """NaN or infinity among activations or gradients."""


@dataclasses.dataclass
class _Batch:
    """The rows of one batch: F − 1mᵀ with the rows left out set to zero, m their mean (or zero)."""

    rows: Float[Tensor, "*head batch pos d"]
    mean: Float[Tensor, "*head d"]
    mask: Bool[Tensor, "batch pos"] | None
    gradients_to_come: int


class MomentAccumulator:
    """Folds batches of activations and gradients at one hook point into `Moments`.

        c += Σ 1ᵀM1,  b += Σ FᵀM1,  G += Σ FᵀMF     for M = I on F, M = I on g, and the row metric

    Any split of the same (F, g) into batches gives the same moments to float32 rounding.

    Args:
        row_metric: "identity", "gradient" (M = g gᵀ), "diagonal" (M = diag ‖g_s‖²), or a callable
            (F, g) -> M [batch, pos, pos] that gives a symmetric, positive semi-definite M.
        statistics: which of "activation", "gradient" and "weighted" to keep.
        objectives: one name a set of gradients; they share the activations.
        per_head: treat [batch, pos, head, d_head] as one space per head, not one of head·d_head.
        sums_dtype: "float64", or "float32" for half the memory: within 5e-6 over 10⁶ tokens, as long as
            a batch has 1,024 of them or more.
        sums_device: where the sums are; None for beside the activations.
        precision: of the products: "highest" (float32) or "tf32", three digits, on GPUs that have it.
        provenance: carried into the moments.
        budget: what the sums' memory is counted by, before they are there.
    """

    def __init__(
        self,
        row_metric: RowMetric = "gradient",
        *,
        statistics: str | Sequence[str] = STATISTICS,
        objectives: Sequence[str] = ("",),
        per_head: bool = False,
        sums_dtype: SumsDtype = "float64",
        sums_device: torch.device | str | None = None,
        precision: Precision = "highest",
        provenance: Provenance | None = None,
        budget: Budget | None = None,
    ) -> None:
        row_metric_name(row_metric)
        given = {"sums_dtype": (sums_dtype, SumsDtype), "precision": (precision, Precision)}
        for option, (value, kind) in given.items():
            if value not in (known := get_args(kind)):
                raise ValueError(f"{option} is {value!r}; expected {known[0]!r} or {known[1]!r}.")
        self.precision: Precision = precision
        self.sums_dtype: SumsDtype = sums_dtype
        self._dtype = torch.float32 if sums_dtype == "float32" else torch.float64
        self.sums_device = None if sums_device is None else torch.device(sums_device)
        self.row_metric = row_metric
        self.statistics = checked_statistics(statistics)
        self.objectives = tuple(objectives)
        self._kept = kept_moments(self.statistics, self.objectives, row_metric)
        self.per_head = per_head
        self.provenance = provenance or Provenance()
        self._budget = budget
        self.n_tokens = self.n_sequences = 0
        self.shift: Tensor | None = None  # the mean of all activations that are summed
        self._sums: dict[tuple[str, str], Sums] = {}
        self._batch: _Batch | None = None
        self._mean: Tensor | None = None  # what the pending batch is about
        self._counts = (0, 0)
        self._ungraded = False  # whether `update` gave activations alone

    def begin(
        self,
        activations: Float[Tensor, "batch pos *head d"],
        mask: Bool[Tensor, "batch pos"] | None = None,
        n_tokens: int | None = None,
        *,
        gradients_to_come: int = 0,
    ) -> None:
        """Take a batch's activations.

        The mask counts `n_tokens` positions, and `gradient` will follow `gradients_to_come` times.

        Raises:
            ValueError: if the width differs from that of earlier batches.
        """
        rows = as_rows(activations, self.per_head)
        n_sequences, n_positions = activations.shape[:2]
        if mask is not None and (mask.shape != activations.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"The mask is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of shape "
                f"{tuple(activations.shape[:2])}, True where a position counts."
            )
        if mask is None:
            n_tokens = n_sequences * n_positions
        elif n_tokens is None:
            n_tokens = int(mask.sum())
        self._counts = (n_tokens, n_sequences)
        if self.shift is not None and (*rows.shape[:-3], rows.shape[-1]) != self.shift.shape:
            raise ValueError(
                f"Activations of shape {tuple(activations.shape)} arrived at a hook point whose earlier "
                f"ones had width {self.shift.shape[-1]}: collect models of one shape at a time."
            )
        if not n_tokens:
            return
        if self.shift is None:
            home = home_of(rows.device)
            if self._budget is not None:
                n = len(self._kept) * rows.shape[:-3].numel() * packed_size(rows.shape[-1])
                held = self.sums_device or home
                self._budget.take(held, n * self._dtype.itemsize, rows.device, n * rows.itemsize)
            self._lay_out(rows.shape[:-3], rows.shape[-1], home)
        self.move(rows.device)
        mean = rows.new_zeros((*rows.shape[:-3], rows.shape[-1]))
        with products_in(self.precision, rows.device.type):
            if any(kind != "gradient" for kind, _ in self._sums):
                rows, mean = about_their_mean(rows, mask, n_tokens)
                self._mean = mean.to(self.shift)
            if ("activation", "") in self._sums:
                self._sums["activation", ""].add(*plain_sums(rows, n_tokens), 1.0)
        if gradients_to_come:
            self._batch = _Batch(rows, mean, mask, gradients_to_come)

    def gradient(
        self, gradients: Float[Tensor, "batch pos *head d"], objective: str = "", scale: float = 1.0
    ) -> None:
        """Fold in one gradient of the batch that `begin` took; `scale` is 1 over the number of samples."""
        if self._batch is None:
            return
        batch = self._batch
        g = as_rows(gradients, self.per_head)
        with products_in(self.precision, g.device.type):
            if batch.mask is not None:
                g = g.masked_fill(~batch.mask[..., None], 0.0)
            if ("gradient", objective) in self._sums:
                self._sums["gradient", objective].add(*plain_sums(g, self._counts[0]), scale)
            if ("weighted", objective) in self._sums:
                parts = weighted_sums(self.row_metric, batch.rows, g, batch.mask, batch.mean)
                self._sums["weighted", objective].add(*parts, scale)
        batch.gradients_to_come -= 1
        if batch.gradients_to_come == 0:
            self._batch = None

    def check(self) -> list[Tensor]:
        """Scalars of the pending batch that are all finite exactly when it is fit to be committed."""
        return [scalar for sums in self._sums.values() for scalar in sums.check()]

    def commit(self) -> None:
        """Add the pending batch to the sums, which are then about the mean of all."""
        before, (n_tokens, n_sequences) = self.n_tokens, self._counts
        moved = offset = None
        if self._mean is not None and self.shift is not None:
            step = (self._mean - self.shift) * (n_tokens / (before + n_tokens))
            offset = self._mean - (self.shift + step)
            moved = self.shift - (self.shift + step)
            self.shift = self.shift + step
        for (kind, _), sums in self._sums.items():
            if kind == "gradient":
                sums.commit()
            else:
                sums.commit(moved, offset)
        self.n_tokens += n_tokens
        self.n_sequences += n_sequences
        self._batch, self._mean, self._counts = None, None, (0, 0)

    def discard(self) -> None:
        """Forget the pending batch, whole."""
        for sums in self._sums.values():
            sums.discard()
        self._batch, self._mean, self._counts = None, None, (0, 0)
        if not self.n_tokens:  # what width there is, is for a sound batch to say
            self.shift, self._sums = None, {}

    def update(
        self,
        activations: Float[Tensor, "batch pos *head d"],
        gradients: Float[Tensor, "batch pos *head d"] | None = None,
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> MomentAccumulator:
        """Fold one batch of (F, g) in, and return self.

        Without gradients there are no gradient moments, and none weighted by them.

        Raises:
            TypeError: for what is no tensor.
            ValueError: for shapes that do not fit, or gradients that come with some batches alone.
            NonFiniteError: on NaN or infinity at a position that counts; the batch is left out.
        """
        for name, given in (("activations", activations), ("gradients", gradients), ("mask", mask)):
            if given is not None and not isinstance(given, Tensor):
                raise TypeError(f"The {name} are a {type(given).__name__}; expected a tensor.")
        shapes = [tuple(x.shape) for x in (activations, gradients) if x is not None]
        if len({*shapes}) > 1 or activations.ndim not in (3, 4):
            raise ValueError(
                f"Activations and gradients have the shapes {', '.join(map(str, shapes))}; expected both "
                "[batch, pos, d] or [batch, pos, head, d]."
            )
        if self.n_sequences and (gradients is None) != self._ungraded:
            raise ValueError(
                "Some batches came with gradients and some without, which are moments of different tokens: "
                "pass gradients always, or never."
            )
        self._ungraded = gradients is None
        try:
            self.begin(activations, mask, gradients_to_come=0 if gradients is None else 1)
            if gradients is not None:
                self.gradient(gradients)
            if not all_finite(self.check()):
                raise NonFiniteError("The activations or gradients hold NaN or infinity.")
        except BaseException:
            self.discard()
            raise
        self.commit()
        return self

    def state(self) -> dict[str, Tensor]:
        """The shift and the sums of all that was committed, as they are; empty before any token."""
        if self.shift is None:
            return {}
        found = {"shift": self.shift}
        for (kind, objective), sums in self._sums.items():
            found |= {f"{kind}/{objective}/{part}": x for part, x in sums.state().items()}
        return found

    def restore(self, state: Mapping[str, Tensor], n_tokens: int, n_sequences: int) -> None:
        """Go on from what `state` gave, to the bit.

        Raises:
            KeyError: if the state is that of an accumulator of other statistics or objectives.
        """
        self.n_tokens, self.n_sequences = n_tokens, n_sequences
        if not state:
            return
        shift = state["shift"]
        self._lay_out(shift.shape[:-1], shift.shape[-1], shift.device)
        self.shift = shift.double()
        for (kind, objective), sums in self._sums.items():
            head = f"{kind}/{objective}/"
            sums.restore({n.removeprefix(head): x for n, x in state.items() if n.startswith(head)})

    def move(self, device: torch.device) -> None:
        """Bring what was restored from a file to where activations on `device` are summed."""
        home = home_of(device)
        if self.shift is not None and self.shift.device != home:
            self.shift = self.shift.to(home)
            for sums in self._sums.values():
                sums.move(self.sums_device or home)

    def result(self, objective: str = "") -> Moments:
        """The moments of all that was committed, with the gradients of one objective."""

        def moment(name: str) -> SecondMoment | None:
            if name == "weighted" and self.row_metric == "identity":
                return None if name not in self.statistics else moment("activation")
            sums = self._sums.get((name, "" if name == "activation" else objective))
            if sums is None or self.shift is None or (self._ungraded and name != "activation"):
                return None
            return sums.result(torch.zeros_like(self.shift) if name == "gradient" else self.shift)

        held = {name: moment(name) for name in STATISTICS}
        return Moments(
            **held, n_tokens=self.n_tokens, n_sequences=self.n_sequences, provenance=self.provenance
        )

    def _lay_out(self, lead: torch.Size, width: int, device: torch.device) -> None:
        """Empty sums for every statistic that is kept, on a device that has float64."""
        self.shift = torch.zeros((*lead, width), dtype=torch.float64, device=device)
        home = self.sums_device or device
        self._sums = {name: Sums(lead, width, home, self._dtype) for name in self._kept}
