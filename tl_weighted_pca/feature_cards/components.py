"""The components that get cards: the leading ones of a basis, over one flat space."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis


@dataclass(frozen=True)
class Components:
    """The n leading components, as a basis of one space [head·d_head] or [d].

    A basis per head is one basis of that space, whose components touch one head each.
    """

    basis: Basis
    """Their encoder [d, n], decoder [n, d] and eigenvalues; `total` is that of all heads together."""
    places: list[tuple[int | None, int]]
    """The head (None where the basis is over one space) and the number there of each."""
    blocks: list[range]
    """The numbers, there, of those whose eigenvalue is near-equal to its own: see `Basis.blocks`."""

    @classmethod
    def leading(cls, basis: Basis, n: int) -> Components:
        """The first n, in the basis's own order; per head the n of highest eigenvalue, whatever their head.

        Raises:
            ValueError: if n is below one, or the basis has no components.
        """
        if n < 1:
            raise ValueError(f"n is {n}; expected at least one component.")
        if not basis.n_components:
            raise ValueError(
                "The basis has no components; expected at least one: truncate it to more."
            )
        if not basis.per_head:
            n = min(n, basis.n_components)
            own = [block for block in basis.blocks() for _ in block]
            return cls(basis.truncate(n), [(None, i) for i in range(n)], own[:n])
        heads, width, k = basis.encoder.shape
        order = basis.eigenvalues.flatten().argsort(descending=True, stable=True)[:n]
        head, number = order // k, order % k
        each = torch.arange(len(order), device="cpu")
        encoder = torch.zeros(heads, width, len(order), dtype=torch.float64, device="cpu")
        decoder = torch.zeros(len(order), heads, width, dtype=torch.float64, device="cpu")
        encoder[head, :, each] = basis.encoder[head, :, number]
        decoder[each, head] = basis.decoder[head, number]
        flat = dataclasses.replace(
            basis,
            encoder=rearrange(encoder, "head d n -> (head d) n"),
            decoder=rearrange(decoder, "n head d -> n (head d)"),
            center=rearrange(basis.center, "head d -> (head d)"),
            eigenvalues=basis.eigenvalues[head, number],
            total=basis.total.sum(),
        )
        places = list(zip(head.tolist(), number.tolist(), strict=True))
        own = [block for blocks in basis.blocks() for block in blocks for _ in block]
        return cls(flat, places, [own[i] for i in order.tolist()])

    def __len__(self) -> int:
        return len(self.places)

    @property
    def names(self) -> list[str]:
        """ "3" for the component numbered 3, "head 1, 3" where it is one head's."""
        return [str(i) if head is None else f"head {head}, {i}" for head, i in self.places]

    def coordinates(self, activations: Tensor) -> Tensor:
        """z = (f − μ)E [..., n] of activations [batch, pos, d] or [batch, pos, head, d_head]."""
        return self.basis.encode(activations.flatten(2))

    def removal(self, i: int) -> Callable[[Tensor], Tensor]:
        """f ↦ f − z_i D_i: component i ablated to the centre, all else as it was."""
        basis = self.basis
        alone = dataclasses.replace(
            basis,
            encoder=basis.encoder[:, i : i + 1],
            decoder=basis.decoder[i : i + 1],
            eigenvalues=basis.eigenvalues[i : i + 1],
        )

        def remove(tensor: Tensor) -> Tensor:
            flat = tensor.flatten(2) if tensor.ndim == 4 else tensor
            wide = flat if flat.dtype == torch.float64 else flat.float()
            part = alone.decode(alone.encode(wide)) - alone.center.to(wide)
            return (wide - part).to(tensor.dtype).reshape(tensor.shape)

        return remove
