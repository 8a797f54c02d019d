"""What does collecting cost, beside the forward and backward pass that it cannot do without?

Three sides take turns in one process, on a GPT-2-shaped model with random weights:

    floor   bare forward, `next_token_loss`, and a backward pass to the earliest hook point that
            computes no parameter gradient; nothing is kept. The loss is the collector's own, which is
            faster than TransformerLens's: the floor is as low as it can be.
    usual   the recipe of notebooks: forward and backward hooks that store, `loss.backward()`, then
            einsum for Σ FᵀF, Σ gᵀg and Σ Fᵀ(g gᵀ)F
    ours    `collect`, all three moments

    python benchmarks/collect.py                    # all tables, some ten minutes
    python benchmarks/collect.py --quick            # small shapes, under a minute: CI
    python benchmarks/collect.py --only recompute   # one of: time, memory, flat, recompute, kronfluence

Peak memory is the kernel's own high-water mark of resident memory (VmHWM), one process a side,
reset once the model is built, with an allocator that gives freed blocks back: Linux with glibc
only. Times are wall time, and want a quiet machine; `--cpu`
counts CPU seconds of one thread instead, which others who use the machine disturb less.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from helpers.collect_sides import (  # noqa: E402
    GPT2,
    SIDES,
    SMALL,
    build,
    hook_points,
    ours,
    random_tokens,
)
from helpers.page import made_on  # noqa: E402

import tl_weighted_pca as wpca  # noqa: E402

CLOCK = time.perf_counter
FURTHER = 2
"""Batches after the first: what a call does once is not theirs."""

# -- measuring ------------------------------------------------------------------------------------


def alternate(calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each call in each round, after one round that is not counted.

    The order turns with every round, so that no side always follows the same one.
    """
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for i in range(len(calls)):
            which = (i + turn) % len(calls)
            gc.collect()
            start = CLOCK()
            calls[which]()
            if turn:
                times[which].append(CLOCK() - start)
    return times


def ratio(
    ours: list[float], theirs: list[float], best: Callable[[list[float]], float] = min
) -> str:
    """Ratio of medians [quartiles of the ratios by round; ratio of the best, of rates the maxima]."""
    by_round = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    quarter = len(by_round) // 4
    return (
        f"{statistics.median(ours) / statistics.median(theirs):.2f} "
        f"[{by_round[quarter]:.2f}–{by_round[-1 - quarter]:.2f}; {best(ours) / best(theirs):.2f}]"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for line in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(line) + " |")
    print(flush=True)


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1e3
    )


def peak(shape: dict[str, int], side: str, which: str, n: int, length: int, batch: int) -> float:
    """Peak resident memory above that of the built model, in MB, in a process of its own."""
    task = json.dumps([shape, side, which, n, length, batch])
    command = [sys.executable, __file__, "--peak-of", task]
    # Every large block is given back to the system when it is freed, so that what is seen is what is
    # in use, and not how far the allocator's heap has been broken up.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"The memory measurement failed: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def peak_here(task: str) -> None:
    """The inside of `peak`."""
    shape, side, which, n, length, batch = json.loads(task)
    model = build(shape)
    tokens, names = random_tokens(model, n, length), hook_points(model, which)
    SIDES["floor"](model, tokens[:1, :2], names)  # libraries load and pools form
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    if side == "flat":
        wpca.collect(model, tokens, names, batch_size=batch, progress=False)
    else:
        SIDES[side](model, tokens, names)
    print(resident("VmHWM") - before)


# -- the tables -----------------------------------------------------------------------------------


def time_table(shapes: Sequence[tuple[dict[str, int], int, int]], rounds: int) -> None:
    print(
        "Seconds (medians), and ratios: of medians [quartiles by round; of minima]. `further` is what each "
        f"batch after the first takes: a call with {1 + FURTHER} batches less one with 1, by {FURTHER}.\n"
    )
    rows = []
    for shape, n, length in shapes:
        model = build(shape)
        tokens = random_tokens(model, n, length)
        more = tokens.repeat(1 + FURTHER, 1)
        for which in ("all", "3/4 depth"):
            names = hook_points(model, which)
            calls = [partial(SIDES[s], model, tokens, names) for s in ("floor", "usual", "ours")]
            calls.append(partial(ours, model, more, names, batch_size=n))
            floor, usual, first, several = alternate(calls, rounds)
            further = [(b - a) / FURTHER for a, b in zip(first, several, strict=True)]
            seconds = [f"{statistics.median(t):.3f}" for t in (floor, usual, first, further)]
            rows.append(
                [
                    f"{n}×{length}", str(shape["d_model"]), which, *seconds,
                    ratio(further, floor), ratio(usual, further),
                ]
            )  # fmt: skip
    table(
        [
            "tokens", "d", "hook points", "floor", "usual", "first", "further", "further / floor",
            "usual / further",
        ],
        rows,
    )  # fmt: skip


def memory_table(shapes: Sequence[tuple[dict[str, int], int, int]]) -> None:
    print("Peak memory above the model's, MB.\n")
    rows = []
    for shape, n, length in shapes:
        for which in ("all", "3/4 depth"):
            peaks = [peak(shape, s, which, n, length, n) for s in ("floor", "usual", "ours")]
            rows.append(
                [f"{n}×{length}", str(shape["d_model"]), which, *(f"{p:.0f}" for p in peaks)]
            )
    table(["tokens", "d", "hook points", "floor", "usual", "ours"], rows)


