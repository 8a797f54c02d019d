"""Objectives whose gradients are rows of the Jacobian to a later hook point's coordinates.

Each sequence is treated by itself: whether it gets unit probes or random signs depends on how many of its
own positions count, and not on those of its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from fancy_einsum import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.data.positions import Positions, selected
from tl_weighted_pca.models.run import Run
from tl_weighted_pca.objectives.losses import hook_probe, real_positions
from tl_weighted_pca.support.randomness import signs
from tl_weighted_pca.support.whole_numbers import checked_count

_NARROW = 128
"""Coordinates of one sequence up to which each gets a unit probe of its own: exact Jacobians."""


class _Probe:
    """What both probes read of a run: coordinates at a later hook point."""

    hook_point: str
    basis: Basis
    exact: bool | None
    positions: Positions

    @property
    def hook_points(self) -> tuple[str, ...]:
        """What the recorder must show in `run.activations`."""
        return (self.hook_point,)

    def _read(self, run: Run) -> tuple[Run, Float[Tensor, "batch pos k"], Bool[Tensor, " batch"]]:
        """The run with the mask of what counts there, z = (f − μ)E, and which sequences get unit probes.

        z is zero where the mask leaves positions out; vectors are sequences of length one.
        """
        activations = run.activations[self.hook_point]
        if not activations.requires_grad:
            raise ValueError(
                f"Nothing that is collected influences {self.hook_point!r}: give the hook points in the "
                "order in which the model computes them."
            )
        if activations.ndim == 2:
            mask, z = None, self.basis.encode(activations)[:, None]
        else:
            z = self.basis.encode(activations.flatten(2))
            mask = selected(self.positions, run.mask, (z.shape[0], z.shape[1]))
            if mask is not None:
                mask = mask.to(z.device)
                z = z.masked_fill(~mask[..., None], 0.0)
        batch, length, k = z.shape
        counted = torch.full((batch,), length, device="cpu") if mask is None else mask.sum(1)
        few = counted * k <= _NARROW
        exact = few if self.exact is None else torch.full_like(few, self.exact)
        return replace(run, mask=mask), z, exact.to(z.device)


@dataclass(frozen=True, repr=False)
class jacobian_probe(_Probe):
    """E[g gᵀ] = Σ JᵀEEᵀJ over samples g, J the Jacobian to the activations at a later hook point.

    `hook_probe` with random signs; or, for narrow layers, exactly, with a unit probe for each of a
    sequence's coordinates. Both are scaled so that the mean over samples is their sum.

    Args:
        hook_point: downstream of what is collected.
        basis: whose encoder E gives the coordinates.
        n_probes: of random signs.
        exact: unit probes; None: where a sequence has at most 128 coordinates.
        positions: which count at `hook_point`.
        seed: of the random signs.
    """

    hook_point: str
    basis: Basis
    n_probes: int = 8
    exact: bool | None = None
    positions: Positions = None
    seed: int = 0

    def __post_init__(self) -> None:
        checked_count("n_probes", self.n_probes)
        checked_count("seed", self.seed, least=0)

    def __repr__(self) -> str:
        """Of the basis a digest: moments under another one are others."""
        return (
            f"jacobian_probe(hook_point={self.hook_point!r}, basis={self.basis.digest}, "
            f"n_probes={self.n_probes}, exact={self.exact}, positions={self.positions!r}, seed={self.seed})"
        )

    def __call__(self, run: Run) -> Float[Tensor, "samples batch"]:
        run, z, exact = self._read(run)
        units = probed = z.new_zeros(0, len(z))
        if bool(exact.any()):
            units = rearrange(_packed(z, run.mask, exact), "batch pos k -> (pos k) batch")
        if not bool(exact.all()):
            probe = hook_probe(self.hook_point, self.basis, self.n_probes, self.seed, anywhere=True)
            probed = probe(run) * ~exact / self.n_probes**0.5
        n = max(len(units), len(probed))
        # A sequence has either; the other's samples are zero, as are those beyond its own.
        both = (F.pad(samples, (0, 0, 0, n - len(samples))) for samples in (units, probed))
        return sum(both) * n**0.5


@dataclass(frozen=True, repr=False)
class coordinate_probe(_Probe):
    """g_j = ∂z'_j / ∂f, one sample for each coordinate j = start … stop − 1 of a later hook point.

    Where it is `exact`, one for each position t of z'_tj, too; otherwise positions are summed with
    random signs, so that g_j² is the sum of squares over t on average.
    """

    hook_point: str
    basis: Basis
    start: int
    stop: int
    exact: bool | None
    positions: Positions
    seed: int

    def __call__(self, run: Run) -> Float[Tensor, "samples batch"]:
        run, z, exact = self._read(run)
        z = z[..., self.start : self.stop]
        units = _packed(z, run.mask, exact)
        if not bool(exact.all()):
            sequence = run.sequence_index.to(z.device)[:, None]
            drawn = signs(self.seed, sequence, real_positions(run.mask, z)).to(z)
            mixed = einsum("batch pos k, batch pos, batch -> batch k", z, drawn, (~exact).to(z))
            # As if of one position: a sequence has either.
            units = units + F.pad(mixed[:, None], (0, 0, 0, units.shape[1] - 1))
        return rearrange(units, "batch pos k -> (pos k) batch")


def _packed(
    values: Float[Tensor, "batch pos k"], mask: Tensor | None, exact: Bool[Tensor, " batch"]
) -> Float[Tensor, "batch few k"]:
    """The positions that count of the sequences with unit probes, side by side; at least one position."""
    kept = values * exact[:, None, None]
    if mask is None:
        return kept if bool(exact.any()) else kept[:, :1]
    order = mask.int().argsort(dim=1, descending=True, stable=True)
    few = max(1, int((mask.sum(1) * exact).max()))
    return kept.take_along_dim(order[:, :few, None], 1)
