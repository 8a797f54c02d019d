"""What sums take, told and checked before anything is added to them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch


class Budget:
    """The memory of the sums of several hook points, as the first batch shows how wide each is.

    Args:
        n: how many hook points there are.
        tell: what takes a line about it once all are known.
    """

    def __init__(self, n: int, tell: Callable[[str], None]) -> None:
        self._n, self._tell, self._known = n, tell, 0
        self._sums: Counter[torch.device] = Counter()
        self._products: Counter[torch.device] = Counter()
        self._free: dict[torch.device, int | None] = {}

    def take(self, home: torch.device, sums: int, device: torch.device, products: int) -> None:
        """Count one hook point's sums, and the products of a batch that are held until it is whole.

        Raises:
            MemoryError: if there is less than that, with what to do.
        """
        self._known += 1
        self._sums[home] += sums
        self._products[device] += products
        for place in (home, device):
            if place not in self._free:
                self._free[place] = free_memory(place)
            need, free = self._sums[place] + self._products[place], self._free[place]
            if free is not None and need > free:
                raise MemoryError(
                    f"The sums at {self._known} of {self._n} hook points alone take {in_bytes(need)} on "
                    f"{place}, where {in_bytes(free)} are free: ask for fewer hook points, for fewer "
                    "statistics (a mapping says which where), or for sums_dtype='float32' or "
                    "sums_device='cpu'."
                )
        if self._known == self._n:
            told = ", ".join(f"{in_bytes(n)} on {place}" for place, n in self._sums.items())
            points = "1 hook point" if self._n == 1 else f"{self._n} hook points"
            self._tell(f"The sums at {points} take {told}.")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had; None where nobody says."""
    if device.type == "cuda":
        # What torch has reserved and does not use is free to us.
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + spare
    if device.type != "cpu":
        return None
    limits = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        limits.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # a container's own limit, less what it uses
        group = Path("/sys/fs/cgroup")
        most, used = (int((group / f"memory.{x}").read_text()) for x in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        limits.append(most - used + int(stat.get("inactive_file", 0)))
    return min(limits, default=None)


def in_bytes(n: float) -> str:
    """Such as "4.9 GB"."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.1f} GB"
