"""What a model loses with one component ablated and all others left."""

from __future__ import annotations

from typing import Any

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.scored_pass import scores_of_edits, warn_where_nothing_changes
from tl_weighted_pca.feature_cards.components import Components


def single_ablations(
    model: Any, data: Any, components: Components, hook_point: str, **options: Any
) -> AblationCurves:
    """The score with f ↦ f − z_i D_i at a hook point, for each component i alone.

    Options are those of `ablation_curves`, which keeps what is ablated here and ablates the rest.

    Returns:
        Curves of one rank, d − 1, by the component's name.
    """
    edits = [{hook_point: components.removal(i)} for i in range(len(components.names))]
    scores = scores_of_edits(model, data, edits, **options)
    warn_where_nothing_changes(scores.edited, scores.baseline)
    width = components.basis.width
    rows = {name: slice(i, i + 1) for i, name in enumerate(components.names)}
    return scores.curves(rows, ranks=[width - 1], width=width, hook_point=hook_point)
