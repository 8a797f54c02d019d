"""A network whose directions are known: one hidden ReLU layer that squares its input.

For a scalar x and no bias the hidden activations are x·ReLU(E) for x > 0 and |x|·ReLU(−E) for x < 0,
E the input weights. So uncentred activation PCA spans ⟨ReLU(E), ReLU(−E)⟩: two directions that the
network does not read separately. What it reads is one direction, w_out, and every gradient of its
output is a multiple of it: gradient PCA returns w_out alone. That would be so untrained as well; with
a second output gradient PCA must find the span of both output directions, and their shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.toy.hooked_mlp import HookedMLP
from tl_weighted_pca.toy.small_networks import train

HIDDEN = "layers.0.hook_post"
"""The hook point of the hidden activations."""


@dataclass(frozen=True)
class SquareNetwork:
    """A trained network and what it was trained on."""

    model: HookedMLP
    """x -> W_out ReLU(E x + b): `HIDDEN` is where its hidden activations pass."""
    x: Float[Tensor, "n 1"]
    y: Float[Tensor, "n outputs"]
    error: float
    """Mean squared error at the end of training, over inputs and outputs."""

    @property
    def input_weights(self) -> Float[Tensor, " hidden"]:
        """E."""
        return self.model.weights()[0].matrix.detach()[0]

    @property
    def output_weights(self) -> Float[Tensor, "hidden outputs"]:
        """w_out, one column an output."""
        return self.model.weights()[1].matrix.detach()


def square_network(
    *,
    hidden: int = 32,
    bias: bool = True,
    second: Callable[[Tensor], Tensor] | None = None,
    steps: int = 3000,
    seed: int = 0,
) -> SquareNetwork:
    """Train ReLU(x·E + b)·w_out on y = x² over [−1, 1].

    Without a bias the network is linear on either side of zero, and can only draw a V.

    Args:
        hidden: width of the hidden layer.
        bias: whether both layers have one.
        second: a second function to learn, such as `wave`, as a second output.
        steps: of training.
        seed: of the initial weights.
    """
    x = torch.linspace(-1, 1, 513)[:, None]
    y = x.square() if second is None else torch.cat([x.square(), second(x)], 1)
    model = HookedMLP([1, hidden, y.shape[1]], bias=bias, seed=seed)
    train(model, x, y, steps=steps, learning_rate=2e-2)
    with torch.no_grad():
        error = float((model(x) - y).square().mean())
    return SquareNetwork(model, x, y, error)


def wave(x: Tensor) -> Tensor:
    """½ sin(πx): odd where x² is even, so that neither output helps with the other."""
    return 0.5 * torch.sin(math.pi * x)
