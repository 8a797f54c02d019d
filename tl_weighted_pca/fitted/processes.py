"""The processes that train one bottleneck together, each on its share of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tl_weighted_pca.data.batches import is_share


@dataclass(frozen=True)
class Processes:
    """How many there are, and which is this."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of(cls, data: Any) -> Processes:
        """All of torch.distributed where the data are a share; else this one alone."""
        if not is_share(data) or not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def added_up(self, mine: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.count == 1:
            return mine
        device = mine.device
        if dist.get_backend() == "nccl":
            device = torch.device("cuda", torch.cuda.current_device())
        total = mine.to(device, copy=True)
        dist.all_reduce(total)
        return total.to(mine.device)

    def gathered(self, mine: Tensor) -> Tensor:
        """The columns of all processes, in their order."""
        if self.count == 1:
            return mine
        every: list[Any] = [None] * self.count
        dist.all_gather_object(every, mine)
        return torch.cat(every, -1)

    def of_one(self, mine: Any, rank: int) -> Any:
        """What one of the processes has."""
        every = [mine]
        dist.broadcast_object_list(every, src=rank)
        return every[0]
