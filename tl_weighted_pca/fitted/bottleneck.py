"""Linear bottlenecks f ↦ μ + (f − μ)E_kD_k whose E, D and μ are trained."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.support.products import exact_products

_NULL = 1e-12
"""Variances below this share of the largest are rounding."""


class Bottleneck(ABC):
    """E, D and μ as functions of parameters, and the edit of an activation that they make."""

    parameters: dict[str, Tensor]
    """What is trained, by name."""
    rate: float
    """A first step size that suits Adam."""
    clip: float | None
    """The largest norm of the gradient, if there is one."""

    def __init__(self, start: Basis) -> None:
        self.start = start

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """E, D and μ, as part of the graph."""

    def undo(self, ranks: Sequence[int]) -> bool:
        """Reset the edit at some ranks to the start's; does nothing where no other rank would be left.

        Returns:
            Whether anything was left to undo.
        """
        return False

    def edit(
        self, f: Float[Tensor, "batch ..."], ranks: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch ..."]:
        """μ + (f − μ)E_kD_k with a rank k for each sequence of the batch."""
        with exact_products():  # else D is not quite E⁻¹, and high ranks pay for it
            encoder, decoder, center = self.factors()
            return bottlenecked(f, encoder, decoder, center, ranks)

    def basis(self) -> Basis:
        """The basis as it is now, with unit rows of D and the largest entry of E's columns positive."""
        with exact_products():
            encoder, decoder, center = (part.detach().double().cpu() for part in self.factors())
        norms = decoder.norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
        largest = encoder.gather(-2, encoder.abs().argmax(-2, keepdim=True)).squeeze(-2)
        turned = torch.where(largest < 0, -norms, norms)
        return dataclasses.replace(
            self.start,
            encoder=encoder * turned[..., None, :],
            decoder=decoder / turned[..., None],
            center=center,
            method="optimize_basis",
        )


class NestedBottleneck(Bottleneck):
    """E = E₀A and D = A⁻¹D₀ with A = I + S∘B: rank d is the identity, whatever B is.

    E₀ and D₀ are the start's, its columns scaled to coordinates of unit variance; B = 0 at first. μ moves
    by mD₀. S evens out what a step does at every rank: see `even_out`. Directions without variance, or to
    which the start gives an eigenvalue of zero, come last and stay as they are.

    Args:
        start: a complete basis.
        variances: of the coordinates (f − μ)E of the start.
        like: the device and the dtype to train in.
    """

    def __init__(self, start: Basis, variances: Float[Tensor, "*head k"], like: Tensor) -> None:
        super().__init__(start)
        used = (variances > _NULL * variances.amax(-1, keepdim=True)) & (start.eigenvalues != 0)
        counts = used.sum(-1)
        self.used = int(counts[counts > 0].min()) if bool(counts.any()) else 0
        # A head that never varies is no part of it: a step of any size would be too large.
        self._trained = (counts > 0).to(like)[..., None]
        # Stable: the start's order, but for what is not used.
        order = (~used).to(torch.uint8).argsort(stable=True, dim=-1)
        encoder = start.encoder.gather(-1, order[..., None, :].expand_as(start.encoder))
        decoder = start.decoder.gather(-2, order[..., None].expand_as(start.decoder))
        spread = torch.where(used, variances, 1.0).gather(-1, order).sqrt()
        spread[..., self.used :] = 1.0
        self._encoder = (encoder / spread[..., None, :]).to(like)
        self._decoder = (decoder * spread[..., None]).to(like)
        self._center = start.center.to(like)
        # So the norm of a random step, some 2·lr·√d, is independent of the width; 0.24 suited 64 and 576.
        self.rate, self.clip = 0.24 / max(1, self.used) ** 0.5, None
        self._eye = torch.eye(self.used, dtype=like.dtype, device=like.device)
        self._scale = torch.ones_like(self._eye)
        moves = self._eye.expand(*start.encoder.shape[:-2], -1, -1)
        self.parameters = {
            "moves": torch.zeros_like(moves).requires_grad_(),
            "shift": torch.zeros_like(self._center[..., : self.used]).requires_grad_(),
        }

    def even_out(self, falls: Float[Tensor, " used"]) -> None:
        """S_pq = min(1, √(Λ_p/Λ_q)) / √min(p, q), Λ twice the start's fall in excess with each component.

        B_pq = ±δ adds ±δE_p to E_q and takes it from D_p. At the ranks k between, what is ablated has more
        excess by δ²Λ_q where q ≤ k < p, which may be many times all that it had, ½ Σ_{i>k} Λ_i, and by
        δ²Λ_q where p ≤ k < q. So scaled, random steps in all entries change the excess at rank k by the
        share 2δ² Σ_{p≤k} 1/p, which hardly depends on the rank or the width; without the root, by 2kδ².
        """
        root = falls.to(self._scale).clamp(min=torch.finfo(self._scale.dtype).tiny).sqrt()
        place = torch.arange(1, self.used + 1, dtype=root.dtype, device=root.device)
        self._scale = (root[:, None] / root).clamp(max=1.0)
        self._scale /= torch.minimum(place[:, None], place).sqrt()

    def undo(self, ranks: Sequence[int]) -> bool:
        # Rank k sees of A only what leads from components up to k to later ones and back.
        moves, shift = (self.parameters[name].detach() for name in ("moves", "shift"))
        parts = [
            part for k in ranks for part in (moves[..., :k, k:], moves[..., k:, :k], shift[..., k:])
        ]
        left = any(bool(part.any()) for part in parts)
        for part in parts:
            part.zero_()
        return left

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        moves, shift = (self.parameters[name] for name in ("moves", "shift"))
        inner = self._eye + self._scale * (self._trained[..., None] * moves)
        shift = self._trained * shift
        trained, rest = self._encoder[..., : self.used], self._encoder[..., self.used :]
        written, kept = self._decoder[..., : self.used, :], self._decoder[..., self.used :, :]
        encoder = torch.cat([trained @ inner, rest], -1)
        decoder = torch.cat([torch.linalg.inv(inner) @ written, kept], -2)
        center = self._center + (shift[..., None, :] @ written)[..., 0, :]
        return encoder, decoder, center


