"""Fisher-metric bases layer by layer, each of activations that the earlier layers' ablations have changed.

Not in the package: `model_maps.py` measures them beside bases that are made independently of each other.
"""

import dataclasses
from functools import partial
from typing import Any

import tl_weighted_pca as wpca
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.models.downstream import edited_at
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import hooked
from tl_weighted_pca.moments.accumulator import MomentAccumulator
from tl_weighted_pca.streaming.recorder import Recorder


def sequential_bases(
    model: Any, data: Any, hook_points: list[str], share: float, batch_size: int
) -> dict[str, wpca.Basis]:
    """Fisher-metric PCA of f̃_l, what arrives at hook point l while those before it are ablated.

    E_l, D_l are those of `metric_pca` with the mean and covariance of f̃_l, and the Fisher metric of the
    unablated model; f̃_{l+1} is what follows from f̃_l ↦ μ + (f̃_l − μ)E_lD_l, that share of the width kept.

    Args:
        hook_points: in the order of the forward pass.
    """
    clean = wpca.collect(
        model, data, hook_points, objective=wpca.sampled_token_loss(), batch_size=batch_size,
        statistics=["activation", "gradient"], progress=False,
    )  # fmt: skip
    found: dict[str, wpca.Basis] = {}
    for place in hook_points:
        edits = {
            s: partial(basis.project, k=round(share * basis.width)) for s, basis in found.items()
        }
        accumulator = MomentAccumulator(statistics="activation")
        recorder = Recorder({place: accumulator}, {}, None)
        with quiet(model, gradients=False), recorder.attached(model):
            for batch in batches(data, batch_size):

                def hook(f: Any, hook: Any, edit: Any, mask: Any = batch.mask) -> Any:
                    return edited_at(edit, f, None, mask)

                with hooked(model, [(s, partial(hook, edit=edit)) for s, edit in edits.items()]):
                    recorder.run(model, batch)
        arrives = accumulator.result().activation
        found[place] = wpca.metric_pca(dataclasses.replace(clean[place], activation=arrives))
    return found