def flat_table(shape: dict[str, int], length: int, counts: Sequence[int]) -> None:
    print(f"Peak memory above the model's, MB, by tokens collected (batches of 8×{length}).\n")
    peaks = [peak(shape, "flat", "all", count // length, length, 8) for count in counts]
    table([f"{c:,} tokens" for c in counts] + ["ratio"],
          [[f"{p:.0f}" for p in peaks] + [f"{peaks[-1] / peaks[0]:.3f}"]])  # fmt: skip


def recompute_table(shape: dict[str, int], n: int, length: int, rounds: int) -> None:
    print(f"`recompute=True`, {n}×{length} tokens, width {shape['d_model']}, all hook points.\n")
    model = build(shape)
    tokens, names = random_tokens(model, n, length), hook_points(model, "all")
    sides = ("ours", "ours, recompute")
    calls = [partial(SIDES[s], model, tokens, names) for s in sides]
    plain, again = alternate(calls, rounds)
    del model, calls
    peaks = [peak(shape, side, "all", n, length, n) for side in sides]
    table(
        ["", "plain", "recompute", "ratio"],
        [["peak above the weights, MB", *(f"{p:.0f}" for p in peaks), f"{peaks[1] / peaks[0]:.2f}"],
         ["seconds a batch", *(f"{statistics.median(t):.3f}" for t in (plain, again)),
          ratio(again, plain)]],
    )  # fmt: skip


def kronfluence_table(shape: dict[str, int], n: int, length: int, rounds: int) -> None:
    if importlib.util.find_spec("kronfluence") is None:
        print("kronfluence is missing, so its comparison is left out: pip install kronfluence\n")
        return
    from helpers.kronfluence_covariance import LinearBlocks, covariance_fit, our_fit

    print(
        f"Second moments a second against kronfluence's covariance fit: {n}×{length} tokens, the inputs "
        f"and output gradients of the {2 * shape['n_layers']} linear maps of {shape['n_layers']} MLP "
        "blocks. `exactly these` keeps activations at the inputs and gradients at the outputs; `at both "
        "sides` keeps both at both, twice as many moments.\n"
    )
    sizes = shape["d_model"], shape["n_layers"], shape["d_vocab"]
    model = LinearBlocks(*sizes)
    tokens = torch.randint(0, shape["d_vocab"], (n, length))
    options = {"batch_size": n, "progress": False}
    before, after = model.points("in"), model.points("out")

    exactly_these = our_fit(model, tokens)

    def at_both_sides() -> Any:
        kept = ("activation", "gradient")
        return wpca.collect(model, tokens, before + after, statistics=kept, **options)

    fit = covariance_fit(LinearBlocks(*sizes), tokens)
    _, theirs = fit()
    mine = exactly_these()
    for name in after:  # the same numbers, or there is nothing to compare
        g = theirs["gradient_covariance"][name.removesuffix("_out")].double()
        error = (mine[name].gradient.second - g).norm() / g.norm()
        if error > 1e-4:
            sys.exit(f"The two sides differ at {name} by {float(error):.1e}.")
    split, whole, fitted = alternate([exactly_these, at_both_sides, fit], rounds)
    counts = [2 * len(after), 4 * len(after), 2 * len(after)]
    rates = [
        [count / second for second in seconds]
        for count, seconds in zip(counts, (split, whole, fitted), strict=True)
    ]
    table(
        ["", "exactly these", "at both sides", "kronfluence"],
        [
            ["moments a second", *(f"{statistics.median(rate):.1f}" for rate in rates)],
            ["to kronfluence", *(ratio(rate, rates[2], best=max) for rate in rates[:2]), "1"],
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, for CI")
    parser.add_argument("--only", choices=["time", "memory", "flat", "recompute", "kronfluence"])
    parser.add_argument("--rounds", type=int, default=None, help="rounds of each timing")
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="CPU seconds of one thread: where the machine is not quiet",
    )
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        return peak_here(options.peak_of)
    if options.cpu:
        global CLOCK
        CLOCK = time.process_time
        torch.set_num_threads(1)
    rounds = options.rounds or (3 if options.quick else 9)
    if options.quick:
        shapes, large = [(SMALL, 4, 64)], (SMALL, 2, 128)
        flat: tuple[dict[str, int], int, list[int]] = (SMALL, 64, [2048, 8192])
    else:
        wide = dict(GPT2, d_model=256, n_heads=4)
        shapes = [(GPT2, 4, 128), (wide, 4, 128), (wide, 1, 1024)]
        large = (GPT2, 2, 512)
        flat = (SMALL, 128, [10_240, 102_400])
    print(
        f"{made_on()} {'CPU' if options.cpu else 'Wall'} seconds, "
        f"load {os.getloadavg()[0]:.1f} at the start, {rounds} rounds.\n"
    )
    wanted = {
        "time": lambda: time_table(shapes, rounds),
        "memory": lambda: memory_table([shapes[0], (shapes[0][0], 1, 512)]),
        "flat": lambda: flat_table(*flat),
        "recompute": lambda: recompute_table(*large, rounds),
        "kronfluence": lambda: kronfluence_table(shapes[0][0], *shapes[0][1:], rounds),
    }
    for name, run in wanted.items():
        if options.only in (None, name):
            run()


if __name__ == "__main__":
    main()
