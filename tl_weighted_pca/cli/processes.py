"""The processes that torchrun starts: each collects its share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def rank() -> int:
    """This process's number; 0 where torchrun started none."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device(wanted: str | None) -> str | None:
    """The device asked for; under torchrun and by default, a GPU a process where there are any."""
    import torch

    if wanted is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return wanted


@contextmanager
def joined() -> Iterator[None]:
    """torch.distributed among the processes of torchrun; nothing where there is one process.

    Raises:
        ConnectionError: when another process has died.
    """
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError):
            raise
        raise ConnectionError(f"Rank {rank()}: {error}") from error
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Until every process is here."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
