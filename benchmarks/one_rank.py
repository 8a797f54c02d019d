"""Why does the basis for every rank lose more at one rank than a basis trained for that rank alone?

    python benchmarks/one_rank.py --out docs/trained_basis.md            # some minutes of CPU
    python benchmarks/one_rank.py --plain
    python benchmarks/one_rank.py --quick                                # a minute, to see that it runs

From the basis for every rank to that of one rank, one change at a time: with every sequence of every step at
that rank, in the same coordinates and with D = E⁻¹; the same with fewer sequences a step, as many as that
rank and its neighbours get otherwise; and with E, D and μ free. What is done is kept in a folder, trainings
under way included.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from helpers.kept import Kept
from helpers.page import made_on, write_between_marks

import tl_weighted_pca as wpca
from tl_weighted_pca.fitted.heldout import HeldOut
from tl_weighted_pca.fitted.training import State, Training

HOOK_POINT = "blocks.2.hook_resid_post"


@contextmanager
def all_at(rank: int) -> Iterator[None]:
    """Train every sequence at one rank; the last state counts, whatever it is worth at other ranks."""

    def drawn(self: Training, n: int, number: int) -> torch.Tensor:
        return torch.full((n,), rank)

    def consider(self: Training, scores: torch.Tensor, step: int) -> None:
        kept = {n: p.detach().clone() for n, p in self.bottleneck.parameters.items()}
        self.best = State(step, kept, scores)

    with (
        patch.object(Training, "_drawn", drawn),
        patch.object(Training, "consider", consider),
        patch.object(HeldOut, "lower", lambda self, scores: True),
    ):
        yield


def trained(
    model: Any, stories: Any, start: wpca.Basis, rank: int, all_steps: list[int], kept: Kept
) -> dict[str, tuple[wpca.Basis, int, int]]:
    """The trained bases by name, with the steps and the sequences a step of each."""

    def made(name: str, steps: int, k: int | None = None, batch_size: int = 16) -> wpca.Basis:
        return kept.basis(
            name,
            lambda: wpca.optimize_basis(
                model,
                stories,
                start,
                k,
                steps=steps,
                batch_size=batch_size,
                checkpoint=kept.folder / f"{name}.checkpoint",
                progress=False,
            ),
        )

    found = {}
    for n in all_steps:
        found[f"every rank, {n} steps"] = made(f"nested {n}", n), n, 16
        found[f"rank {rank} alone, {n} steps"] = made(f"alone {rank} {n}", n, rank), n, 16
    last = all_steps[-1]
    with all_at(rank):
        name = f"every sequence at rank {rank}, D = E⁻¹"
        found[name] = made(f"only{rank} {last}", last), last, 16
        found[f"{name}, 2 a step"] = made(f"only{rank} batch2 {last}", last, batch_size=2), last, 2
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the table between the marks on this page")
    parser.add_argument("--plain", action="store_true", help="the model of plain stories")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 400], help="of trainings")
    parser.add_argument("--train", type=int, default=500, help="training stories")
    parser.add_argument("--heldout", type=int, default=200, help="held-out stories")
    parser.add_argument("--quick", action="store_true", help="few stories, few steps")
    parser.add_argument("--keep", type=Path, default=Path(".cache"), help="folder of what is done")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.train, arguments.heldout, arguments.steps = 96, 16, [4]
        arguments.keep = Path(tempfile.mkdtemp())
    slips, rank = not arguments.plain, arguments.rank
    model = wpca.embedded.load_model(slips=slips)
    stories = wpca.embedded.stories("train", arguments.train, slips=slips)
    heldout = wpca.embedded.stories("heldout", arguments.heldout, slips=slips)
    kept = Kept(arguments.keep / ("one-rank-slips" if slips else "one-rank-plain"))
    m = kept.moments("collect", model, stories, HOOK_POINT)
    found = trained(model, stories, wpca.metric_pca(m), rank, arguments.steps, kept)
    bases = {name: basis.truncate(rank) for name, (basis, _, _) in found.items()}
    curves = wpca.ablation_curves(
        model, heldout, bases, HOOK_POINT, ranks=[rank], batch_size=50, progress=False
    )
    excess = {name: score - curves.baseline for name, (score,) in curves.scores.items()}
    alone = excess[f"rank {rank} alone, {arguments.steps[-1]} steps"]
    lines = [
        f"| trained for | sequences | excess loss at rank {rank} | relative to that rank alone |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {steps * n:,} | {excess[name]:.4f} | {excess[name] / alone:.2f} |"
            for name, (_, steps, n) in sorted(found.items(), key=lambda item: -excess[item[0]])
        ),
        "",
        f"{'Noisy' if slips else 'Plain'} stories, {HOOK_POINT}, from Fisher-metric PCA.",
        "",
        made_on(),
    ]
    print("\n".join(lines))
    if arguments.out:
        write_between_marks(arguments.out, "one rank" if slips else "one rank of plain", lines)


if __name__ == "__main__":
    main()
