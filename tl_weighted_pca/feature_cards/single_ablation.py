"""What a model loses with one component ablated and all others left."""

from __future__ import annotations

from typing import Any

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.node_ablation import score_edits
from tl_weighted_pca.feature_cards.components import Components


def single_ablations(
    model: Any, data: Any, components: Components, hook_point: str, **options: Any
) -> AblationCurves:
    """The score with f ↦ f − z_i D_i at a hook point, for each component i alone.

    Options are those of `ablation_curves`, which keeps what is ablated here and ablates the rest.

    Returns:
        Curves of one rank, d − 1, by the component's name.
    """
    removals = {name: [components.removal(i)] for i, name in enumerate(components.names)}
    width = components.basis.width
    return score_edits(model, data, hook_point, removals, ranks=[width - 1], width=width, **options)
