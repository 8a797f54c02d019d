"""How alike two positive semi-definite matrices are, and what their likeness would be by chance.

The cosine of two such matrices is never small: for random rotations R of d dimensions

    E cos(R G Rᵀ, A) = cos(G, I) cos(A, I),      cos(A, I)² = tr(A)² / (d tr A²) = participation ratio,

so that two nearly flat spectra look alike whatever their eigenvectors. What eigenvectors add is

    ρ = cos(G − tr(G)/d I, A − tr(A)/d I),      E ρ = 0,      Var ρ = 2 / ((d − 1)(d + 2))  under R.
"""

from __future__ import annotations

import math

import torch
from fancy_einsum import einsum
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.bases.overlap import subspace_angles
from tl_weighted_pca.support.randomness import seeded
from tl_weighted_pca.support.whole_numbers import checked_count

Square = Float[Tensor, "d d"]

_FLOAT32 = torch.finfo(torch.float32).eps
"""Relative rounding of what was measured: eigenvalues below d times it are not told from zero."""


def cosine(a: Float[Tensor, "m n"], b: Float[Tensor, "m n"]) -> float:
    """tr(AᵀB) / (‖A‖_F ‖B‖_F), uncentred; NaN where one of them vanishes."""
    norms = float(a.norm() * b.norm())
    return float(einsum("m n, m n ->", a, b)) / norms if norms else math.nan


def centred_cosine(a: Square, b: Square) -> float:
    """ρ = cos(A − tr(A)/d I, B − tr(B)/d I): what the eigenvectors say; 0 on average by chance.

    NaN where either is a multiple of the identity (to rounding): it has no eigenvectors to compare.
    """
    deviations = [_traceless(a), _traceless(b)]
    none = (d.norm() <= 1e-9 * whole.norm() for d, whole in zip(deviations, (a, b), strict=True))
    return math.nan if any(none) else cosine(*deviations)


def centred_cosine_sd(width: int) -> float:
    """√(2 / ((d − 1)(d + 2))): the standard deviation of ρ when one matrix is rotated at random."""
    return math.sqrt(2 / ((width - 1) * (width + 2))) if width > 1 else math.nan


def participation_ratio(matrix: Square) -> float:
    """tr(K)² / (d tr K²), from 1/d (rank one) to 1 (a multiple of I): how tight a frame is.

    It is the square of the cosine between K and the identity.
    """
    return float(matrix.trace() ** 2 / (len(matrix) * matrix.square().sum()))


def support_condition(matrix: Square) -> float:
    """λ_min / λ_max over the support: the eigenvalues above d · 1.2e-7 of the largest."""
    eigenvalues = torch.linalg.eigvalsh(matrix)
    largest = float(eigenvalues[-1])
    if largest <= 0:
        return math.nan
    return float(eigenvalues[eigenvalues > len(matrix) * _FLOAT32 * largest][0]) / largest


def power_of(matrix: Square, power: float) -> Square:
    """A^p for a positive semi-definite A; for p below zero, on its support."""
    if power == 1:
        return matrix
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    support = eigenvalues > len(matrix) * _FLOAT32 * eigenvalues[-1].clamp(min=0)
    powered = torch.where(support, eigenvalues.clamp(min=1e-300) ** power, 0.0)
    return (vectors * powered) @ vectors.mT


def captured(matrix: Float[Tensor, "d_in d_out"], agop: Float[Tensor, "d_in d_in"]) -> Tensor:
    """tr(U_kᵀ A U_k) / Σ_{i≤k} λ_i(A) for k = 1 … rank: how good W's top k input directions are.

    U_k are the left singular vectors of `matrix` [d_in, d_out] as TransformerLens stores it (x @ W);
    papers that write Wx call them right ones. Unlike angles between single vectors the curve does
    not mind near-equal singular values. A random subspace gives k tr(A) / (d Σ_{i≤k} λ_i).
    """
    U = torch.linalg.svd(matrix, full_matrices=False).U
    held = einsum("i k, i k -> k", U, agop @ U).cumsum(0)
    return held / _best(agop)[: U.shape[1]]


def captured_by_chance(
    matrix: Float[Tensor, "d_in d_out"], agop: Float[Tensor, "d_in d_in"]
) -> Tensor:
    """k tr(A) / (d Σ_{i≤k} λ_i(A)): the curve of `captured` for a random subspace, on average."""
    rank, width = min(matrix.shape), len(agop)
    k = torch.arange(1, rank + 1, dtype=agop.dtype, device="cpu")
    return k * agop.trace() / width / _best(agop)[:rank]


def principal_angles(
    matrix: Float[Tensor, "d_in d_out"], agop: Float[Tensor, "d_in d_in"], k: int
) -> Float[Tensor, " k"]:
    """arccos σ_i(U_kᵀ V_k), in radians and ascending: W's top k input directions against A's.

    Raises:
        ValueError: if k is outside 1..min(d_in, d_out).
    """
    k = checked_count("k", k)
    if k > min(matrix.shape):
        raise ValueError(
            f"k is {k}; expected 1 to {min(matrix.shape)}, the rank of a {tuple(matrix.shape)} matrix."
        )
    ours = torch.linalg.svd(matrix, full_matrices=False).U[:, :k]
    theirs = torch.linalg.eigh(agop).eigenvectors.flip(-1)[:, :k]
    return subspace_angles(ours, theirs)


def replaced_cosine(
    matrix: Float[Tensor, "d_in d_out"],
    gradients: Float[Tensor, "d_out d_out"],
    *,
    draws: int = 8,
    seed: int = 0,
) -> float:
    """Mean of cos(W̃W̃ᵀ, W̃ K W̃ᵀ) over random W̃ with the singular values of W.

    With W̃ = U S Vᵀ this is cos(S², S VᵀKV S): U drops out, V is drawn uniformly. It is the cosine
    that a weight *unrelated to its gradients* would show: high wherever K is nearly tight.
    """
    singular = torch.linalg.svdvals(matrix)
    generator = seeded(seed)
    values = []
    for _ in range(draws):
        gaussian = torch.randn(
            matrix.shape[1], len(singular), generator=generator, dtype=torch.float64, device="cpu"
        )
        axes, upper = torch.linalg.qr(gaussian)
        axes = axes * upper.diagonal().sign()
        inner = axes.mT @ gradients @ axes
        values.append(cosine((singular**2).diag(), singular[:, None] * inner * singular[None, :]))
    return sum(values) / draws


def _traceless(matrix: Square) -> Square:
    return matrix - matrix.trace() / len(matrix) * torch.eye(
        len(matrix), dtype=matrix.dtype, device="cpu"
    )


def _best(agop: Square) -> Float[Tensor, " d"]:
    return torch.linalg.eigvalsh(agop).flip(0).clamp(min=0).cumsum(0).clamp(min=1e-300)
