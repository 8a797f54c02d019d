"""A basis of a hidden space: an encoder, a decoder and a centre, ordered by eigenvalue."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.factored.near_equal import near_equal
from tl_weighted_pca.moments.second_moment import Provenance
from tl_weighted_pca.support.digest import digest_of
from tl_weighted_pca.support.files import reading, write_atomically
from tl_weighted_pca.support.notebook import sparkline, summary
from tl_weighted_pca.support.whole_numbers import checked_count

_FORMAT = "tl_weighted_pca.Basis/1"
_TENSORS = ("encoder", "decoder", "center", "eigenvalues", "total")


@dataclass(frozen=True, eq=False, repr=False)
class Basis:
    """f̂ = μ + (f − μ) E_k D_k: an encoder E, a decoder D and a centre μ, by descending eigenvalue.

    Orthonormal bases have D = Eᵀ; a basis in a column metric is oblique. At k = d the map is the
    identity, at k = 0 it is ablation to the centre (to zero where the basis is uncentred).
    All tensors are float64, and on the CPU until `to` moves them; activations of any dtype and device may
    be passed in.
    A basis per head has one leading dimension, and a rank k keeps k components in every head.
    """

    encoder: Float[Tensor, "*head d k"]
    """E, one column a component: coordinates are (f − μ) E."""
    decoder: Float[Tensor, "*head k d"]
    """D, one row a component: what one unit of a coordinate adds."""
    center: Float[Tensor, "*head d"]
    """μ; zero for an uncentred basis."""
    eigenvalues: Float[Tensor, "*head k"]
    """Descending, per token, in the units of the basis's own objective."""
    total: Float[Tensor, "*head"]
    """The sum of all eigenvalues, also of components that were truncated away."""
    method: str = ""
    """What made it: "pca", "weighted_pca", "gradient_pca", "metric_pca(fisher)", …"""
    provenance: Provenance = Provenance()
    """Model, hook point and objective of the moments it was made from."""

    def __repr__(self) -> str:
        heads = f"{len(self.encoder)} heads, " if self.per_head else ""
        place = f" at {self.provenance.hook_point!r}" if self.provenance.hook_point else ""
        return (
            f"Basis({self.method or 'unnamed'}{place}: {heads}{self.n_components} components of "
            f"width {self.width})"
        )

    def __len__(self) -> int:
        """k, as `n_components`."""
        return self.n_components

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: slice) -> Basis:
        """`basis[:k]`, the first k components, as `truncate(k)`.

        Raises:
            TypeError: for anything but a slice from the first component on.
        """
        if (
            not isinstance(index, slice)
            or index.start not in (None, 0)
            or index.step not in (None, 1)
        ):
            raise TypeError(
                f"A basis is cut as basis[:k], its first k components; got {index!r}. Single directions "
                "are rows of basis.decoder."
            )
        return self.truncate(len(range(self.n_components)[index]))

    __iter__ = None

    def _repr_html_(self) -> str:
        """What a notebook shows: where it is from, how many directions it takes, its spectrum."""
        values = self.eigenvalues.reshape(-1, self.n_components).mean(0)
        ratio = float(values.sum() ** 2 / values.square().sum()) if self.n_components else 0.0
        rows = {
            "model": self.provenance.model or "–",
            "hook point": self.provenance.hook_point or "–",
            "components": f"{self.n_components} of width {self.width}"
            + (f", {len(self.encoder)} heads" if self.per_head else ""),
            "participation ratio": f"{ratio:.1f}",
            "share explained": f"{float(self.explained_ratio.sum(-1).mean()):.1%}",
        }
        picture = sparkline({"eigenvalues": values.tolist()}, "Eigenvalues, logarithmic")
        return summary(f"Basis: {self.method or 'unnamed'}", rows, picture)

    @property
    def components(self) -> Float[Tensor, "*head k d"]:
        """scikit-learn's word for the decoder: one direction of activation space a row."""
        return self.decoder

    @property
    def mean(self) -> Float[Tensor, "*head d"]:
        """scikit-learn's word for the centre."""
        return self.center

    @property
    def n_components(self) -> int:
        """k, the number of components."""
        return self.encoder.shape[-1]

    @property
    def width(self) -> int:
        """d, the dimension of one space (of one head's, in a basis per head)."""
        return self.encoder.shape[-2]

    @property
    def per_head(self) -> bool:
        """Whether there is one basis per head."""
        return self.encoder.ndim == 3

    @property
    def digest(self) -> str:
        """A few characters that tell this basis from another, in the names of what it takes part in."""
        return digest_of(self.encoder, self.decoder, self.center)

    @property
    def explained_ratio(self) -> Float[Tensor, "*head k"]:
        """λ_i / Σ_j λ_j: the share of the basis's *own* objective, not of the variance."""
        return self.eigenvalues / self.total[..., None].clamp(min=torch.finfo(torch.float64).tiny)

    def blocks(self, rtol: float = 0.05) -> list[Any]:
        """Ranges of components with λ_i − λ_{i+1} ≤ rtol · λ_i, which fix a subspace and no directions in it;
        per head, a list for each. Of n tokens two equal λ come 5λ/√n apart in one of twenty samples.
        """
        return near_equal(self.eigenvalues, rtol)

    def encode(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... k"]:
        """(x − μ) E, computed in float32 or wider. Per head, x is [..., head, d_head]."""
        self._check(x)
        wide, (encoder, center) = _aligned(self._flat(x), self.encoder, self.center)
        return _apply(wide - center, encoder)

    def decode(self, z: Float[Tensor, "... k"]) -> Float[Tensor, "... d"]:
        """μ + z D."""
        if z.shape[-1] != self.n_components:
            raise ValueError(
                f"Coordinates have {z.shape[-1]} columns, but this basis has {self.n_components} "
                "components: encode with this basis, or truncate it to match."
            )
        wide, (decoder, center) = _aligned(z, self.decoder, self.center)
        return center + _apply(wide, decoder)

    def project(self, x: Float[Tensor, "... d"], k: int | None = None) -> Float[Tensor, "... d"]:
        """μ + (x − μ) E_k D_k, in the dtype of x: keep the top k components, ablate the rest.

        Raises:
            ValueError: if k is outside 0..n_components or x has another width.
        """
        self._check(x)
        k = self.n_components if k is None else self.check_rank(k)
        shape = x.shape
        wide, (encoder, decoder, center) = _aligned(
            self._flat(x), self.encoder[..., :k], self.decoder[..., :k, :], self.center
        )
        kept = _apply(_apply(wide - center, encoder), decoder)
        # What is cut to whole numbers is not a projection.
        dtype = x.dtype if x.is_floating_point() else wide.dtype
        return (center + kept).to(dtype).reshape(shape)

    def truncate(self, k: int | None) -> Basis:
        """The basis of the first k components, of all if None; it still knows the total of all."""
        k = self.n_components if k is None else self.check_rank(k)
        return dataclasses.replace(
            self,
            encoder=self.encoder[..., :k],
            decoder=self.decoder[..., :k, :],
            eigenvalues=self.eigenvalues[..., :k],
        )

    def hook(self, k: int | None = None) -> Callable[..., Tensor]:
        """A TransformerLens forward hook that keeps k components and ablates the rest.

        Use it as `model.run_with_hooks(tokens, fwd_hooks=[(name, basis.hook(16))])`.
        """
        if k is not None:
            k = self.check_rank(k)

        def ablate(tensor: Tensor, hook: Any) -> Tensor:
            return self.project(tensor, k)

        return ablate

    def check_rank(self, k: SupportsIndex) -> int:
        """k as an int; raise ValueError unless it is a whole number within 0..n_components."""
        rank = checked_count("The rank", k, least=0)
        if rank > self.n_components:
            raise ValueError(
                f"Rank {rank} is outside 0..{self.n_components}, the components of this basis."
            )
        return rank

    def check_place(self, here: Provenance, otherwise: str = "") -> None:
        """Raise ValueError if this basis was made from another model, or at another hook point.

        Args:
            here: the model and the hook point where it is to be used.
            otherwise: what to do where it is meant, such as "pass anywhere=True".
        """
        made = self.provenance
        here = dataclasses.replace(here, objective="", row_metric="")
        if made.agrees_with(here):
            return
        meant = f", or {otherwise} if it is meant" if otherwise else ""
        other = (
            " with other weights" if made.agrees_with(dataclasses.replace(here, weights="")) else ""
        )
        raise ValueError(
            f"This basis was made at {made.hook_point!r} of {made.model!r}{other}, and would be used at "
            f"{here.hook_point!r} of {here.model!r}: make one there{meant}."
        )

    def to(self, device: torch.device | str) -> Basis:
        """The same basis on another device, which spares a copy for each batch that is projected there."""
        return dataclasses.replace(
            self, **{name: getattr(self, name).to(device) for name in _TENSORS}
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `Basis.load` reads; one in its place is replaced whole."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        header = {"method": self.method, "provenance": dataclasses.asdict(self.provenance)}
        write_atomically(path, tensors, {"format": _FORMAT, "basis": json.dumps(header)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Basis:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a basis, or is damaged.
        """
        with reading(path, _FORMAT, "Basis.save") as (tensors, metadata):
            header = json.loads(metadata["basis"])
            made = Provenance(**header["provenance"])
            return cls(**tensors, method=header["method"], provenance=made)

    def _flat(self, x: Tensor) -> Tensor:
        """A basis over head·d_head takes [..., head, d_head] as well."""
        return x if self.per_head or x.shape[-1] == self.width else x.flatten(-2)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.ndim:
            what = "a single number" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TypeError(
                f"The activations are {what}; expected a torch tensor [..., {self.width}]."
            )
        heads = self.encoder.shape[:-2]
        fits = x.shape[-1] == self.width and (not self.per_head or x.shape[-2:-1] == heads)
        # A column is no space of heads, unless it comes with a batch and positions.
        apart = x.ndim > 3 or (x.ndim > 1 and min(x.shape[-2:]) > 1)
        flattened = not self.per_head and apart and x.shape[-2:].numel() == self.width
        if not (fits or flattened):
            wanted = f"[..., {heads[0]}, {self.width}]" if self.per_head else f"[..., {self.width}]"
            raise ValueError(
                f"Activations of shape {tuple(x.shape)} do not fit this basis, which takes {wanted}: "
                f"it was made at {self.provenance.hook_point or 'another hook point'!r}."
            )


def check_bases(bases: Any, expected: str) -> None:
    """Raise TypeError, saying which dict was expected, for anything but a mapping of bases."""
    given = f"a {type(bases).__name__}"
    if isinstance(bases, Mapping):
        kinds = {type(value).__name__ for value in bases.values() if not isinstance(value, Basis)}
        if not kinds:
            return
        given += f" of {', '.join(sorted(kinds))}"
    raise TypeError(f"bases is {given}; expected a dict {expected}.")


def _aligned(x: Tensor, *others: Tensor) -> tuple[Tensor, list[Tensor]]:
    """x in float32 or wider, and the others in that dtype and on its device."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return wide, [other.to(wide) for other in others]


def _apply(x: Tensor, matrix: Float[Tensor, "*head d k"]) -> Tensor:
    """x @ matrix, or head by head for x [..., head, d]."""
    with torch.autocast(x.device.type, enabled=False):
        if matrix.ndim == 2:
            return x @ matrix
        return torch.einsum("...hd,hdk->...hk", x, matrix)
