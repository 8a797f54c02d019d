"""Luck of the training? Bases of models of noisy stories whose trainings differ by the seed.

    for seed in 0 1 2 3 4; do
        python benchmarks/train_embedded.py --out /tmp/seeds/$seed --seed $seed \\
            --slips --muon --steps 7000 --learning-rate 5e-3 --fact-weight 15
    done
    python benchmarks/bases_over_seeds.py /tmp/seeds/* --out docs/bases.md

Each model gets its own bases from training stories, scored by node ablation on held-out ones at the
residual hook points, as in `bases.py`.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any

from bases import FISHER, HOOK_POINTS
from helpers.page import made_on, shown, write_between_marks

import tl_weighted_pca as wpca
from tl_weighted_pca.embedded.score import score
from tl_weighted_pca.models.pretrained import load_pretrained

RESIDUAL = HOOK_POINTS[:3]
SHOWN = ["joint", "fisher", "weighted"]


def excesses(model: Any, train: Any, heldout: Any) -> dict[str, list[float]]:
    """By basis, the relative excess at each residual hook point."""
    options: dict[str, Any] = {"batch_size": 32, "progress": False}
    objectives = {"loss": wpca.next_token_loss, "fisher": FISHER}
    stats = wpca.collect(model, train, RESIDUAL, objective=objectives, **options)
    found: dict[str, list[float]] = {name: [] for name in SHOWN}
    for hook_point in RESIDUAL:
        fisher = stats["fisher"][hook_point]
        pairs = wpca.stream_pairs(
            model, train, hook_point, objective=wpca.sampled_token_loss(1), batch_size=32
        )
        bases = {
            "pca": wpca.pca(fisher),
            "weighted": wpca.weighted_pca(stats["loss"][hook_point]),
            "fisher": wpca.metric_pca(fisher),
            "joint": wpca.joint_pca(fisher, pairs, shrinkage=0.5, steps=200),
        }
        d = bases["pca"].width
        ranks = [i * d // 8 for i in range(1, 8)]
        curves = wpca.ablation_curves(model, heldout, bases, hook_point, ranks=ranks, **options)
        for name in SHOWN:
            found[name].append(float(curves.relative_excess(name)))
    return found


def cells(found: dict[str, list[float]]) -> list[str]:
    """For each basis its excess at the hook points, and their mean."""
    return [
        cell
        for name in SHOWN
        for cell in (", ".join(f"{e:.2f}" for e in found[name]), f"**{fmean(found[name]):.2f}**")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="what train_embedded.py wrote")
    parser.add_argument("--out", type=Path, help="write the table between the marks in this file")
    parser.add_argument("--train", type=int, default=500, help="training stories")
    parser.add_argument("--heldout", type=int, default=200, help="held-out stories")
    arguments = parser.parse_args()
    train = wpca.embedded.stories("train", arguments.train, slips=True)
    heldout = wpca.embedded.stories("heldout", arguments.heldout, slips=True)
    header = ["seed", "loss over the entropy", "facts right"]
    header += [cell for name in SHOWN for cell in (f"{shown(name)}, by block", "mean")]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    print("\n".join(lines))
    for folder in arguments.folders:
        model = load_pretrained(str(folder), device="cpu")
        known = score(model, heldout)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # excesses that are floored, at high ranks
            found = excesses(model, train, heldout)
        row = [folder.name, f"{known.excess:+.1%}", f"{known.accuracy:.1%}", *cells(found)]
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    if arguments.out:
        write_between_marks(arguments.out, "seeds", [*lines, "", made_on()])


if __name__ == "__main__":
    main()
