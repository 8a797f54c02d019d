"""Where do the two contractions of Σ Fᵀ(g gᵀ)F cross?

    short   K = (g gᵀ)F a sequence, then FᵀK over the whole batch: 2S²d a sequence, and S d² shared
    long    T = gᵀF a sequence, then TᵀT: S d² and d³ a sequence

Times both, at one number of rows, over ratios S/d: `row_metric._CROSSING` is set from this table.

    python benchmarks/contraction.py
"""

from __future__ import annotations

import argparse
import time

import torch
from helpers.page import made_on
from torch import Tensor

from tl_weighted_pca.moments.packed import symmetric_product


def short(rows: Tensor, g: Tensor) -> Tensor:
    mixed = (g @ g.mT) @ rows
    return symmetric_product(rows.flatten(-3, -2), mixed.flatten(-3, -2))


def long(rows: Tensor, g: Tensor) -> Tensor:
    crossed = (g.mT @ rows).flatten(-3, -2)
    return symmetric_product(crossed, crossed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the narrowest width alone")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds of one thread")
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    if options.cpu:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| d | S/d | S | short, ms | long, ms | long / short |")
    print("| --- | --- | --- | --- | --- | --- |")
    for width in (128,) if options.quick else (128, 256, 768):
        for ratio in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0):
            length = int(width * ratio)
            count = max(1, 1024 // length)
            rows, g = torch.randn(2, count, length, width)
            best = []
            for contraction in (short, long):
                contraction(rows, g)
                times = []
                for _ in range(options.rounds):
                    start = clock()
                    contraction(rows, g)
                    times.append(clock() - start)
                best.append(1e3 * min(times))
            print(
                f"| {width} | {ratio} | {length} | {best[0]:.2f} | {best[1]:.2f} | "
                f"{best[1] / best[0]:.2f} |",
                flush=True,
            )
    print(made_on())


if __name__ == "__main__":
    main()
