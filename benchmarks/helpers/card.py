"""A device as `gpu.py` measures it: seconds that wait for it, and its peak memory."""

from __future__ import annotations

import contextlib
import gc
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


class Card:
    """A GPU, or the CPU where one only wants to see that things run."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.is_gpu = self.device.type == "cuda"

    def __str__(self) -> str:
        """The card, its driver, and CUDA's version."""
        if not self.is_gpu:
            return "No GPU: what follows was computed on the CPU, to see that it runs"
        card, driver = torch.cuda.get_device_properties(self.device), "unknown"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
            driver = said.stdout.split()[0]
        return (
            f"{card.name}, {card.total_memory / 1e9:.0f} GB, compute capability {card.major}.{card.minor}, "
            f"driver {driver}, CUDA {torch.version.cuda}"
        )

    def seconds(self, call: Callable[[], Any]) -> float:
        """Seconds of a call, from an idle device to an idle device."""
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def peak(self, call: Callable[[], Any]) -> str:
        """MB that a call takes at its peak, above what was there."""
        gc.collect()
        if not self.is_gpu:
            call()
            return "–"
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        self._wait()
        return f"{(torch.cuda.max_memory_allocated(self.device) - before) / 1e6:,.0f}"

    def alternate(
        self, calls: Sequence[Callable[[], Any]], seconds: float, most: int = 7
    ) -> list[list[float]]:
        """Seconds of each call in each round, the order turning, until so many seconds are spent."""
        times: list[list[float]] = [[] for _ in calls]
        end = time.monotonic() + seconds
        for turn in range(most):
            for i in range(len(calls)):
                which = (i + turn) % len(calls)
                times[which].append(self.seconds(calls[which]))
            if time.monotonic() > end:
                break
        return times

    def _wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)


def ms(times: Sequence[float]) -> str:
    """The median, in milliseconds."""
    return f"{1e3 * statistics.median(times):,.4g}"