class FreeBottleneck(Bottleneck):
    """E, D and μ of one rank, each free: E's columns by the spread of the coordinates, D's rows by theirs."""

    def __init__(self, start: Basis, like: Tensor) -> None:
        super().__init__(start)
        self.rate, self.clip = min(0.01, 0.64 / start.width), 1.0
        norms = start.decoder.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        # Unit rows of D, so that a step means the same in every component.
        parts = {
            "encoder": start.encoder * norms.mT,
            "decoder": start.decoder / norms,
            "center": start.center,
        }
        self.parameters = {
            name: part.to(like, copy=True).requires_grad_() for name, part in parts.items()
        }

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor, Tensor]", tuple(self.parameters.values()))


def bottlenecked(
    f: Float[Tensor, "batch ..."],
    encoder: Float[Tensor, "*head d k"],
    decoder: Float[Tensor, "*head k d"],
    center: Float[Tensor, "*head d"],
    ranks: Int[Tensor, " batch"],
) -> Float[Tensor, "batch ..."]:
    """μ + ((f − μ)E ∘ 1[i < k])D, in E's dtype, with a rank k for each sequence."""
    per_head = encoder.ndim == 3
    wide = f.to(encoder)
    if not per_head and f.shape[-1] != encoder.shape[0]:
        wide = wide.flatten(-2)
    with torch.autocast(f.device.type, enabled=False):
        coordinates = _apply(wide - center, encoder)
        components = torch.arange(encoder.shape[-1], device=f.device)
        kept = components < ranks.to(f.device).view(-1, *[1] * (wide.ndim - 1))
        edited = center + _apply(coordinates * kept, decoder)
    return edited.to(f.dtype).reshape(f.shape)


def _apply(x: Tensor, matrix: Tensor) -> Tensor:
    """x @ matrix, or head by head for x [..., head, d]."""
    if matrix.ndim == 2:
        return x @ matrix
    return torch.einsum("...hd,hdk->...hk", x, matrix)
