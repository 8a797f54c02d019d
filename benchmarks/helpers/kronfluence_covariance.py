"""The other side of `collect.py`'s last table: kronfluence's covariance fit, on a model both can take.

kronfluence tracks `nn.Linear`, which TransformerLens's own models have none of, and `collect` wants
hook points: so the model here has both, residual MLP blocks of GPT-2's width between an embedding and
an unembedding. For each linear map kronfluence fits Σ a aᵀ of its inputs and Σ g gᵀ of its output
gradients; the same two are collected at the hook points around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from kronfluence.analyzer import prepare_model
from kronfluence.arguments import FactorArguments
from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
from kronfluence.task import Task
from kronfluence.utils.state import State
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformer_lens.hook_points import HookPoint

import tl_weighted_pca as wpca

try:  # where TransformerLens 4 has it, and late releases of 3
    from transformer_lens.HookedRootModule import HookedRootModule
except ImportError:
    from transformer_lens.hook_points import HookedRootModule


class Block(nn.Module):
    """x -> x + W₂ gelu(W₁ norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.up_in, self.up_out, self.down_in, self.down_out = (HookPoint() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up_out(self.up(self.up_in(self.norm(x))))
        return x + self.down_out(self.down(self.down_in(F.gelu(hidden))))


class LinearBlocks(HookedRootModule):
    """Logits [batch, pos, vocab] of tokens [batch, pos]."""

    def __init__(self, width: int, n_layers: int, n_tokens: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(n_tokens, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(n_layers))
        self.unembed = nn.Parameter(torch.randn(width, n_tokens) / width**0.5)
        self.setup()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return x @ self.unembed

    def points(self, side: str) -> list[str]:
        """The hook points before ("in") or after ("out") the linear maps."""
        return [f"blocks.{i}.{m}_{side}" for i in range(len(self.blocks)) for m in ("up", "down")]


class NextToken(Task):
    """The summed next-token loss of the data, as `next_token_loss`."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        tokens = batch[0]
        logits = model(tokens)[:, :-1].flatten(0, 1)
        return F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return [p.removesuffix("_out") for p in LinearBlocks.points(self.model, "out")]

    def __init__(self, model: LinearBlocks) -> None:
        self.model = model


def our_fit(
    model: LinearBlocks, tokens: Tensor, batch_size: int | None = None
) -> Callable[[], wpca.Collection]:
    """A call that collects the same moments, and no others, in one pass; in one batch, if not told."""
    before, after = model.points("in"), model.points("out")
    kept = dict.fromkeys(before, "activation") | dict.fromkeys(after, "gradient")

    def fit() -> wpca.Collection:
        options = {"batch_size": batch_size or len(tokens), "progress": False}
        return wpca.collect(model, tokens, before + after, statistics=kept, **options)

    return fit


def covariance_fit(
    model: LinearBlocks, tokens: Tensor, batch_size: int | None = None
) -> Callable[[], Any]:
    """A call that fits kronfluence's covariance matrices; in one batch, if not told."""
    task = NextToken(model)
    weight = next(model.parameters())
    prepared = prepare_model(model, task).to(weight)  # its own parameters are made on the CPU
    state = State(cpu=weight.is_cpu)
    loader = DataLoader(TensorDataset(tokens), batch_size=batch_size or len(tokens))
    arguments = FactorArguments(use_empirical_fisher=True)

    def fit() -> Any:
        return fit_covariance_matrices_with_loader(
            prepared, state, task, loader, arguments, disable_tqdm=True
        )

    return fit
