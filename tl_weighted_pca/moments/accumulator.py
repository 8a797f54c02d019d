"""Streaming accumulation of second moments: float32 products, float64 sums, one shift."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_weighted_pca.moments.row_metric import RowMetric, row_metric_name, weighted_sums
from tl_weighted_pca.moments.running_sums import Sums, full_precision, symmetric_product
from tl_weighted_pca.moments.second_moment import Moments, Provenance, SecondMoment

STATISTICS = ("activation", "gradient", "weighted")


class NonFiniteError(ValueError):
    """NaN or infinity among activations or gradients."""


@dataclasses.dataclass
class _Batch:
    """The rows of one batch: F − 1σᵀ with the rows left out set to zero."""

    rows: Float[Tensor, "*head batch pos d"]
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
        per_head: treat [batch, pos, head, d_head] as one space a head, not one of head·d_head.
        provenance: carried into the moments.
    """

    def __init__(
        self,
        row_metric: RowMetric = "gradient",
        *,
        statistics: str | Sequence[str] = STATISTICS,
        objectives: Sequence[str] = ("",),
        per_head: bool = False,
        provenance: Provenance | None = None,
    ) -> None:
        row_metric_name(row_metric)
        self.row_metric = row_metric
        self.statistics = (statistics,) if isinstance(statistics, str) else tuple(statistics)
        if not self.statistics or not set(self.statistics) <= set(STATISTICS):
            raise ValueError(
                f"statistics is {statistics!r}; expected some of {', '.join(map(repr, STATISTICS))}."
            )
        self.objectives = tuple(objectives)
        self.per_head = per_head
        self.provenance = provenance or Provenance()
        self.n_tokens = 0
        self.n_sequences = 0
        self.shift: Tensor | None = None
        self._sums: dict[tuple[str, str], Sums] = {}
        self._batch: _Batch | None = None
        self._counts = (0, 0)
        self._ungraded = False  # whether `update` gave activations alone

    # -- one batch: begin, gradients as they arrive, then commit or discard -------------------------

    def begin(
        self,
        activations: Float[Tensor, "batch pos *head d"],
        mask: Bool[Tensor, "batch pos"] | None = None,
        *,
        gradients_to_come: int = 0,
    ) -> None:
        """Take the activations of a batch; `gradients_to_come` says how often `gradient` will follow.

        Raises:
            ValueError: if the width differs from that of earlier batches.
        """
        rows = self._to_rows(activations)
        n_sequences, n_positions = activations.shape[:2]
        if mask is not None and (mask.shape != activations.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"The mask is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of shape "
                f"{tuple(activations.shape[:2])}, True where a position counts."
            )
        n_tokens = n_sequences * n_positions if mask is None else int(mask.sum())
        self._counts = (n_tokens, n_sequences)
        if self.shift is None:
            if n_tokens == 0:
                return
            self._start(rows, mask, n_tokens)
        assert self.shift is not None
        if self.shift.device != rows.device:  # restored from a file
            self.shift = self.shift.to(rows.device)
            for sums in self._sums.values():
                sums.move(rows.device)
        if rows.shape[-1] != self.shift.shape[-1] or rows.shape[:-3] != self.shift.shape[:-1]:
            raise ValueError(
                f"Activations of shape {tuple(activations.shape)} arrived at a hook point whose earlier "
                f"ones had width {self.shift.shape[-1]}: collect models of one shape at a time."
            )
        with full_precision(rows.device.type):
            rows = rows - self.shift.to(rows)[..., None, None, :]
            if mask is not None:
                rows.masked_fill_(~mask[..., None], 0.0)
            if ("activation", "") in self._sums:
                flat = rows.flatten(-3, -2)
                weight = rows.new_full(rows.shape[:-3], float(n_tokens))
                self._sums["activation", ""].add(
                    weight, flat.sum(-2), symmetric_product(flat, flat), 1.0
                )
        if gradients_to_come:
            self._batch = _Batch(rows, mask, gradients_to_come)

    def gradient(
        self, gradients: Float[Tensor, "batch pos *head d"], objective: str = "", scale: float = 1.0
    ) -> None:
        """Fold in one gradient of the batch that `begin` took; `scale` is 1 over the number of samples."""
        if self._batch is None:
            return
        batch = self._batch
        g = self._to_rows(gradients)
        with full_precision(g.device.type):
            if batch.mask is not None:
                g = g.masked_fill(~batch.mask[..., None], 0.0)
            if "gradient" in self.statistics:
                flat = g.flatten(-3, -2)
                weight = g.new_full(g.shape[:-3], float(self._counts[0]))
                self._sums["gradient", objective].add(
                    weight, flat.sum(-2), symmetric_product(flat, flat), scale
                )
            if ("weighted", objective) in self._sums:
                assert self.shift is not None
                parts = weighted_sums(self.row_metric, batch.rows, g, batch.mask, self.shift)
                self._sums["weighted", objective].add(*parts, scale)
        batch.gradients_to_come -= 1
        if batch.gradients_to_come == 0:
            self._batch = None

    def check(self) -> list[Tensor]:
        """Scalars of the pending batch that are all finite exactly when it is fit to be committed."""
        return [scalar for sums in self._sums.values() for scalar in sums.check()]

    def commit(self) -> None:
        """Add the pending batch to the float64 sums."""
        for sums in self._sums.values():
            sums.commit()
        self.n_tokens += self._counts[0]
        self.n_sequences += self._counts[1]
        self._batch, self._counts = None, (0, 0)

    def discard(self) -> None:
        """Forget the pending batch, whole."""
        for sums in self._sums.values():
            sums.discard()
        self._batch, self._counts = None, (0, 0)
        if not self.n_tokens:  # the shift was that batch's mean, and is for a sound one to give
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
            ValueError: for a mask of another shape, or gradients that come with some batches alone.
            NonFiniteError: on NaN or infinity at a position that counts; the batch is left out.
        """
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
            if not all(bool(torch.isfinite(scalar)) for scalar in self.check()):
                raise NonFiniteError(
                    "The activations or gradients of this batch hold NaN or infinity."
                )
        except BaseException:
            self.discard()
            raise
        self.commit()
        return self

    # -- to a file and back --------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The shift and the sums of all that was committed, as they are; empty before any token."""
        if self.shift is None:
            return {}
        found = {"shift": self.shift}
        for (kind, objective), sums in self._sums.items():
            for part in ("weight", "first", "second"):
                found[f"{kind}/{objective}/{part}"] = getattr(sums, part)
        return found

    def restore(self, state: Mapping[str, Tensor], n_tokens: int, n_sequences: int) -> None:
        """Go on from what `state` gave, to the bit.

        Raises:
            KeyError: if the state is that of an accumulator of other statistics or objectives.
        """
        self.n_tokens, self.n_sequences = n_tokens, n_sequences
        if not state:
            return
        self.shift = state["shift"]
        self._lay_out(self.shift.shape[:-1], self.shift.shape[-1], self.shift.device)
        for (kind, objective), sums in self._sums.items():
            for part in ("weight", "first", "second"):
                getattr(sums, part).copy_(state[f"{kind}/{objective}/{part}"])

    # -- results -------------------------------------------------------------------------------------

    def result(self, objective: str = "") -> Moments:
        """The moments of all that was committed, with the gradients of one objective."""

        def moment(name: str) -> SecondMoment | None:
            if name == "weighted" and self.row_metric == "identity":
                return None if name not in self.statistics else moment("activation")
            sums = self._sums.get((name, "" if name == "activation" else objective))
            if sums is None or self.shift is None or (self._ungraded and name != "activation"):
                return None
            shift = self.shift.to(sums.first)
            return sums.result(torch.zeros_like(shift) if name == "gradient" else shift)

        return Moments(
            activation=moment("activation"),
            gradient=moment("gradient"),
            weighted=moment("weighted"),
            n_tokens=self.n_tokens,
            n_sequences=self.n_sequences,
            provenance=self.provenance,
        )

    # -- inside --------------------------------------------------------------------------------------

    def _to_rows(self, x: Float[Tensor, "batch pos *head d"]) -> Float[Tensor, "*head batch pos d"]:
        x = x.detach()
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        if x.ndim == 4:
            return x.movedim(2, 0) if self.per_head else x.flatten(2)
        return x

    def _start(self, rows: Tensor, mask: Tensor | None, n_tokens: int) -> None:
        """Fix the shift at the mean of the first rows seen, and lay out the sums."""
        kept = rows if mask is None else rows.masked_fill(~mask[..., None], 0.0)
        self.shift = kept.sum((-3, -2)) / n_tokens
        self._lay_out(rows.shape[:-3], rows.shape[-1], rows.device)

    def _lay_out(self, lead: torch.Size, width: int, device: torch.device) -> None:
        """Empty sums for every statistic that is kept."""
        weighted = "weighted" in self.statistics
        # Under M = I the weighted moment is the activations' own, and is not computed twice.
        if "activation" in self.statistics or (weighted and self.row_metric == "identity"):
            names = [("activation", "")]
        else:
            names = []
        for objective in self.objectives:
            if "gradient" in self.statistics:
                names.append(("gradient", objective))
            if weighted and self.row_metric != "identity":
                names.append(("weighted", objective))
        self._sums = {name: Sums(lead, width, device) for name in names}
