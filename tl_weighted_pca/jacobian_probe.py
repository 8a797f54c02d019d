"""Objectives whose gradients are rows of the Jacobian to a later hook point's coordinates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.basis import Basis
from tl_weighted_pca.objectives import Run, hook_probe
from tl_weighted_pca.positions import Positions, selected
from tl_weighted_pca.randomness import signs

_NARROW = 128
"""Coordinates of one sequence up to which each gets a unit probe of its own: exact Jacobians."""


@dataclass(frozen=True)
class jacobian_probe:
    """E[g gᵀ] = Σ JᵀEEᵀJ over samples g, J the Jacobian to the activations at a later hook point.

    `hook_probe` with random signs; or, for narrow layers, exactly, with unit probes: √N times each of
    the N coordinates of a sequence, so that the mean over samples is their sum.

    Args:
        hook_point: downstream of what is collected.
        basis: whose encoder E gives the coordinates.
        n_probes: of random signs.
        exact: unit probes; None: where a sequence has at most 128 coordinates.
        positions: which count at `hook_point`.
        seed: of the random signs.
    """

    hook_point: str
    basis: Basis = field(repr=False)
    n_probes: int = 8
    exact: bool | None = None
    positions: Positions = None
    seed: int = 0

    @property
    def hook_points(self) -> tuple[str, ...]:
        """What the collector must show in `run.activations`."""
        return (self.hook_point,)

    def __call__(self, run: Run) -> Float[Tensor, "samples batch"]:
        run = _restricted(run, self.hook_point, self.positions)
        coordinates = _coordinates(run, self.hook_point, self.basis)
        n = coordinates[0].numel()
        if self.exact or (self.exact is None and n <= _NARROW):
            return coordinates.flatten(1).mT * n**0.5
        return hook_probe(self.hook_point, self.basis, self.n_probes, self.seed)(run)


@dataclass(frozen=True)
class coordinate_probe:
    """g_j = ∂z'_j / ∂f, one sample for each coordinate j = start … stop − 1 of a later hook point.

    Where it is `exact`, one for each position t of z'_tj, too; otherwise positions are summed with
    random signs, so that g_j² is the sum of squares over t on average.
    """

    hook_point: str
    basis: Basis = field(repr=False)
    start: int
    stop: int
    exact: bool | None
    positions: Positions
    seed: int

    @property
    def hook_points(self) -> tuple[str, ...]:
        """What the recorder must show in `run.activations`."""
        return (self.hook_point,)

    def __call__(self, run: Run) -> Float[Tensor, "samples batch"]:
        run = _restricted(run, self.hook_point, self.positions)
        coordinates = _coordinates(run, self.hook_point, self.basis)
        exact = coordinates[0].numel() <= _NARROW if self.exact is None else self.exact
        chosen = coordinates[..., self.start : self.stop]
        if exact:
            return chosen.flatten(1).mT
        at = torch.arange(chosen.shape[1], device=chosen.device)
        sequence = run.sequence_index.to(chosen.device)[:, None]
        drawn = signs(self.seed, sequence, at).to(chosen)
        return (chosen * drawn[..., None]).sum(1).mT


def _restricted(run: Run, hook_point: str, positions: Positions) -> Run:
    """The run with a mask of the positions that count at a hook point."""
    activations = run.activations[hook_point]
    if not activations.requires_grad:
        raise ValueError(
            f"Nothing that is collected influences {hook_point!r}: give the hook points in the order "
            "in which the model computes them."
        )
    if activations.ndim == 2:
        return replace(run, mask=None)
    shape = (activations.shape[0], activations.shape[1])
    mask = selected(positions, run.mask, shape)
    return replace(run, mask=None if mask is None else mask.to(activations.device))


def _coordinates(run: Run, hook_point: str, basis: Basis) -> Float[Tensor, "batch pos k"]:
    """(f − μ)E, zero where the mask leaves positions out; vectors are sequences of length one."""
    activations = run.activations[hook_point]
    if activations.ndim == 2:
        return basis.encode(activations)[:, None]
    coordinates = basis.encode(activations.flatten(2))
    return coordinates if run.mask is None else coordinates.masked_fill(~run.mask[..., None], 0.0)
