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
def joined(wanted: str | None) -> Iterator[None]:
    """torch.distributed among the processes of torchrun; nothing where there is one process.

    By NCCL where `device` gives each a GPU of its own, else by gloo, which also joins processes that
    were sent to the CPU or to one GPU.
    """
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    own = None if wanted else device(None)
    if own is not None:
        torch.cuda.set_device(own)
    dist.init_process_group("gloo" if own is None else "nccl")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """What takes every process.

    Raises:
        ConnectionError: when another process has stopped.
    """
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"Process {rank()} stops, because another one did, which says why."
        ) from error


def wait() -> None:
    """Until every process is here."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        with together():
            dist.barrier()
