"""The one eigenproblem: generalised PCA of a triplet (F, Q, D).

Every basis here is the eigenbasis of (FᵀDF)·Q, for activations F, a row metric D on positions and a
column metric Q on hidden directions: the duality diagram of French data analysis (Escoufier; Dray
and Dufour 2007, "The ade4 package: implementing the duality diagram for ecologists").
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.bases.metric import Metric, checked_place, fisher_metric, require_gradient
from tl_weighted_pca.moments.row_metric import ROW_METRICS
from tl_weighted_pca.moments.second_moment import Moments
from tl_weighted_pca.support.randomness import seeded

Center = bool | Literal["row_metric"] | Tensor
"""True: the token mean. False: none. "row_metric": its own mean b/c. Or a vector [d]."""

_NULL = 1e-12
"""Eigenvalues below this share of the largest are zero: float32 gradients carry no more digits."""


def pca(moments: Moments, n_components: int | None = None, *, center: Center = True) -> Basis:
    """Eigenvectors of A(μ)/n, A(μ) = Σ (F − 1μᵀ)ᵀ(F − 1μᵀ): principal component analysis.

    Args:
        moments: with activation statistics.
        n_components: how many of the first to keep; all by default.
        center: True (token mean), False (none: the "svd basis"), "row_metric", or a vector [d].

    Returns:
        An orthonormal basis; eigenvalues are variances per token.
    """
    activation = moments.require("activation")
    mu = _center(moments, center)
    return _orthonormal(activation.about(mu) / moments.n_tokens, mu, "pca", moments, n_components)


def weighted_pca(
    moments: Moments, n_components: int | None = None, *, center: Center = True
) -> Basis:
    """Eigenvectors of G(μ)/n, G_ij = Σ_{x,s,t} f_si M_st f_tj: gradient-weighted PCA.

    With the default row metric M_st = Σ_k g_sk g_tk this weighs each pair of positions by the product
    of their gradients. With M = I it is `pca`. The published form broke under centring; here
    G(μ) = G − bμᵀ − μbᵀ + cμμᵀ is exact for any μ.

    Args:
        moments: with weighted statistics.
        n_components: as in `pca`.
        center: as in `pca`.

    Returns:
        An orthonormal basis; eigenvalues are in units of (activation · gradient)² per token.

    Raises:
        ValueError: where the row metric was not positive semi-definite, or all gradients are zero.
    """
    weighted = require_gradient(moments, "weighted")
    mu = _center(moments, center)
    matrix = weighted.about(mu) / moments.n_tokens
    _check_semidefinite(matrix, moments)
    return _orthonormal(matrix, mu, "weighted_pca", moments, n_components)


def gradient_pca(
    moments: Moments, n_components: int | None = None, *, center: Center = True
) -> Basis:
    """Eigenvectors of Σ g gᵀ / n, the average gradient outer product (AGOP), uncentred.

    Args:
        moments: with gradient statistics, and activation statistics for the centre.
        n_components: as in `pca`.
        center: where what is ablated goes, a property of the activations: as in `pca`.

    Returns:
        An orthonormal basis; eigenvalues are squared gradient per token.

    Raises:
        ValueError: where all gradients are zero.
    """
    gradient = require_gradient(moments, "gradient")
    mu = _center(moments, center)
    return _orthonormal(
        gradient.second / moments.n_tokens, mu, "gradient_pca", moments, n_components
    )


def metric_pca(
    moments: Moments,
    metric: Metric | Float[Tensor, "*head d d"] | None = None,
    *,
    n_components: int | None = None,
    center: Center = True,
    damping: float = 0.0,
    weighted: bool = False,
) -> Basis:
    """E_k = Q^½ V_k, D_k = Λ_k⁻¹ E_kᵀ C, with V, Λ the eigenpairs of Q^½ C Q^½: PCA in a column metric.

    The map f̂ = μ + (f − μ)E_kD_k minimises E‖Q^½(f − f̂)‖² over all rank-k linear maps. With Q the
    gradient second moment of labels sampled from the model this is the best rank-k map under the
    token-averaged Fisher information. Q may be singular: directions that the model ignores cost
    nothing, and complete the basis, by the PCA of what remains, so that rank d is the identity.

    Args:
        moments: with activation statistics, and gradient ones where `metric` is None.
        metric: Q, symmetric and positive semi-definite: a `Metric` of the same hook point, or a matrix
            of unknown origin; None takes `fisher_metric(moments)`, Σ g gᵀ per token.
        n_components: as in `pca`.
        center: as in `pca`.
        damping: adds damping · tr(Q)/d · I to Q.
        weighted: take C from the row metric's moment, G(μ)/n, instead of the activations'
            covariance: the whole triplet (F, Q, D).

    Returns:
        An oblique basis; eigenvalues Λ are the share of E‖Q^½(f − μ)‖² each component accounts for. Its
        `method` names the metric: "metric_pca(fisher)", "metric_pca(empirical)", "metric_pca(path)", …

    Raises:
        ValueError: if `metric` is of another hook point or model, or not square of the right width,
            symmetric, finite and positive semi-definite, `damping` is negative, or all gradients are zero
            where they are the metric.
    """
    mu = _center(moments, center)
    source = moments.require("weighted" if weighted else "activation")
    covariance = source.about(mu) / moments.n_tokens
    if weighted:
        _check_semidefinite(covariance, moments)
    if metric is None:
        metric = fisher_metric(moments)
    elif not isinstance(metric, Metric):
        metric = Metric(metric)
    checked_place(metric, moments)
    matrix = _checked_metric(metric.matrix.to(covariance), covariance)
    if not 0 <= damping < math.inf:
        raise ValueError(f"damping is {damping}; expected a finite number not below zero.")
    if damping:
        width = matrix.shape[-1]
        scale = damping * matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
        matrix = matrix + scale[..., None, None] * torch.eye(width, device="cpu").to(matrix)
    if covariance.ndim == 3:
        heads = [_in_metric(c, q) for c, q in zip(covariance, matrix, strict=True)]
        found = [torch.stack(parts) for parts in zip(*heads, strict=True)]
    else:
        found = [*_in_metric(covariance, matrix)]
    encoder, decoder, eigenvalues, total = (part.cpu() for part in found)
    told = [metric.name, "weighted" * weighted, f"damping={damping:g}" if damping else ""]
    named = ", ".join(part for part in told if part)
    method = f"metric_pca({named})" if named else "metric_pca"
    differentiated = metric.provenance if metric.provenance.objective else moments.provenance
    made = replace(
        moments.provenance,
        objective=differentiated.objective,
        objective_code=differentiated.objective_code,
    )
    return Basis(encoder, decoder, mu, eigenvalues, total, method, made).truncate(n_components)


def random_basis(
    moments: Moments,
    n_components: int | None = None,
    *,
    center: Center = True,
    seed: int = 0,
) -> Basis:
    """A rotation drawn at random (the Q of a Gaussian matrix's QR): what any basis must beat.

    Args:
        moments: with activation statistics, which give the centre and the eigenvalues.
        n_components: as in `pca`.
        center: as in `pca`.
        seed: of the rotation.

    Returns:
        An orthonormal basis in the order in which it was drawn; `eigenvalues` are the variances along it.
    """
    mu = _center(moments, center)
    covariance = moments.require("activation").about(mu).cpu() / moments.n_tokens
    generator = seeded(seed)
    gaussian = torch.randn(covariance.shape, generator=generator, dtype=torch.float64, device="cpu")
    axes, upper = torch.linalg.qr(gaussian)
    # The signs that make the distribution uniform (Mezzadri 2007).
    axes = axes * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    variances = (axes.mT @ covariance @ axes).diagonal(dim1=-2, dim2=-1)
    made = moments.provenance
    basis = Basis(axes, axes.mT, mu, variances, variances.sum(-1), "random_basis", made)
    return basis.truncate(n_components)


def _center(moments: Moments, center: Center) -> Float[Tensor, "*head d"]:
    like = next(iter(moments.held.values()), None) or moments.require("activation")
    if hasattr(center, "__array__"):  # a tensor, or an array
        center = torch.as_tensor(center, device="cpu")
        if center.shape not in (like.shift.shape, like.shift.shape[-1:]):
            raise ValueError(
                f"The centre has shape {tuple(center.shape)}, but the hook point has width "
                f"{like.width}: pass a vector of that width."
            )
        if not bool(center.isfinite().all()):
            raise ValueError("The centre holds NaN or infinity; expected a finite vector.")
        return center.detach().cpu().double().expand(like.shift.shape).clone()
    if center == "row_metric":
        return moments.require("weighted").mean.cpu()
    if center is True:
        return moments.require("activation").mean.cpu()
    if center is False:
        return torch.zeros_like(like.shift, device="cpu")
    raise ValueError(
        f"center is {center!r}; expected True (token mean), False (none), 'row_metric' or a vector."
    )


def _orthonormal(
    matrix: Tensor, mu: Tensor, method: str, moments: Moments, n_components: int | None
) -> Basis:
    eigenvalues, vectors = (part.cpu() for part in _descending(matrix))
    total, made = eigenvalues.sum(-1), moments.provenance
    basis = Basis(vectors, vectors.mT, mu, eigenvalues, total, method, made)
    return basis.truncate(n_components)


def _descending(matrix: Float[Tensor, "*head d d"]) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending and not negative, and eigenvectors with their largest entry positive."""
    eigenvalues, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    eigenvalues, vectors = eigenvalues.flip(-1).clamp(min=0.0), vectors.flip(-1)
    return eigenvalues, vectors * _signs(vectors)


def _signs(columns: Float[Tensor, "*head d k"]) -> Float[Tensor, "*head 1 k"]:
    largest = columns.gather(-2, columns.abs().argmax(-2, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(columns)


def _check_semidefinite(second: Float[Tensor, "*head d d"], moments: Moments) -> None:
    """Raise ValueError where a second moment shows that the caller's row metric had negative eigenvalues."""
    if moments.provenance.row_metric in ("", *ROW_METRICS):
        return  # ours have none: what is negative there is rounding
    eigenvalues = torch.linalg.eigvalsh((second + second.mT) / 2)
    if bool((eigenvalues[..., 0] < -1e-4 * eigenvalues.abs().amax(-1)).any()):
        raise ValueError(
            f"The row metric's second moment has the eigenvalue {float(eigenvalues.min()):.3g}, so the row "
            "metric is not positive semi-definite: return one that is."
        )


def _checked_metric(metric: Tensor, covariance: Tensor) -> Tensor:
    if metric.shape not in (covariance.shape, covariance.shape[-2:]):
        raise ValueError(
            f"The metric has shape {tuple(metric.shape)}, but the hook point's covariance has shape "
            f"{tuple(covariance.shape)}: pass one [d, d] matrix of that width."
        )
    metric = metric.expand(covariance.shape)
    scale = metric.abs().amax((-2, -1), keepdim=True)
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("The metric holds NaN or infinity; expected a finite matrix.")
    if bool(((metric - metric.mT).abs() > 1e-6 * scale).any()):
        raise ValueError("The metric is not symmetric; expected Q = Qᵀ: symmetrise it first.")
    lowest = torch.linalg.eigvalsh((metric + metric.mT) / 2)[..., 0]
    if bool((lowest < -1e-6 * scale[..., 0, 0] * metric.shape[-1]).any()):
        raise ValueError(
            f"The metric has the eigenvalue {float(lowest.min()):.3g}; expected a positive "
            "semi-definite matrix."
        )
    return metric


def _in_metric(covariance: Tensor, metric: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encoder, decoder, eigenvalues and their total for one C and one Q."""
    width = len(covariance)
    powers, axes = _descending(metric)
    root = (axes * powers.sqrt()) @ axes.mT
    eigenvalues, vectors = _descending(root @ covariance @ root)
    used = int((eigenvalues > _NULL * eigenvalues[0]).sum())
    encoder = root @ vectors[:, :used]
    encoder = encoder * _signs(encoder)
    decoder = (encoder.mT @ covariance) / eigenvalues[:used, None]
    if used == width:
        return encoder, decoder, eigenvalues, eigenvalues.sum()
    # What remains, f(I − ED), lives in the orthogonal complement of span(E): its PCA completes the
    # basis, W its axes, with (I − ED)W to read a coordinate and Wᵀ to write it.
    remainder = torch.eye(width, device="cpu").to(covariance) - encoder @ decoder
    complement = torch.linalg.qr(encoder, mode="complete").Q[:, used:]
    left_over = remainder @ complement
    _, rotation = _descending(left_over.mT @ covariance @ left_over)
    W = complement @ rotation
    return (
        torch.cat([encoder, remainder @ W], dim=1),
        torch.cat([decoder, W.mT], dim=0),
        torch.cat([eigenvalues[:used], eigenvalues.new_zeros(width - used)]),
        eigenvalues[:used].sum(),
    )
