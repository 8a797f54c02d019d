"""How many components to keep at each of several hook points."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tl_weighted_pca.bases.basis import Basis, check_bases
from tl_weighted_pca.bases.metric import METRIC_NAMES
from tl_weighted_pca.support.whole_numbers import checked_count


def allocate_ranks(
    bases: Mapping[str, Basis], *, total: int | None = None, predicted: float | None = None
) -> dict[str, int]:
    """argmin_k Σ_s ½ Σ_{i>k_s} Λ_si with Σ_s k_s = total: components across hook points s.

    The eigenvalues of Fisher-metric and trained bases are in nats per token wherever they were made, so the
    largest of all are kept: at the margin every hook point loses as much. Use the result as a rank of
    `ablation_curves`.

    Args:
        bases: by hook point.
        total: the components to keep in all.
        predicted: instead, a loss in nats per token: the smallest total whose prediction is at most that.

    Returns:
        Components by hook point.

    Raises:
        TypeError: for what is no dict of bases.
        ValueError: unless exactly one of `total` and `predicted` is given; if it cannot be met; for bases
            per head, and for those whose eigenvalues are not nats.
    """
    check_bases(bases, "from hook points to Basis, such as {hook_point: wpca.metric_pca(moments)}")
    if not bases:
        raise ValueError("No bases were given; pass a dict of bases by hook point.")
    for place, basis in bases.items():
        _check_nats(place, basis)
    if (total is None) == (predicted is None):
        raise ValueError("Pass either total=, a number of components, or predicted=, a loss.")
    places = list(bases)
    eigenvalues = torch.cat([bases[place].eigenvalues for place in places])
    owner = torch.cat(
        [torch.full((bases[p].n_components,), i, device="cpu") for i, p in enumerate(places)]
    )
    order = eigenvalues.argsort(descending=True, stable=True)
    if total is None:
        assert predicted is not None
        lost = sum(float(basis.total) for basis in bases.values()) / 2
        left = lost - torch.cat([eigenvalues.new_zeros(1), eigenvalues[order].cumsum(0)]) / 2
        rounding = 1e-12 * lost
        if not float(left[-1]) <= predicted + rounding:
            raise ValueError(
                f"predicted is {predicted}, but with all {len(order)} components the prediction is "
                f"{float(left[-1]):.3g} nats: expected no less."
            )
        total = int((left > predicted + rounding).sum())
    if checked_count("total", total, least=0) > len(order):
        raise ValueError(
            f"total is {total}; expected at most {len(order)}, the components of all these bases."
        )
    kept = owner[order[:total]].bincount(minlength=len(places))
    return dict(zip(places, kept.tolist(), strict=True))


def has_metric(basis: Basis, objective: str) -> bool:
    """Whether a basis is PCA in the gradient second moment of an objective, so that ½Λ are losses of it."""
    objective = objective.partition("(")[0]
    name = METRIC_NAMES.get(objective, objective)
    return basis.method == f"metric_pca({name})"


def _check_nats(place: str, basis: Basis) -> None:
    """Raise ValueError for a basis whose eigenvalues are not losses in nats, and for one per head."""
    if basis.per_head:
        raise ValueError(
            f"The basis at {place!r} is per head and keeps as many components in every head: allocate "
            "among bases of whole hook points."
        )
    trained = basis.method == "optimize_basis" and basis.n_components == basis.width
    if not (has_metric(basis, "sampled_token_loss") or trained):
        raise ValueError(
            f"The eigenvalues of the basis at {place!r} ({basis.method or 'unnamed'}) are not in nats, and "
            "cannot be weighed against another hook point's: pass bases of metric_pca with gradients of "
            "sampled_token_loss, or of optimize_basis with k=None."
        )
