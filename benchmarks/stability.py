"""Does training find the same directions wherever it starts? Trained bases of other starts, data and seeds.

    python benchmarks/stability.py --out docs/training_finds.md           # an hour of CPU
    python benchmarks/stability.py --plain
    python benchmarks/stability.py --steps 400 1600 --trainings "from Fisher-metric PCA on A" \
        "from random on B"                                               # do they agree more with time?
    python benchmarks/stability.py --real --steps 160 --heldout 16 \
        --trainings "from Fisher-metric PCA on A" "from Fisher-metric PCA on B" "from PCA on A" \
        "from random on B"
    python benchmarks/stability.py --quick                               # a minute, to see that it runs

At each hook point bases are trained from Fisher-metric PCA, from PCA and from a random basis, on two halves
of the stories and with two seeds. How alike two of them are is the overlap of the subspaces of their first k
components, 1 for the same subspace and k/d by chance: of what they read (encoders) and of what they write
(decoders). The interval is the range over hook points. What is done is kept in a folder, trainings under way
included. With `--real` the model is SmolLM2-135M, as in real_model.py, trained with products of bfloat16.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from helpers.kept import Kept
from helpers.page import folded, made_on, write_between_marks
from helpers.precision import matmul_precision
from real_model import sequences, smollm2

import tl_weighted_pca as wpca

TRAINED = {
    "from Fisher-metric PCA on A": ("fisher", "A", 0),
    "from Fisher-metric PCA on B": ("fisher", "B", 0),
    "from Fisher-metric PCA on A, seed 1": ("fisher", "A", 1),
    "from PCA on A": ("pca", "A", 0),
    "from random on B": ("random", "B", 0),
}
"""Trainings by name: from which basis, on which half, with which seed."""
FIRST, FAR = "trained from Fisher-metric PCA on A", "trained from random on B"
PAIRS = {
    "trained basis, other seed": (FIRST, f"{FIRST}, seed 1"),
    "trained basis, other half": (FIRST, "trained from Fisher-metric PCA on B"),
    "trained basis, other start: PCA": (FIRST, "trained from PCA on A"),
    "trained basis, other start (random) and other half": (FIRST, FAR),
    "trained basis, and its start": (FIRST, "fisher A"),
    "PCA, other half": ("pca A", "pca B"),
    "Fisher-metric PCA, other half": ("fisher A", "fisher B"),
    "PCA, and Fisher-metric PCA": ("pca A", "fisher A"),
    "trained basis from random on B, and Fisher-metric PCA of A": (FAR, "fisher A"),
    "trained basis from random on B, and PCA of A": (FAR, "pca A"),
}


@dataclass
class Subject:
    """A model with the text to train on, in two halves, and to be judged on."""

    name: str
    """As on the page: "Noisy stories"."""
    key: str
    """Of its folder and of the page's mark: "slips"."""
    model: Any
    train: Any
    heldout: Any
    hook_points: list[str]
    labels: int
    """Sampled a token, for the Fisher metric."""
    batch_size: int
    """Of a training."""
    matmul: str = "highest"
    """torch's precision of products while a basis is trained."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of every call: the positions that count."""

    @property
    def halves(self) -> dict[str, Any]:
        """The first and the second half of the training text."""
        middle = len(self.train) // 2
        if isinstance(self.train, torch.Tensor):
            return {"A": self.train[:middle], "B": self.train[middle:]}
        return {
            "A": self.train.select(range(middle)),
            "B": self.train.select(range(middle, len(self.train))),
        }


def stories(slips: bool, n_train: int, n_heldout: int) -> Subject:
    """One of the embedded models."""
    return Subject(
        "Noisy stories" if slips else "Plain stories",
        "slips" if slips else "plain",
        wpca.embedded.load_model(slips=slips),
        wpca.embedded.stories("train", n_train, slips=slips),
        wpca.embedded.stories("heldout", n_heldout, slips=slips),
        [f"blocks.{layer}.hook_resid_post" for layer in range(3)],
        labels=2,
        batch_size=16,
    )


