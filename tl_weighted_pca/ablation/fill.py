"""What stands in for the coordinates that are ablated: the centre, zero, or another sequence."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.models.downstream import Edit
from tl_weighted_pca.models.run import Run
from tl_weighted_pca.support.randomness import uniform

Fill = Literal["mean", "zero", "resample"]


class Filling:
    """f ↦ c + (f − c)E_kD_k with c = μ ("mean"), 0 ("zero") or f' ("resample").

    f' is the activation of another sequence of the batch at the same position, counted from the first
    real token: the next one in a seeded order that is long enough. Where no other is, c = μ.

    Args:
        fill: which of the three.
        seed: of the order, with the places of the sequences in the data.
    """

    def __init__(self, fill: Fill, seed: int = 0) -> None:
        if fill not in get_args(Fill):
            raise ValueError(f"fill is {fill!r}; expected 'mean', 'zero' or 'resample'.")
        self.fill, self._seed = fill, seed
        self._run: Run | None = None
        self._others: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def prepare(self, run: Run) -> None:
        """Take the next batch.

        Raises:
            ValueError: if the first batch has a single sequence, and there is no other to take from.
        """
        if self._run is None and self.fill == "resample" and len(run.inputs) < 2:
            raise ValueError(
                "fill='resample' takes what is ablated from another sequence of the batch, and the first "
                "batch has but one: pass more sequences per batch."
            )
        self._run, self._others = run, {}

    def about(self, basis: Basis) -> Basis:
        """The basis, about zero where zero stands in."""
        if self.fill != "zero":
            return basis
        return dataclasses.replace(basis, center=torch.zeros_like(basis.center))

    def edit(self, basis: Basis, k: int) -> Edit:
        """The edit that keeps the top k components of a basis."""
        basis = self.about(basis)
        if self.fill != "resample":
            return lambda f: basis.project(f, k)

        def resampled(f: Tensor) -> Tensor:
            other, found = self._other(f)
            mean = basis.project(f, k)
            # f' + (f − f')ED is μ + (f − μ)ED, and what ED drops of f' − μ.
            return torch.where(found, mean + (other - basis.project(other, k)), mean)

        return resampled

    def _other(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """f', and where there is one."""
        assert self._run is not None
        length = 1 if f.ndim == 2 else f.shape[1]
        if length not in self._others:
            real = self._run.mask
            if real is None or real.shape[1] != length:
                real = torch.ones(len(f), length, dtype=torch.bool, device="cpu")
            self._others[length] = other_sequences(real.cpu(), self._run.sequence_index, self._seed)
        row, column, found = (x.to(f.device) for x in self._others[length])
        if f.ndim == 2:
            return f[row[:, 0]], found
        return f[row, column], found.view(*found.shape, *[1] * (f.ndim - 2))


def other_sequences(
    real: Bool[Tensor, "batch pos"], sequence_index: Int[Tensor, " batch"], seed: int
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Row and column of another sequence's token at the same position, and whether there is one."""
    n, length = real.shape
    order = uniform(seed, sequence_index.cpu()).argsort(stable=True)
    real = real[order]
    at = real.cumsum(1).sub(1).clamp(min=0)  # the position of each token in its own sequence
    lengths = real.sum(1)
    # Of each sequence's tokens, in their order.
    column_of = (~real).byte().argsort(dim=1, stable=True)
    row = torch.arange(n, device="cpu")[:, None].expand(n, length).clone()
    column = torch.arange(length, device="cpu").expand(n, length).clone()
    found = torch.zeros(n, length, dtype=torch.bool, device="cpu")
    for step in range(1, n):
        other = torch.arange(n, device="cpu").roll(-step)[:, None].expand(n, length)
        new = real & ~found & (at < lengths[other])
        row, column = torch.where(new, other, row), torch.where(new, column_of[other, at], column)
        found |= new
    back = order.argsort()
    return order[row][back], column[back], found[back]
