"""Products of float32 matrices that keep float32's digits."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 or bfloat16 products inside, unless torch was set for one backend alone; restored after."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set for one backend alone, and torch lets nobody mix the two ways
        yield
        return
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
