"""Whether weights lead from their input's hook point to their output's: asked of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from tl_weighted_pca.data.batches import Batch, batches
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.models.weights import Weight
from tl_weighted_pca.objectives.losses import Objective
from tl_weighted_pca.streaming.pairs import stream_pairs

# Pieces of two sequences each that are looked at, until every weight has been told right from wrong.
_PIECES = 16
# By whether all is in float32: what may be left of the spread of h, and of a gradient, and how many
# roundings of h may be left besides.
_LEFT = {True: 1e-4, False: 5e-2}
_LEFT_OF_GRADIENT = {True: 1e-3, False: 1e-1}
_ROUNDINGS = {True: 16.0, False: 1.0}


def check_weights(
    model: Any,
    data: Any,
    weights: Sequence[Weight],
    objective: Objective,
    positions: Positions = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
) -> set[str]:
    """Raise ValueError unless h − xA is constant over the first sequences, for each weight.

    It guards against a matrix that was folded, transposed, grouped or rotated otherwise than its
    hook points say.

    Returns:
        Hook points of x whose gradient goes through the weights listed and past none of them:
        g_x = Σ g_h Aᵀ. Elsewhere a skip path or, in parallel, another module reads x as well.
    """
    unchecked = [weight for weight in weights if weight.writes is not None]
    # Without a pre-activation there is nothing to compare with: who lists such a weight vouches for it.
    alone = {weight.reads for weight in weights if weight.writes is None}
    if not unchecked:
        return alone
    undecided: dict[str, list[Weight]] = {}
    for weight in unchecked:
        undecided.setdefault(weight.reads, []).append(weight)
    names = dict.fromkeys(
        name for w in unchecked for name in (w.reads, w.writes, w.after) if name is not None
    )
    before: dict[str, Tensor] = {}
    pieces = _pieces(batches(data, batch_size, max_tokens=max_tokens, may_be_empty=False))
    for piece in islice(pieces, _PIECES):
        pairs = next(
            stream_pairs(model, [piece], list(names), objective=objective, positions=positions)
        )
        found = {name: _Seen(*pair.rows()) for name, pair in pairs.items()}
        # With one row of the piece before, pieces of a single row can be compared, too.
        rows = {
            name: torch.cat([before.get(name, seen.f[:0]), seen.f]) for name, seen in found.items()
        }
        before = {name: f[-1:] for name, f in rows.items()}
        unchecked = [weight for weight in unchecked if not _leads(weight, rows, found)]
        for name, sharing in list(undecided.items()):
            whole = found[name].g.norm()
            if whole > 0:
                del undecided[name]
                left = found[name].g - sum(
                    found[str(w.writes)].g @ w.matrix.detach().double().cpu().mT for w in sharing
                )
                if left.norm() <= _LEFT_OF_GRADIENT[_is_precise(sharing, found)] * whole:
                    alone.add(name)
        if not (unchecked or undecided):
            break
    if unchecked:
        weight = unchecked[0]
        raise ValueError(
            f"{weight.name} cannot be checked: over the first sequences what {weight.reads!r} and "
            f"{weight.writes!r} carry hardly varies. Pass other data or other positions, or leave it out."
        )
    return alone


class _Seen:
    """Activations and gradients of one hook point, in float64."""

    def __init__(self, f: Tensor, g: Tensor) -> None:
        self.itemsize, self.epsilon = f.itemsize, torch.finfo(f.dtype).eps
        self.f, self.g = f.double().cpu(), g.double().cpu()


def _pieces(cut: Iterable[Batch]) -> Iterator[Batch]:
    """Batches in twos: a loader's may be too large to hold all their gradients."""
    for batch in cut:
        for start in range(0, len(batch.inputs), 2):
            part = slice(start, start + 2)
            mask = None if batch.mask is None else batch.mask[part]
            yield Batch(batch.inputs[part], mask, batch.sequence_index[part])


def _is_precise(weights: Iterable[Weight], found: dict[str, _Seen]) -> bool:
    sizes = [found[str(name)].itemsize for w in weights for name in (w.reads, w.writes)]
    return min(*sizes, *(weight.matrix.itemsize for weight in weights)) >= 4


def _leads(weight: Weight, rows: dict[str, Tensor], found: dict[str, _Seen]) -> bool:
    """Whether it does lead from its input to its output; False where these rows cannot tell."""
    x, h = rows[weight.reads], rows[str(weight.writes)]
    matrix = weight.matrix.detach().double().cpu()
    if (x.shape[1], h.shape[1]) != tuple(matrix.shape):
        raise ValueError(
            f"{weight.name} has shape {tuple(matrix.shape)}, but {weight.reads!r} carries width "
            f"{x.shape[1]} and {weight.writes!r} width {h.shape[1]}: name the hook points at its "
            "own input and output."
        )
    if weight.after is not None and rows[weight.after].shape[1] != h.shape[1]:
        raise ValueError(
            f"{weight.name} is said to be followed by {weight.after!r}, which carries width "
            f"{rows[weight.after].shape[1]}, and not {h.shape[1]}: name the hook point past its own "
            "non-linearity."
        )
    if not len(h):
        return False
    image, precise = x @ matrix, _is_precise([weight], found)
    epsilon = max(found[str(name)].epsilon for name in (weight.reads, weight.writes))
    rounding = _ROUNDINGS[precise] * epsilon * max(h.norm(), image.norm())
    varied = max(_spread(image), _spread(h))
    if varied <= 2 * rounding:
        return False
    spread = _spread(h - image)
    if not spread <= _LEFT[precise] * varied + rounding:
        raise ValueError(
            f"{weight.name} does not lead from {weight.reads!r} to {weight.writes!r}: what is left "
            f"of the output varies by {spread / h.norm():.1e} of its norm, expected a constant bias. Name "
            "the hook points at its own input and output, or leave it out: pass the rest of "
            "tl_weighted_pca.models.weights.model_weights(model) as layers."
        )
    return True


def _spread(rows: Tensor) -> float:
    return float((rows - rows.mean(0)).norm())
