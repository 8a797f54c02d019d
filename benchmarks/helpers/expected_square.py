"""The second-order loss of an ablation without sampling: a derivative of the logits in its direction."""

from typing import Any

import torch

import tl_weighted_pca as wpca
from tl_weighted_pca.data.batches import batches


def expected_square(
    model: Any, data: Any, basis: wpca.Basis, k: int, *, step: float = 0.02
) -> float:
    """½ E(Σ_s g_s·δ_s)² per position: ½ Σ_t Var_p(J_t δ), J the logits' derivative, by central differences.

    Labels are independent given the text, so that the square's expectation is the sum over positions of the
    variance of J_tδ under the model's probabilities.
    """
    total = n = 0.0
    for batch in batches(data, 20):
        mask = torch.ones(batch.inputs.shape).bool() if batch.mask is None else batch.mask

        def logits(at: float, batch: Any = batch, mask: Any = mask) -> torch.Tensor:
            def hook(f: Any, hook: Any) -> Any:
                wide = f.double()
                return (wide + at * (basis.project(wide, k) - wide)).to(f)

            hooks = [(basis.provenance.hook_point, hook)]
            with torch.no_grad(), model.hooks(fwd_hooks=hooks):
                return model(batch.inputs, attention_mask=mask.long()).double()

        change, p = (logits(step) - logits(-step)) / (2 * step), logits(0).softmax(-1)
        variance = (p * change.square()).sum(-1) - (p * change).sum(-1).square()
        total, n = total + float((variance * mask).sum()) / 2, n + int(mask.sum())
    return total / n
