"""Wrote the files beside it, with version 0.1.0 at commit 293165e, before the package had rooms."""

import sys
from pathlib import Path

import torch

import tl_weighted_pca as wpca

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from conftest import TinyMLP  # noqa: E402


def inputs() -> torch.Tensor:
    return torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def collected(data: torch.Tensor, **options) -> wpca.Collection:
    objective = wpca.logit_probe()
    return wpca.collect(
        TinyMLP(), data, "hook_hidden", objective=objective, batch_size=2, progress=False, **options
    )


if __name__ == "__main__":
    stats = collected(inputs()[:4], checkpoint=HERE / "checkpoint.safetensors")
    stats.save(HERE / "collection.safetensors")
    wpca.metric_pca(stats["hook_hidden"]).save(HERE / "basis.safetensors")
