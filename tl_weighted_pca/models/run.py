"""One run of a model over a batch, as objectives and scores see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """One forward pass over a batch, as an objective or a score sees it.

    Attributes:
        output: what the model returned: logits [batch, pos, vocab] for a language model.
        inputs: what the model was fed, [batch, …].
        mask: [batch, pos], True at real tokens; None where there is no padding.
        sequence_index: [batch], the place of each sequence in the data: the seed of what is random.
        activations: those of the hook points that are collected, by name, as part of the graph.
        reference: for a score of an ablated run: the unablated model's output. Else None.
    """

    output: Any
    inputs: Shaped[Tensor, "batch ..."]
    mask: Bool[Tensor, "batch pos"] | None
    sequence_index: Int[Tensor, " batch"]
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    reference: Any = None
