"""A sparse autoencoder: more directions than dimensions, few of them at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.dictionary.prolu import GradientRule, prolu
from tl_weighted_pca.moments.second_moment import Provenance
from tl_weighted_pca.support.files import reading, write_atomically
from tl_weighted_pca.support.randomness import seeded
from tl_weighted_pca.support.whole_numbers import checked_count

_FORMAT = "tl_weighted_pca.SparseAutoencoder/1"

Kind = Literal["relu", "prolu_ste", "prolu_relu"]
"""The activation function, and for ProLU the rule of its gradient."""


class SparseAutoencoder(nn.Module):
    """f = φ((x − b_in) W_enc, b_enc),  x̂ = f W_dec + b_dec, with rows of W_dec of unit length.

    φ(m, b) is ReLU(m + b) or ProLU(m, b). With a tied bias b_in = b_dec; an untied b_in is learned on its
    own, which matters to ProLU alone: its b_enc gates and cannot shift.

    All is homogeneous: for activations measured in another unit, `in_units` gives the same map.

    Args:
        width: d, of the activations.
        n_features: m, of the dictionary.
        kind: "relu", "prolu_ste" or "prolu_relu" (see `prolu`).
        tied: whether b_in is b_dec.
        relu_where_positive: for ProLU, take ReLU(m + b) where the bias is positive.
        basis: start from its components, each in both signs, in descending order, as far as there are
            features: the first 2k features then reconstruct what the basis does. The rest is random.
        seed: of what is random.
        provenance: what the dictionary is of.

    Raises:
        ValueError: for another `kind`, sizes below one, or a basis of another width or per head.
    """

    def __init__(
        self,
        width: int,
        n_features: int,
        kind: Kind = "prolu_ste",
        *,
        tied: bool = True,
        relu_where_positive: bool = False,
        basis: Basis | None = None,
        seed: int = 0,
        provenance: Provenance | None = None,
    ) -> None:
        super().__init__()
        check_settings(kind, n_features=n_features, width=width)
        self.kind: Kind = kind
        self.tied = tied
        self.relu_where_positive = relu_where_positive
        self.unit = 1.0
        """The unit in which the straight-through rule measures m; of no effect on values."""
        self.provenance = provenance or Provenance()
        decoder = torch.randn(n_features, width, generator=seeded(seed), device="cpu")
        decoder /= decoder.norm(dim=1, keepdim=True)
        # Half of the features fire at first; in this proportion the sum of them has the size of x.
        encoder = decoder.T * min(1.0, 2 * width / n_features)
        center = torch.zeros(width, device="cpu")
        if basis is not None:
            encoder, decoder, center = _from_basis(basis, decoder)
        self.W_enc = nn.Parameter(encoder.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(n_features, device="cpu"))
        self.W_dec = nn.Parameter(decoder)
        self.b_dec = nn.Parameter(center)
        self.b_in = self.b_dec if tied else nn.Parameter(center.clone())

    @property
    def width(self) -> int:
        """d, the dimension of the activations."""
        return self.W_dec.shape[1]

    @property
    def n_features(self) -> int:
        """m, the number of features."""
        return self.W_dec.shape[0]

    @property
    def decoder(self) -> Float[Tensor, "features d"]:
        """W_dec: one direction of activation space a row, as a `Basis` names it."""
        return self.W_dec

    @property
    def biases(self) -> Float[Tensor, " features"]:
        """b_enc, in the unit of the activations."""
        return self.b_enc.detach()

    def encode(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... features"]:
        """f = φ((x − b_in) W_enc, b_enc), not below zero; in the dtype of the weights, on x's device.

        Raises:
            ValueError: if x has another width.
        """
        if x.shape[-1] != self.width:
            raise ValueError(
                f"Activations of shape {tuple(x.shape)} do not fit this dictionary, which takes "
                f"[..., {self.width}]: it was made at "
                f"{self.provenance.hook_point or 'another hook point'!r}."
            )
        W, b, b_in = (p.to(x.device) for p in (self.W_enc, self.b_enc, self.b_in))
        m = (x.to(W) - b_in) @ W
        if self.kind == "relu":
            return torch.relu(m + b)
        rule: GradientRule = "ste" if self.kind == "prolu_ste" else "relu"
        u, positive = self.unit, self.relu_where_positive
        # φ is homogeneous, φ(um, ub) = uφ(m, b); the rule's 1 + m is not.
        return prolu(u * m, u * b, rule, relu_where_positive=positive) / u

    def decode(self, f: Float[Tensor, "... features"]) -> Float[Tensor, "... d"]:
        """x̂ = f W_dec + b_dec, in the dtype of the weights, on f's device."""
        W, b = self.W_dec.to(f.device), self.b_dec.to(f.device)
        return f.to(W) @ W + b

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """x̂, in the dtype of x and on its device."""
        return self.decode(self.encode(x)).to(x.dtype)

    def hook(self) -> Callable[..., Tensor]:
        """A TransformerLens forward hook that puts x̂ in the place of x.

        Use it as `model.run_with_hooks(tokens, fwd_hooks=[(name, dictionary.hook())])`. Where the hook
        point carries [batch, pos, head, d_head], heads are taken together, as in training.
        """

        def reconstruct(tensor: Tensor, hook: Any) -> Tensor:
            flat = tensor if tensor.shape[-1] == self.width else tensor.flatten(-2)
            return self(flat).reshape(tensor.shape)

        return reconstruct

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Make the rows of W_dec unit vectors."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12))

    @torch.no_grad()
    def in_units(self, scale: float, center: Float[Tensor, " d"]) -> SparseAutoencoder:
        """The same map for activations c + s·x: f, b_enc and the biases of x grow by s.

        Args:
            scale: s, positive.
            center: c.
        """
        other = self.empty_copy()
        state = {k: v.clone() for k, v in self.state_dict().items()}
        state["b_enc"] *= scale
        for name in ("b_dec", "b_in"):
            state[name] = center.to(state[name]) + scale * state[name]
        other.load_state_dict(state)
        return other

    def empty_copy(self) -> SparseAutoencoder:
        """A dictionary of the same shape and settings, its weights not yet set."""
        return self.from_header(self.header()).to(self.W_dec)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `SparseAutoencoder.load` reads; an old one is replaced whole."""
        header = {"format": _FORMAT, "dictionary": json.dumps(self.header())}
        write_atomically(path, self.state_dict(), header)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
    ) -> SparseAutoencoder:
        """Read what `save` wrote, in the dtype in which it was saved.

        Args:
            path: of the file.
            device: where the dictionary is to lie.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no dictionary, or is damaged.
        """
        with reading(path, _FORMAT, "SparseAutoencoder.save") as (tensors, metadata):
            dictionary = cls.from_header(json.loads(metadata["dictionary"])).to(tensors["W_dec"])
            dictionary.load_state_dict(tensors)
        return dictionary.to(device)

    def header(self) -> dict[str, Any]:
        """Everything but the weights, fit for JSON."""
        return {
            "width": self.width,
            "n_features": self.n_features,
            "kind": self.kind,
            "tied": self.tied,
            "relu_where_positive": self.relu_where_positive,
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_header(cls, header: dict[str, Any]) -> SparseAutoencoder:
        """A dictionary with these settings, its weights not yet set."""
        # Files of 0.2.0 have a k, which a kind of that version took.
        settings = {name: value for name, value in header.items() if name != "k"}
        return cls(**{**settings, "provenance": Provenance(**header["provenance"])})

    def extra_repr(self) -> str:
        return f"width={self.width}, n_features={self.n_features}, kind={self.kind!r}, tied={self.tied}"


def check_settings(kind: str, **counts: Any) -> None:
    """Raise ValueError for another `kind`, and for fewer than one of what is counted."""
    if kind not in get_args(Kind):
        raise ValueError(
            f"kind is {kind!r}; expected one of {', '.join(map(repr, get_args(Kind)))}."
        )
    for name, count in counts.items():
        checked_count(name, count)


def _from_basis(
    basis: Basis, decoder: Tensor
) -> tuple[Float[Tensor, "d features"], Float[Tensor, "features d"], Float[Tensor, " d"]]:
    """Encoder, decoder and centre with the basis's components, + and −, before the random rest."""
    n_features, width = decoder.shape
    if basis.per_head or basis.width != width:
        raise ValueError(
            f"The basis has an encoder of shape {tuple(basis.encoder.shape)}, but the dictionary's "
            f"width is {width}: pass a basis [{width}, k] of the same hook point."
        )
    lengths = basis.decoder.norm(dim=1, keepdim=True)
    # A feature is never negative: ReLU(z) − ReLU(−z) = z takes two. Unit rows; the encoder pays.
    rows = _both_signs(basis.decoder / lengths)[:n_features].to(decoder)
    columns = _both_signs((basis.encoder * lengths.T).T)[:n_features].to(decoder)
    n = len(rows)
    # The others must not disturb at first what the basis reconstructs.
    encoder = torch.cat([columns, 0.1 * decoder[n:]]).T
    return encoder, torch.cat([rows, decoder[n:]]), basis.center.to(decoder)


def _both_signs(rows: Float[Tensor, "k d"]) -> Float[Tensor, "2k d"]:
    return rearrange([rows, -rows], "sign k d -> (k sign) d")
