"""The local interaction basis: directions by how much of what is present is also used downstream.

Bushnaq, Heimersheim, Goldowsky-Dill, Braun, Mendel, Hänni, Griffin, Stöhler, Wache and Hobbhahn
(arXiv 2405.10928) whiten activations by PCA, rotate them to the right singular vectors of the Jacobian
to the next layer's basis, and scale them by its singular values. In one formula that is metric PCA,

    Q_l = Σ_{x,s,t} J_tsᵀ E'E'ᵀ J_ts / n_tokens,       J = ∂f_{l+1} / ∂f_l,  E' the next basis's encoder

from the last layer, where Q = I, to the first. A coordinate z_i = (f − μ)E_i then has variance Λ_i, is
uncorrelated with the others, and moves what follows by Σ_j ⟨(∂z'_j/∂z_i)²⟩ = 1: its importance is in
its scale. What is absent or unused has Λ = 0 and drops out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from einops import reduce
from fancy_einsum import einsum
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis, check_bases
from tl_weighted_pca.bases.principal_components import Center, metric_pca
from tl_weighted_pca.data.batches import check_rereadable, count_batches
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.data.progress import progress_bar
from tl_weighted_pca.interaction.graph import InteractionGraph
from tl_weighted_pca.interaction.jacobian_probe import coordinate_probe, jacobian_probe
from tl_weighted_pca.interaction.skip_paths import note_what_goes_past
from tl_weighted_pca.models.fingerprint import made_at
from tl_weighted_pca.models.hook_points import NamesFilter, resolve
from tl_weighted_pca.moments.second_moment import Moments
from tl_weighted_pca.streaming.one_pass import collect
from tl_weighted_pca.streaming.pairs import Pairs, stream_pairs
from tl_weighted_pca.support.whole_numbers import checked_count

METHOD = "local_interaction_basis"
# Of a product of float32.
_ROUNDING = 2.0**-23


def local_interaction_basis(
    model: Any,
    data: Any,
    hook_points: NamesFilter,
    *,
    n_probes: int = 8,
    exact: bool | None = None,
    center: Center = True,
    positions: Positions = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Basis]:
    """E_l = Q_l^½ V, V the eigenvectors of Q_l^½ C_l Q_l^½, Q_l = Σ JᵀE'E'ᵀJ / n (arXiv 2405.10928).

    One pass collects all activations; then, from the last hook point to the first, one pass each
    collects the gradients of probes of the next basis. The last basis is plain PCA.

    Args:
        model: as for `collect`.
        data: as for `collect`, but it is read once a hook point: no iterator.
        hook_points: from first to last, each of which should carry all that reaches the next: the
            residual stream does. An MLP's hidden layer beside a skip path does not, and a warning says so:
            Jacobians are then of the part that goes through it.
        n_probes: random sign probes a sequence, where Jacobians are estimated.
        exact: give each coordinate at each position a unit probe, so that Q is exact; None does so
            where a sequence has at most 128 of them.
        center: True (token mean), False (none), or a vector [d].
        positions: which positions count, at every hook point.
        batch_size: sequences a batch.
        max_tokens: stop before exceeding so many tokens of data.
        seed: of the probes.
        progress: show progress bars.

    Returns:
        A `Basis` for each hook point, in the order given. Its eigenvalues Λ are the variances of its
        coordinates. Directions with Λ = 0 complete it, so that rank d is the identity;
        `used(basis)` leaves them out, and what float32 moments cannot tell from them.

    Raises:
        ValueError: for hook points out of order, fewer than two, or data that can be read only once.
    """
    names = _several(model, hook_points)
    check_rereadable(data, "every hook point takes a pass")
    if isinstance(center, str):
        raise ValueError(
            f"center is {center!r}; expected True, False or a vector: there is no row metric here."
        )
    options: dict[str, Any] = {
        "positions": positions, "batch_size": batch_size, "max_tokens": max_tokens,
        "progress": progress,
    }  # fmt: skip
    stats = collect(model, data, names, objective=None, **options)
    note_what_goes_past(model, data, names, batch_size, max_tokens)
    width = stats[names[-1]].require("activation").width
    identity = torch.eye(width, dtype=torch.float64, device="cpu")
    bases = {names[-1]: _named(metric_pca(stats[names[-1]], identity, center=center), "")}
    for here, there in reversed(list(pairwise(names))):
        probe = jacobian_probe(there, used(bases[there]), n_probes, exact, positions, seed)
        gradient = collect(
            model, data, here, objective=probe, statistics=("gradient",),
            row_metric="identity", **options,
        )[here]  # fmt: skip
        metric = gradient.require("gradient").second / gradient.n_tokens
        basis = metric_pca(stats[here], metric, center=center)
        bases[here] = _named(basis, f"Jacobian to the basis at {there}")
    return {name: bases[name] for name in names}


def interaction_edges(
    model: Any,
    data: Any,
    bases: Mapping[str, Basis],
    *,
    threshold: float = 0.0,
    exact: bool | None = None,
    chunk: int = 64,
    positions: Positions = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    seed: int = 0,
    anywhere: bool = False,
    progress: bool = True,
) -> InteractionGraph:
    """W_ij = Var(z_i) Σ_{x,s,t} (∂z'_tj / ∂z_si)² / n_tokens: interactions of neighbouring layers.

    The variance of z'_j that z_i accounts for to first order. In the local interaction basis the
    edges out of a feature sum to its eigenvalue Λ_i; in a linear network those into one sum to Λ'_j.
    Squares carry no sign, so nothing depends on the signs of basis vectors; since the bases turn with
    the activations, nothing depends on how a layer's units are permuted or rotated, either.

    Args:
        model: as for `collect`.
        data: as for `collect`.
        bases: by hook point, from first to last; any kind, such as PCA's for comparison.
        threshold: leave out components whose eigenvalue is at most this share of their basis's largest
            (and what is rounding, see `used`).
        exact: one unit probe for each coordinate *and* position; otherwise one for each coordinate,
            with random signs over positions: unbiased, and exact for sequences of length one. None
            is exact where a sequence has at most 128 coordinates.
        chunk: coordinates a pass; gradients of so many are held in memory for one batch.
        positions: which positions count, on both sides.
        batch_size: sequences a batch.
        max_tokens: stop before exceeding so many tokens of data.
        seed: of the signs.
        anywhere: use bases also at hook points or models that they were not made from.
        progress: show a progress bar.

    Returns:
        An `InteractionGraph`.

    Raises:
        TypeError: where `bases` is no mapping from hook points to `Basis`.
        ValueError: for hook points out of order, fewer than two, a basis with no component used, or
            one of another model or hook point.
    """
    check_bases(bases, "from hook points to Basis, such as local_interaction_basis returns")
    names = _several(model, list(bases))
    if not anywhere:
        mine = made_at(model, "")
        for name in names:
            bases[name].check_place(replace(mine, hook_point=name), "pass anywhere=True")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold is {threshold}; expected a share from 0 to 1.")
    chunk = checked_count("chunk", chunk)
    kept = {name: used(bases[name], threshold) for name in names}
    check_rereadable(data, "every hook point takes a pass")
    options: dict[str, Any] = {
        "positions": positions, "batch_size": batch_size, "max_tokens": max_tokens,
    }  # fmt: skip
    stats = collect(model, data, names, objective=None, progress=False, **options)
    n_tokens = stats[names[0]].n_tokens
    if not n_tokens:
        raise ValueError(
            "This process's share of the data is empty: use fewer processes, or more sequences."
        )
    note_what_goes_past(model, data, names, batch_size, max_tokens)
    variances = {name: _variances(kept[name], stats[name]) for name in names}
    passes = [
        (here, there, range(kept[there].n_components)[start : start + chunk])
        for here, there in pairwise(names)
        for start in range(0, kept[there].n_components, chunk)
    ]
    n_batches = count_batches(data, batch_size) if max_tokens is None else None
    bar = progress_bar("Edges", "batch", n_batches and n_batches * len(passes), progress)
    parts: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in pairwise(names)}
    with bar:
        for here, there, j in passes:
            probe = coordinate_probe(there, kept[there], j.start, j.stop, exact, positions, seed)
            stream = stream_pairs(model, data, here, objective=probe, **options)
            slopes = _squared_slopes((found[here] for found in stream), kept[here], len(j), bar)
            parts[here, there].append(variances[here][:, None] * slopes)
    edges = {pair: torch.cat(columns, dim=1) for pair, columns in parts.items()}
    return InteractionGraph(variances, edges, kept, n_tokens)


def _variances(basis: Basis, moments: Moments) -> Float[Tensor, " k"]:
    """Var(z_i), about the mean, wherever the basis is centred."""
    activation = moments.require("activation")
    if activation.width != basis.width:
        raise ValueError(
            f"The basis has width {basis.width}, but {moments.provenance.hook_point!r} carries width "
            f"{activation.width}: make one there."
        )
    covariance = activation.about(activation.mean).cpu() / moments.n_tokens
    return (basis.encoder * (covariance @ basis.encoder)).sum(0).clamp(min=0)


def _squared_slopes(
    stream: Iterable[Pairs], source: Basis, n_targets: int, bar: Any
) -> Float[Tensor, "source target"]:
    """Σ (∂z'_j/∂z_i)² per token of the stream."""
    slopes = torch.zeros(source.n_components, n_targets, dtype=torch.float64, device="cpu")
    n_tokens = 0
    for pairs in stream:
        n_tokens += pairs.n_tokens
        g = pairs.rows()[1].double()
        along = g @ source.decoder.mT.to(g.device)
        # Samples are [position,] coordinate: positions are summed over.
        squared = reduce(
            along.square(), "(pos target) token source -> source target", "sum", target=n_targets
        )
        slopes += squared.cpu()
        bar.update()
    return slopes / n_tokens


def used(basis: Basis, threshold: float = 0.0) -> Basis:
    """The components with Λ_i > threshold · max Λ: those both present and used.

    Nor those that moments of float32 products cannot tell from zero: with A_jj = Σ_i Λ_i D_ij² the diagonal
    of what was decomposed, rounding alone makes Λ_i as large as √d 2⁻²³ Σ_j E_ji² A_jj.

    Raises:
        ValueError: if there are none, or for a basis per head.
    """
    if basis.per_head:
        raise ValueError("A basis per head has no interactions here: make one over all heads.")
    values = basis.eigenvalues
    diagonal = einsum("k, k d -> d", values, basis.decoder.square())
    share = einsum("d k, d -> k", basis.encoder.square(), diagonal)
    rounding = _ROUNDING * basis.width**0.5 * share
    kept = (values > threshold * values.max()) & (values > rounding)
    if not bool(kept.any()):
        raise ValueError(
            f"No component at {basis.provenance.hook_point!r} has an eigenvalue above the threshold "
            f"{threshold}: nothing there varies and is used downstream."
        )
    return replace(
        basis, encoder=basis.encoder[:, kept], decoder=basis.decoder[kept], eigenvalues=values[kept]
    )


def _several(model: Any, hook_points: NamesFilter) -> list[str]:
    names = resolve(model, hook_points)
    if len(names) < 2:
        raise ValueError(
            f"Only {names[0]!r} was given; interactions need at least two hook points, from first to "
            "last."
        )
    return names


def _named(basis: Basis, objective: str) -> Basis:
    return replace(basis, method=METHOD, provenance=replace(basis.provenance, objective=objective))
