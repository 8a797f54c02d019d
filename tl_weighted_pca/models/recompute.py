"""Activations dropped in the forward pass and computed again in the backward one, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class SecondRun:
    """Whether part of the model is being computed again: a context that may be entered many times."""

    now = False

    def __enter__(self) -> None:
        self.now = True

    def __exit__(self, *error: object) -> None:
        self.now = False


@contextmanager
def recomputed(model: Any, again: SecondRun) -> Iterator[None]:
    """Keep only the inputs of each of `model.blocks` for the backward pass.

    What is inside a block is computed once more when the backward pass arrives there: the peak falls
    from all blocks' graphs to one block's, for one more forward pass.

    Args:
        model: a HookedTransformer, a TransformerBridge, or any model with a list `blocks` of modules.
        again: the context in which a block runs for the second time.

    Raises:
        ValueError: if the model has no such list.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ValueError(
            f"recompute=True works block by block, but this {type(model).__name__} has no list "
            "`blocks` of modules: leave it out, or use smaller batches."
        )
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_forward_replaced(block, again))
        yield


@contextmanager
def _forward_replaced(block: nn.Module, again: SecondRun) -> Iterator[None]:
    # Straight into the instance's dictionary, where there may already be one: a bridge hands on what
    # is assigned to it to the module that it wraps.
    attributes = vars(block)
    forward, own = block.forward, attributes.get("forward")

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not any(_carries_gradient(x) for x in (*args, *kwargs.values())):
            return forward(*args, **kwargs)  # ahead of the first hook point: there is no graph
        # A cache of keys and values would take those of the second run as those of more tokens.
        args = tuple(None if _is_cache(x) else x for x in args)
        kwargs = {key: None if _is_cache(x) else x for key, x in kwargs.items()}
        return checkpoint(
            forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again), **kwargs
        )

    attributes["forward"] = checkpointed
    try:
        yield
    finally:
        if own is None:
            del attributes["forward"]
        else:
            attributes["forward"] = own


def _carries_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _is_cache(value: Any) -> bool:
    """Whether a block's argument is a cache of transformers, told by what it can do."""
    return hasattr(value, "get_seq_length")
