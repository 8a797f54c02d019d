"""What a direction says to the unembedding by itself: the direct path, through the final norm."""

from __future__ import annotations

import re
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_weighted_pca.models.pushes import scale_to_stream

_STREAM = re.compile(
    r"hook_(pos_)?embed|(pos_)?embed\.hook_out|"
    r"blocks\.\d+\.(hook_resid_(pre|mid|post)|hook_(in|out)|hook_(attn|mlp)_out)"
)
"""Hook points that carry the residual stream, or what is added to it."""

_IS_THE_STREAM = re.compile(r"blocks\.\d+\.(hook_resid_(pre|mid|post)|hook_(in|out))")

_NEURONS = re.compile(r"blocks\.(\d+)\.mlp\.(hook_post|out\.hook_in)")
_HEADS = re.compile(r"blocks\.(\d+)\.attn\.(hook_z|o\.hook_in)")


def direct_logits(
    model: Any, hook_point: str, directions: Float[Tensor, "n d"]
) -> Float[Tensor, "n vocab"]:
    """ℓ = u − mean(u), u = N(D W) W_U: the logits of a stream that holds nothing but the direction.

    W takes the hook point to the residual stream: the identity on the stream and on what is added to
    it, W_out for neurons, W_O for heads, times a constant where the model has one; a pass on a few
    tokens tells whether that is all. N is the final norm without its bias, D W centred if the norm
    centres, divided by its own size and times the gain: in the model the stream's size divides
    instead, a positive number that differs between positions, so the order of the tokens and the
    ratios of ℓ are those of the model's direct path, and the scale is not. The mean over the
    vocabulary is taken off since softmax does not see it. The model's own norm is asked, so hooks of
    yours on it see the directions.

    Args:
        model: a HookedTransformer or TransformerBridge.
        hook_point: where the directions are.
        directions: D, one a row.

    Raises:
        ValueError: if no linear map leads from the hook point to the residual stream, or the model
            has no unembedding.
    """
    unembedding = getattr(model, "W_U", None)
    if not isinstance(unembedding, Tensor):
        raise ValueError(
            f"The {type(model).__name__} has no unembedding W_U: no tokens to promote."
        )
    if unembedding.is_meta:
        raise ValueError(
            "The model's weights are offloaded (accelerate), so no tokens can be told: load it whole."
        )
    written = directions.to(unembedding.device, torch.float32) @ _written(
        model, hook_point, directions.shape[-1], unembedding
    )
    read = _normed(getattr(model, "ln_final", None), written, unembedding.dtype)
    # Piece by piece: a float32 copy of a large vocabulary's unembedding is gigabytes.
    pieces = [read @ piece.float() for piece in unembedding.detach().split(2**14, dim=1)]
    logits = torch.cat(pieces, 1)
    return (logits - logits.mean(1, keepdim=True)).cpu().double()


def _normed(norm: Any, written: Tensor, dtype: torch.dtype) -> Float[Tensor, "n d_model"]:
    """N(D W), asked of the model's own norm, since families differ in what gain and bias mean."""
    if norm is None or isinstance(norm, nn.Identity):
        return written
    # Large, so that the norm's ε is nothing beside it; and its odd part, where the bias cancels.
    size = written.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
    large = (100 * written / size).to(dtype)[None]
    with torch.no_grad():
        return (norm(large) - norm(-large))[0].float() / 2


def _written(model: Any, hook_point: str, width: int, like: Tensor) -> Float[Tensor, "d d_model"]:
    """W, from the hook point to the residual stream."""
    d_model = like.shape[0]
    matrix: Tensor | None = None
    if _STREAM.fullmatch(hook_point):
        matrix = torch.eye(d_model, device="cpu")
    elif found := _NEURONS.fullmatch(hook_point):
        matrix = getattr(model.blocks[int(found[1])].mlp, "W_out", None)
    elif found := _HEADS.fullmatch(hook_point):
        matrix = model.blocks[int(found[1])].attn.W_O
        matrix = matrix.flatten(0, 1) if matrix.ndim == 3 else matrix
    if matrix is None:  # experts have no one W_out either
        raise ValueError(
            f"No linear map leads from {hook_point!r} to the residual stream, so what its directions "
            "promote is not known: choose the stream, mlp.hook_post or attn.hook_z for that."
        )
    if tuple(matrix.shape) != (width, d_model):
        raise ValueError(
            f"The weights behind {hook_point!r} have shape {tuple(matrix.shape)}, but its directions "
            f"have width {width} and the stream {d_model}: no tokens can be told."
        )
    matrix = matrix.detach().to(like.device, torch.float32)
    if _IS_THE_STREAM.fullmatch(hook_point):
        return matrix
    scale = scale_to_stream(model, hook_point, matrix)
    if scale is None:
        raise ValueError(
            f"What is added at {hook_point!r} does not reach the residual stream through its weights alone: "
            "a norm lies between, or a hook of yours, so no tokens can be told; choose a hook point on the "
            "stream."
        )
    return scale * matrix
