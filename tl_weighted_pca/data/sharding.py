"""Each process its share of the data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from tl_weighted_pca.support.whole_numbers import checked_count


@dataclass(frozen=True)
class Shard:
    """The share of one process: to be passed wherever data are.

    Rows of a tensor or a `datasets.Dataset` are shared out in contiguous runs, rows of a streaming
    dataset and the batches of any other iterable in turn: every process reads the whole stream, and keeps
    its rows. Sequences keep their place in the whole, so that what is random about them does not depend on
    the number of processes. A share may be empty.
    """

    data: Any
    """The whole data, the same in every process."""
    rank: int
    """Which share, from 0."""
    world_size: int
    """How many shares there are."""

    @classmethod
    def of(cls, data: Any) -> Shard:
        """Data as a share: what is none yet is the only one."""
        return data if isinstance(data, cls) else cls(data, 0, 1)

    def rows(self, count: int) -> range:
        """Those of `count` rows that are in this share: a run whose length differs by at most one."""
        each, left = divmod(count, self.world_size)
        start = each * self.rank + min(self.rank, left)
        return range(start, start + each + (self.rank < left))


def shard(data: Any, *, rank: int | None = None, world_size: int | None = None) -> Shard:
    """This process's share of the data, for `collect(model, shard(data), …).all_reduce()`.

    Args:
        data: anything that `collect` takes, the same in every process.
        rank: which share; by default this process's rank in torch.distributed.
        world_size: how many; by default the number of processes, and one where there is no
            torch.distributed.

    Raises:
        ValueError: if only one of `rank` and `world_size` is given, or they do not fit.
        RuntimeError: if torchrun started several processes, and none of them called
            `torch.distributed.init_process_group`.
    """
    if isinstance(data, Shard):
        raise ValueError("The data are a share already: shard them once.")
    if (rank is None) != (world_size is None):
        raise ValueError("Pass both rank and world_size, or neither.")
    if rank is None or world_size is None:
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if running() else (0, 1)
    world_size = checked_count("world_size", world_size)
    if not 0 <= checked_count("rank", rank, least=0) < world_size:
        raise ValueError(
            f"rank is {rank} of world_size {world_size}; expected 0..{world_size - 1}."
        )
    return Shard(data, rank, world_size)


def running() -> bool:
    """Whether torch.distributed is there to be used.

    Raises:
        RuntimeError: if it is not, but torchrun started several processes.
    """
    if dist.is_available() and dist.is_initialized():
        return True
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RuntimeError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but torch.distributed is not "
            "initialised: call torch.distributed.init_process_group first."
        )
    return False
