"""The processes that torchrun starts: each collects its share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn


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
        # torchrun ends all when one fails, be it at its very end: not before the first has written.
        wait()
    finally:
        dist.destroy_process_group()


def share(data: Any, max_tokens: int) -> tuple[Any, int | None]:
    """This process's share of the first `max_tokens` tokens, and the limit that is still to be kept."""
    from tl_weighted_pca.data.batches import batches
    from tl_weighted_pca.data.sharding import shard

    which: dict[str, int] = {"rank": rank(), "world_size": world_size()}
    if world_size() == 1:
        return shard(data, **which), max_tokens
    count = sum(len(batch.inputs) for batch in batches(data, max_tokens=max_tokens))
    first = data.select(range(count)) if hasattr(data, "select") else data.take(count)
    return shard(first, **which), None


@contextmanager
def together() -> Iterator[None]:
    """What takes every process; raises ConnectionError when another process has stopped."""
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


def leave(code: str | int | None) -> NoReturn:
    """End this process of torchrun, whose work is done, without tearing down the libraries.

    In one of 24 runs a native library aborted there, after the interpreter had gone, and torchrun
    then stopped the other processes and called the whole run failed.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
