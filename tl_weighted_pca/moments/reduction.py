"""The sum of moments over processes.

Every process moves its moments to one common shift, and then c, b and G simply add:

    Σ_ranks c,   Σ_ranks b_σ,   Σ_ranks G_σ
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tl_weighted_pca.moments.packed import Packed
from tl_weighted_pca.moments.second_moment import Moments, Provenance, SecondMoment
from tl_weighted_pca.moments.statistics import STATISTICS


def all_reduce_moments(
    moments: Mapping[str, Moments], timeout: float | None, settings: Mapping[str, Any]
) -> tuple[dict[str, Moments], list[dict[str, Any]]]:
    """Moments by hook point, summed over the default process group, and every process's settings.

    Errors are those of `Collection.all_reduce`. Moments with no tokens need hold no statistics.
    """
    with _failure_explained():
        if dist.get_backend() == "gloo":
            limit = None if timeout is None else timedelta(seconds=timeout)
            dist.monitored_barrier(timeout=limit, wait_all_ranks=True)
        told: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(
            told, ({name: _outline(m, settings) for name, m in moments.items()}, settings)
        )
    outlines, others = [list(each) for each in zip(*told, strict=True)]
    # Every process checks the same outlines, so all of them raise or none.
    for rank, outline in enumerate(outlines):
        if set(outline) != set(outlines[0]):
            raise ValueError(
                f"Rank {rank} collected {', '.join(sorted(outline))}, but rank 0 "
                f"{', '.join(sorted(outlines[0]))}: collect the same hook points in every process."
            )
    with _failure_explained():
        summed = {n: _reduced(moments[n], [o[n] for o in outlines]) for n in outlines[0]}
    return summed, others


def _outline(moments: Moments, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the others must know of a process's moments before the sums are added."""
    held = moments.held if moments.n_tokens else {}
    return {
        "shifts": {kind: moment.shift.cpu() for kind, moment in held.items()},
        "n_tokens": moments.n_tokens,
        "n_sequences": moments.n_sequences,
        "provenance": moments.provenance,
        "counted": {name: settings.get(name) for name in ("positions", "outliers")},
    }


def _reduced(mine: Moments, outlines: list[dict[str, Any]]) -> Moments:
    holders = [outline for outline in outlines if outline["n_tokens"]]
    provenance: Provenance = (holders or outlines)[0]["provenance"]
    shifts: dict[str, Tensor] = holders[0]["shifts"] if holders else {}
    for outline in holders:
        theirs = {kind: shift.shape for kind, shift in outline["shifts"].items()}
        if theirs != {k: s.shape for k, s in shifts.items()} or not provenance.agrees_with(
            outline["provenance"]
        ):
            raise ValueError(
                f"The processes' collections do not match: {provenance} with statistics "
                f"{', '.join(shifts)}, but also {outline['provenance']} with {', '.join(theirs)}."
            )
        for name, counted in outline["counted"].items():
            if counted != holders[0]["counted"][name]:
                raise ValueError(
                    f"The processes collected at {name}={holders[0]['counted'][name]} and at "
                    f"{name}={counted}: collect at the same in all of them."
                )
    own = mine.held if mine.n_tokens else {}
    found = {kind: _summed(own.get(kind), shift) for kind, shift in shifts.items()}
    return Moments(
        **{kind: found.get(kind) for kind in STATISTICS},
        n_tokens=sum(outline["n_tokens"] for outline in outlines),
        n_sequences=sum(outline["n_sequences"] for outline in outlines),
        provenance=mine.provenance if mine.n_tokens else provenance,
    )


def _summed(own: SecondMoment | None, shift: Tensor) -> SecondMoment:
    """The sum of one second moment over the processes, about `shift`; None adds nothing."""
    device = _device()
    if own is None:
        lead, d = shift.shape[:-1], shift.shape[-1]
        first = torch.zeros((*lead, d), dtype=torch.float64, device=device)
        second = Packed.zeros(lead, d, dtype=torch.float64, device=device)
        part = SecondMoment(torch.zeros_like(first[..., 0]), first, second, shift.to(first))
    else:
        part = own.reshifted(shift.to(own.shift)).to(device)
    weight, first, flat = (
        _added_up(x) for x in (part.weight, part.shifted_first, part.packed_second.flat)
    )
    whole = SecondMoment(weight, first, Packed(flat, shift.shape[-1]), part.shift)
    return whole if own is None else whole.to(own.shift.device)


def _added_up(mine: Tensor) -> Tensor:
    total = mine.clone()
    dist.all_reduce(total)
    return total


def _device() -> torch.device:
    """Where the backend wants its tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextmanager
def _failure_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"all_reduce failed in rank {dist.get_rank()}: another process has died, or did not arrive "
            f"in time. What this process collected is unharmed: save it, or continue from the "
            f"checkpoints. ({error})"
        ) from error
