"""When does the Fisher metric beat PCA? The bases of the embedded model's own training run, as it learns.

    python benchmarks/train_embedded.py --out /tmp/run --keep 500 1000 2000 3000 4000 5000 6000
    python benchmarks/bases_over_training.py /tmp/run --out docs/bases_plain.md \\
        --picture docs/images/bases_over_training.png

Each model that the training kept gets its own bases from training stories, scored by
node ablation on held-out ones at the residual hook points, as in `bases.py`.
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
from tl_weighted_pca.support.figure import new_figure, plain, styles

RESIDUAL = HOOK_POINTS[:3]
RANGES = {"d/8 to 7d/8": range(1, 8), "d/8 to d/2": range(1, 5)}
Excesses = dict[str, dict[str, float]]


def kept(folder: Path) -> dict[int, Path]:
    """The folders of the models that the training kept, by step."""
    found = {int(f.name.removeprefix("step-")): f for f in folder.glob("step-*")}
    if not found:
        raise SystemExit(f"There is no step-* in {folder}: train with --keep.")
    return dict(sorted(found.items()))


def excesses(model: Any, train: Any, heldout: Any) -> Excesses:
    """By range of ranks and basis, the mean over the residual hook points of the relative excess."""
    options: dict[str, Any] = {"batch_size": 32, "progress": False}
    objectives = {"loss": wpca.next_token_loss, "fisher": FISHER}
    stats = wpca.collect(model, train, RESIDUAL, objective=objectives, **options)
    each: dict[str, dict[str, list[float]]] = {label: {} for label in RANGES}
    for hook_point in RESIDUAL:
        fisher = stats["fisher"][hook_point]
        bases = {
            "weighted": wpca.weighted_pca(stats["loss"][hook_point]),
            "fisher": wpca.metric_pca(fisher),
            "pca": wpca.pca(fisher),
        }
        first = wpca.path_metric(model, train, hook_point, bases["pca"], **options)
        once = wpca.metric_pca(fisher, first)
        second = wpca.path_metric(model, train, hook_point, once, **options)
        bases["path, twice"] = wpca.metric_pca(fisher, first + second)
        d = bases["pca"].width
        curves = wpca.ablation_curves(
            model,
            heldout,
            bases,
            hook_point,
            ranks=[i * d // 8 for i in range(1, 8)],
            progress=False,
        )
        for label, eighths in RANGES.items():
            for name in bases:
                value = curves.relative_excess(name, ranks=[i * d // 8 for i in eighths])
                each[label].setdefault(name, []).append(float(value))
    return {label: {name: fmean(found) for name, found in of.items()} for label, of in each.items()}


def picture(rows: dict[int, tuple[Any, Excesses]]) -> Any:
    """Relative excess by step, a panel for each range of ranks."""
    figure = new_figure((8.0, 3.6))
    for ax, label in zip(figure.subplots(1, 2, sharey=True), RANGES, strict=True):
        plain(ax)
        for name, style in styles(["weighted", "fisher", "path, twice"]).items():
            values = [found[label][name] for _, found in rows.values()]
            ax.plot(list(rows), values, label=shown(name), linewidth=1.6, markersize=5, **style)
        ax.axhline(1.0, color="0.4", linestyle="--", linewidth=1, label=shown("pca"))
        ax.set(title=label, xlabel="training steps", yscale="log")
        ax.set_yticks([0.5, 0.7, 1, 1.5, 2, 3], ["0.5", "0.7", "1", "1.5", "2", "3"])
        ax.minorticks_off()
    figure.axes[0].set_ylabel("excess loss relative to PCA")
    figure.axes[1].legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="what train_embedded.py wrote, with --keep")
    parser.add_argument("--out", type=Path, help="write the table between the marks in this file")
    parser.add_argument("--picture", type=Path, help="write the picture here")
    parser.add_argument("--train", type=int, default=300, help="training stories")
    parser.add_argument("--heldout", type=int, default=200, help="held-out stories")
    arguments = parser.parse_args()
    train = wpca.embedded.stories("train", arguments.train)
    heldout = wpca.embedded.stories("heldout", arguments.heldout)
    names = ["fisher", "path, twice", "weighted"]
    lines = [
        "| steps | loss over the entropy | facts right | " + " | ".join(map(shown, names)) + " |",
        "|---:|---:|---:|" + "---:|" * len(names),
    ]
    print("\n".join(lines))
    rows: dict[int, tuple[Any, Excesses]] = {}
    for step, folder in kept(arguments.folder).items():
        model = load_pretrained(str(folder), device="cpu")
        known = score(model, heldout)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # excesses that are floored, at high ranks
            found = excesses(model, train, heldout)
        rows[step] = (known, found)
        cells = (" / ".join(f"{found[label][name]:.2f}" for label in RANGES) for name in names)
        lines.append(
            f"| {step:,} | {known.excess:+.1%} | {known.accuracy:.1%} | " + " | ".join(cells) + " |"
        )
        print(lines[-1], flush=True)
    if arguments.picture:
        picture(rows).savefig(arguments.picture)
    if arguments.out:
        write_between_marks(arguments.out, "training", [*lines, "", made_on()])


if __name__ == "__main__":
    main()
