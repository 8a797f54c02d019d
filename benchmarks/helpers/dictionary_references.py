"""SAELens's own dictionaries, from its own trainers, on the rows that ours are trained on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

LEVELS = {
    "sae_lens batchtopk": (3, 5, 8, 12, 20),
    "sae_lens jumprelu": (0.5, 0.3, 0.15, 0.08, 0.03),
    "sae_lens topk": (3, 5, 8, 12, 20),
    "sae_lens standard": (1.5, 0.8, 0.4, 0.2, 0.1),
}
"""k, or the weight of the penalty."""
RATE_THERE = {
    "sae_lens batchtopk": 0.01,
    "sae_lens jumprelu": 0.01,
    "sae_lens topk": 0.003,
    "sae_lens standard": 0.02,
}
"""Step sizes of the tables."""


class Reference:
    """An inference SAE of SAELens on activations c + s·x, as the scores want it."""

    def __init__(self, sae: object, center: Float[Tensor, " d"], scale: float) -> None:
        self.sae, self.center, self.scale = sae, center, scale
        with torch.no_grad():
            eye = torch.eye(sae.cfg.d_sae)
            self.decoder = scale * (sae.decode(eye) - sae.decode(torch.zeros_like(eye)))

    def encode(self, x: Tensor) -> Tensor:
        return self.sae.encode((x - self.center) / self.scale)

    def decode(self, f: Tensor) -> Tensor:
        return self.center + self.scale * self.sae.decode(f)

    def __call__(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def reference(
    kind: str,
    level: float,
    draw: Callable[[], Tensor],
    center: Tensor,
    scale: float,
    *,
    features: int,
    steps: int,
    batch_size: int,
    seed: int,
    learning_rate: float,
) -> Reference:
    """Train one on centred activations of unit root mean square, with the schedule that ours have."""
    from sae_lens import SAE
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    sizes = {"d_in": len(center), "d_sae": features}
    warm = steps // 10
    makers = {
        "topk": lambda: TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=int(level))),
        "batchtopk": lambda: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=level)),
        "jumprelu": lambda: JumpReLUTrainingSAE(
            JumpReLUTrainingSAEConfig(**sizes, l0_coefficient=level, l0_warm_up_steps=warm)
        ),
        "standard": lambda: StandardTrainingSAE(
            StandardTrainingSAEConfig(**sizes, l1_coefficient=level, l1_warm_up_steps=warm)
        ),
    }
    sae = makers[kind.removeprefix("sae_lens ")]()
    config = SAETrainerConfig(
        steps * batch_size, batch_size, lr=learning_rate, lr_end=0.0, lr_warm_up_steps=steps // 50,
        lr_decay_steps=3 * steps // 10, dead_feature_window=steps // 15,
    )  # fmt: skip
    SAETrainer(config, sae, iter(lambda: (draw() - center) / scale, None)).fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return Reference(SAE.load_from_disk(folder), center, scale)
