"""`collect` beside its peers: the same weights, tokens and hook points, and each tool's own way.

    pip install -e '.[peers]'
    python benchmarks/peers.py --cpu --out docs/peers.md    # some twenty minutes of one core
    python benchmarks/peers.py --quick                      # a small model, under a minute

Times are of whole passes over all batches, sides taking turns, after one round that is not counted:
wall time, or with `--cpu` CPU seconds of one thread, which others who use the machine disturb less.
Peak memory is the kernel's high-water mark above the built model, one process a side (Linux with
glibc only). Errors are relative Frobenius errors against float64 sums of the same float32 activations
and gradients, the largest over hook points; overlap is φ of the top eighth of the eigenvectors with the
reference's, the smallest over hook points of the model's width. See `helpers/peer_sides.py` for
what each side does.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "--cpu" in sys.argv:  # before numpy is there: scikit-learn's BLAS has threads of its own
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import collect as collecting  # noqa: E402
import torch  # noqa: E402
from helpers.page import folded, made_on, write_between_marks  # noqa: E402
from helpers.peer_sides import SIDES, Found, hooks_and_backward  # noqa: E402
from helpers.peer_subject import Subject, subject  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import GPT2Config  # noqa: E402

import tl_weighted_pca as wpca  # noqa: E402
from tl_weighted_pca.bases.overlap import subspace_angles  # noqa: E402

SHAPES = {
    "embedded": None,
    "gpt2-width": dict(n_embd=768, n_layer=3, n_head=12, vocab_size=5000, n_positions=128),
    "small": dict(n_embd=64, n_layer=2, n_head=4, vocab_size=200, n_positions=32),
}
BATCHES = {"embedded": (6, 32, 48), "gpt2-width": (2, 8, 128), "small": (2, 4, 32)}
"""How many batches, sequences a batch, and positions."""
TITLES = {
    "activation": "Covariances of the inputs of each block's MLP, forward passes alone",
    "both": "Covariances of inputs, and second moments of output gradients, of both maps of each MLP",
}


def built(name: str) -> tuple[Subject, list[Tensor]]:
    """The subject and its batches: stories for the trained model, random tokens for others."""
    shape = SHAPES[name]
    n, size, length = BATCHES[name]
    if shape is None:
        ids = (row for row in wpca.embedded.stories("heldout", 2000)["input_ids"])
        long = [row[:length] for row in ids if len(row) >= length][: n * size]
        tokens = torch.tensor(long)
        if len(tokens) < n * size:
            sys.exit(f"Only {len(tokens)} stories have {length} tokens; {n * size} are needed.")
    else:
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, shape["vocab_size"], (n * size, length), generator=generator)
    return subject(None if shape is None else GPT2Config(**shape)), list(tokens.split(size))


def agreement(found: Found, truth: Found, width: int) -> dict[str, tuple[float, float]]:
    """By statistic: the largest relative error, and the smallest overlap of the top eighth.

    Overlaps are of spaces up to that width: eigenvectors of the MLP's hidden layer take too long.
    """
    worst: dict[str, tuple[float, float]] = {}
    for (what, name), read in found.items():
        mine, right = read(), truth[what, name]()
        error = float((mine - right).norm() / right.norm())
        overlap = 1.0
        if len(right) <= width:
            k = len(right) // 8
            top = [torch.linalg.eigh(x).eigenvectors[:, -k:] for x in (mine, right)]
            overlap = float(subspace_angles(*top).cos().square().mean())
        before = worst.get(what, (0.0, 1.0))
        worst[what] = max(before[0], error), min(before[1], overlap)
    return worst


def peak(name: str, group: str, side: str) -> float:
    """Peak memory of one side above its built model, in MB, in a process of its own."""
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--peak-of", json.dumps([name, group, side])],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"The memory of {side} was not measured: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def peak_here(task: str) -> None:
    """The inside of `peak`."""
    name, group, side = json.loads(task)
    s, batches = built(name)
    make = SIDES[group][side]
    make(s, [batches[0][:2, :4]])()  # libraries load and pools form
    call = make(s, batches)
    gc.collect()
    before = collecting.resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    call()
    print(collecting.resident("VmHWM") - before)


def rows(name: str, group: str, rounds: int, memory: bool) -> list[str]:
    """The table of one group of sides on one subject."""
    s, batches = built(name)
    sides = SIDES[group]
    truth = hooks_and_backward(s, batches, torch.float64)()
    calls = [make(s, batches) for make in sides.values()]
    agreements = [agreement(call(), truth, s.hooked.cfg.d_model) for call in calls]
    times = collecting.alternate(calls, rounds)
    del calls
    lines = [
        "| side | seconds | to `collect` | peak MB | error, activations | error, gradients "
        "| overlap of the top eighth |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (side, seconds), worst in zip(zip(sides, times, strict=True), agreements, strict=True):
        errors = [
            f"{worst[what][0]:.0e}" if what in worst else "–" for what in ("activation", "gradient")
        ]
        overlap = min(value[1] for value in worst.values())
        cells = [
            side, f"{statistics.median(seconds):.2f}", collecting.ratio(seconds, times[0]),
            f"{peak(name, group, side):.0f}" if memory else "–", *errors, f"{overlap:.4f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def report(names: list[str], rounds: int, cpu: bool, memory: bool) -> str:
    text = [
        f"{made_on('scikit-learn', 'kronfluence', 'curvlinops-for-pytorch')} "
        f"{'CPU' if cpu else 'Wall'} seconds, load {os.getloadavg()[0]:.1f} at the start, {rounds} rounds. "
        "Ratios: of medians [quartiles by round; of minima]."
    ]
    for name in names:
        shape, (n, size, length) = SHAPES[name], BATCHES[name]
        what = (
            "The embedded model, on held-out stories"
            if shape is None
            else f"GPT-2 of {shape['n_layer']} layers and width {shape['n_embd']}, random weights and tokens"
        )
        for group, title in TITLES.items():
            print(f"\n{name}: {title}", flush=True)
            table = rows(name, group, rounds, memory)
            text += folded(f"{title}. {what}: {n} batches of {size}×{length}.", table)
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, one round, no memory")
    parser.add_argument("--model", choices=SHAPES, action="append", help="which; by default two")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="CPU seconds of one thread")
    parser.add_argument("--out", type=Path, help="a page whose tables to replace")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cpu or "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(1)
    if options.peak_of:
        return peak_here(options.peak_of)
    if options.cpu:
        collecting.CLOCK = time.process_time
    names = ["small"] if options.quick else options.model or ["gpt2-width", "embedded"]
    rounds = 1 if options.quick else options.rounds
    tables = report(names, rounds, options.cpu, memory=not options.quick)
    if options.out:
        write_between_marks(options.out, "peers", [tables])


if __name__ == "__main__":
    main()