def manual(n_train: int, n_heldout: int, device: str) -> Subject:
    """SmolLM2-135M on Python's manual, sequences of 256 tokens."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = smollm2(device)
    train, heldout = sequences(model.tokenizer, 256)
    return Subject(
        "SmolLM2-135M",
        "SmolLM2",
        model,
        train[:n_train],
        heldout[:n_heldout],
        ["blocks.25.hook_resid_post"],
        labels=1,
        batch_size=4,
        matmul="medium",
        options={"positions": slice(1, None)},
    )


def bases_at(
    subject: Subject,
    hook_point: str,
    kept: Kept,
    trainings: Sequence[str],
    all_steps: Sequence[int],
) -> dict[str, wpca.Basis]:
    """PCA and Fisher-metric PCA of both halves, and the trained bases."""
    found: dict[str, wpca.Basis] = {}
    for half, text in subject.halves.items():
        m = kept.collection(
            f"collect {half}",
            lambda text=text: wpca.collect(
                subject.model,
                text,
                hook_point,
                objective=wpca.sampled_token_loss(subject.labels),
                statistics=["activation", "gradient"],
                batch_size=2 * subject.batch_size,
                progress=False,
                **subject.options,
            ),
        )[hook_point]
        found[f"pca {half}"] = wpca.pca(m)
        found[f"fisher {half}"] = wpca.metric_pca(m)
        found[f"random {half}"] = wpca.random_basis(m)
    for name, steps in product(trainings, all_steps):
        start, half, seed = TRAINED[name]
        key = f"trained {name} {steps}"

        def train(
            start: str = start,
            half: str = half,
            seed: int = seed,
            steps: int = steps,
            key: str = key,
        ) -> wpca.Basis:
            with matmul_precision(subject.matmul):
                return wpca.optimize_basis(
                    subject.model,
                    subject.halves[half],
                    found[f"{start} {half}"],
                    steps=steps,
                    batch_size=subject.batch_size,
                    seed=seed,
                    checkpoint=kept.folder / f"{key}.checkpoint",
                    progress=False,
                    **subject.options,
                )

        found[after(f"trained {name}", steps)] = kept.basis(key, train)
    return found


def after(name: str, steps: int) -> str:
    """The name of a basis, with its steps where it is a trained one."""
    return f"{name}, {steps} steps" if name.startswith("trained") else name


def cell(values: list[float]) -> str:
    """The mean and, of several, the range."""
    said = f"{fmean(values):.2f}"
    return said if len(values) == 1 else f"{said} [{min(values):.2f}, {max(values):.2f}]"


def overlaps(
    bases: list[dict[str, wpca.Basis]], ranks: list[int], steps: list[int], side: Any
) -> list[str]:
    """The table of overlaps, one row a pair and number of steps."""
    width = bases[0]["pca A"].width
    rows = [f"| {side}s | " + " | ".join(map(str, ranks)) + " |", "|---|" + "---:|" * len(ranks)]
    for (name, pair), n in product(PAIRS.items(), steps):
        a, b = (after(one, n) for one in pair)
        if not {a, b} <= set(bases[0]) or (n != steps[0] and not name.startswith("trained")):
            continue
        found = [wpca.subspace_overlap(one[a], one[b], ranks[-1], side=side) for one in bases]
        cells = [cell([float(overlap[k - 1]) for overlap in found]) for k in ranks]
        said = after(name, n) if len(steps) > 1 else name
        rows.append(f"| {said} | " + " | ".join(cells) + " |")
    return [*rows, "| chance | " + " | ".join(f"{k / width:.2f}" for k in ranks) + " |", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the tables between the marks on this page")
    parser.add_argument(
        "--mark", default="stability", help="of the page's tables, before the model's name"
    )
    parser.add_argument("--plain", action="store_true", help="the model of plain stories")
    parser.add_argument("--real", action="store_true", help="SmolLM2-135M after block 25")
    parser.add_argument("--device", default="cpu", help="of SmolLM2-135M")
    parser.add_argument("--hook", action="append", help="only at this hook point")
    parser.add_argument("--steps", type=int, nargs="+", default=[400], help="of trainings")
    parser.add_argument("--trainings", nargs="+", default=list(TRAINED), choices=TRAINED)
    parser.add_argument("--train", type=int, help="sequences, half of them in each half")
    parser.add_argument("--heldout", type=int, default=200, help="held-out sequences")
    parser.add_argument("--quick", action="store_true", help="few stories, one hook point")
    parser.add_argument("--keep", type=Path, default=Path(".cache"), help="folder of what is done")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.train, arguments.heldout, arguments.steps = 96, 16, [4]
        arguments.keep = Path(tempfile.mkdtemp())
    if arguments.real:
        subject = manual(arguments.train or 312, arguments.heldout, arguments.device)
    else:
        subject = stories(not arguments.plain, arguments.train or 800, arguments.heldout)
    hook_points = arguments.hook or subject.hook_points
    if arguments.quick:
        hook_points = hook_points[-1:]
    folder = arguments.keep / f"stability-{subject.key}"
    bases, excesses = [], []
    for hook_point in hook_points:
        kept = Kept(folder / hook_point)
        found = bases_at(subject, hook_point, kept, arguments.trainings, arguments.steps)
        bases.append(found)
        width = found["pca A"].width
        shown = {n: b for n, b in found.items() if n.startswith("trained") or n == "pca A"}
        curves = kept.curves(
            " ".join(["curves", *arguments.trainings, *map(str, arguments.steps)]),
            lambda shown=shown, place=hook_point, width=width: wpca.ablation_curves(
                subject.model,
                subject.heldout,
                shown,
                place,
                ranks=[i * width // 8 for i in range(1, 8)],
                progress=False,
                **subject.options,
            ),
        )
        ranks = curves.ranks[:4]
        excesses.append({n: curves.relative_excess(n, to="pca A", ranks=ranks) for n in shown})
    steps, several = " or ".join(map(str, arguments.steps)), len(arguments.steps) > 1
    lines = [
        f"How much of the subspace of the first k components two bases share, after {steps} steps of "
        f"{subject.batch_size} sequences; {len(subject.train) // 2} sequences in each half; "
        f"{', '.join(hook_points)}:",
        "",
        *(
            row
            for side in ("encoder", "decoder")
            for row in overlaps(bases, ranks, arguments.steps, side)
        ),
        "| trained basis | excess relative to PCA, d/8 to d/2 |",
        "|---|---:|",
        *(
            f"| {n if several else n.rpartition(',')[0]} | {cell([float(e[n]) for e in excesses])} |"
            for n in excesses[0]
            if n != "pca A"
        ),
        "",
        made_on(),
    ]
    lines = folded(f"{subject.name}, {steps} steps", lines)
    print("\n".join(lines))
    if arguments.out:
        write_between_marks(arguments.out, f"{arguments.mark} of {subject.key}", lines)


if __name__ == "__main__":
    main()
