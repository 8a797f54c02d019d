"""A plain multilayer perceptron with TransformerLens's hook points, for small studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from tl_weighted_pca.models.weights import Weight
from tl_weighted_pca.support.randomness import seeded
from tl_weighted_pca.support.whole_numbers import checked_counts

try:  # where TransformerLens 4 has it, and late releases of 3
    from transformer_lens.HookedRootModule import HookedRootModule
except ImportError:
    from transformer_lens.hook_points import HookedRootModule  # type: ignore[no-redef]


class HookedMLP(HookedRootModule):
    """h_l = x_l W_l + b_l, x_{l+1} = act(h_l), and the last h is the output.

    Hook points: `layers.{l}.hook_in` (x_l), `layers.{l}.hook_pre` (h_l) and, but for the last layer,
    `layers.{l}.hook_post` (act(h_l)).

    Args:
        widths: d_0, …, d_L: one layer fewer than widths.
        activation: the non-linearity; None for a linear network.
        bias: whether layers have biases.
        scale: of the initial weights, times the He scale √(2/d_in).
        seed: of the initial weights.

    Raises:
        ValueError: for fewer than two widths.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: Callable[[Tensor], Tensor] | None = torch.relu,
        *,
        bias: bool = True,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        if len(checked_counts("widths", widths, 1)) < 2:
            raise ValueError(f"widths is {list(widths)}; expected at least an input and an output.")
        super().__init__()
        generator = seeded(seed)
        self.layers = nn.ModuleList()
        for l, (d_in, d_out) in enumerate(pairwise(widths)):
            initial = torch.randn(d_in, d_out, generator=generator) * scale * (2 / d_in) ** 0.5
            last = l == len(widths) - 2
            self.layers.append(_Layer(initial, bias, None if last else activation, last))
        self.setup()

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        for layer in self.layers:
            x = layer(x)
        return x

    def weights(self) -> list[Weight]:
        """What `feature_ansatz` asks for."""
        n = len(self.layers)
        return [
            Weight(
                f"layers.{l}.W",
                layer.W,  # type: ignore[arg-type]
                f"layers.{l}.hook_in",
                f"layers.{l}.hook_pre",
                l,
                after=f"layers.{l}.hook_post" if l < n - 1 else None,
            )
            for l, layer in enumerate(self.layers)
        ]


class _Layer(nn.Module):
    def __init__(
        self, initial: Tensor, bias: bool, activation: Callable[..., Any] | None, last: bool
    ) -> None:
        super().__init__()
        self.W = nn.Parameter(initial)
        self.b = nn.Parameter(initial.new_zeros(initial.shape[1])) if bias else None
        self.activation = activation
        self.hook_in, self.hook_pre = HookPoint(), HookPoint()
        self.hook_post = None if last else HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        h = self.hook_in(x) @ self.W
        h = self.hook_pre(h if self.b is None else h + self.b)
        if self.hook_post is None:
            return h
        return self.hook_post(h if self.activation is None else self.activation(h))
