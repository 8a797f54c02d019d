"""Which basis keeps an embedded model's loss low for longest? Each basis at each kind of hook point.

    python benchmarks/bases.py --out docs/bases.md            # half an hour of CPU
    python benchmarks/bases.py --plain --out docs/bases_plain.md
    python benchmarks/bases.py --quick                        # a minute, to see that it runs

Bases are made from training stories, scored by node ablation on held-out ones. At the residual hook points
one basis is trained for every rank, from the Fisher-metric basis; and others, with as many steps, for some
ranks alone. Intervals are paired bootstraps over held-out stories. What is done is kept in a folder, so that
the same command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from helpers.kept import Kept
from helpers.page import folded, made_on, shown, write_after_mark, write_between_marks

import tl_weighted_pca as wpca
from tl_weighted_pca.ablation.curves import AblationCurves

HOOK_POINTS = [
    "blocks.0.hook_resid_post",
    "blocks.1.hook_resid_post",
    "blocks.2.hook_resid_post",
    "blocks.1.hook_attn_out",
    "blocks.1.hook_mlp_out",
    "blocks.1.mlp.hook_post",
]
FISHER = wpca.sampled_token_loss(2)
BASES = ["pca", "random", "weighted", "gradient", "fisher", "joint", "path", "path, twice"]
FLOORED = "\n*Some excesses were not positive, and floored at their interval's half-width.*"


def bases_at(
    model: Any, train: Any, n_path: int, hook_point: str, kept: Kept, names: Sequence[str]
) -> dict[str, wpca.Basis]:
    """Bases of some names, all but the trained one; what is kept is not made again."""
    options = {"batch_size": 32, "progress": False}
    objectives = {"fisher": FISHER, "loss": wpca.next_token_loss}
    needed = {"fisher": ["activation", "gradient"]}
    if "weighted" in names:
        needed["loss"] = ["activation", "weighted"]
    stats = {
        name: kept.collection(
            f"collect {name}",
            lambda name=name: wpca.collect(
                model,
                train,
                hook_point,
                objective=objectives[name],
                statistics=needed[name],
                **options,
            ),
        )[hook_point]
        for name in needed
    }
    fisher = stats["fisher"]

    def joint() -> wpca.Basis:
        pairs = wpca.stream_pairs(
            model, train, hook_point, objective=wpca.sampled_token_loss(1), batch_size=32
        )
        return wpca.joint_pca(fisher, pairs, shrinkage=0.5, steps=200)

    def along(*starts: str) -> wpca.Basis:
        few = train.select(range(n_path))
        metrics = [
            wpca.path_metric(model, few, hook_point, bases[start], **options) for start in starts
        ]
        return wpca.metric_pca(fisher, sum(metrics[1:], metrics[0]))

    makers = {
        "pca": lambda: wpca.pca(fisher),
        "random": lambda: wpca.random_basis(fisher),
        "weighted": lambda: wpca.weighted_pca(stats["loss"]),
        "gradient": lambda: wpca.gradient_pca(fisher),
        "fisher": lambda: wpca.metric_pca(fisher),
        "joint": joint,
        "path": lambda: along("pca"),
        "path, twice": lambda: along("pca", "path"),
    }
    bases: dict[str, wpca.Basis] = {}
    for name, make in makers.items():
        if name in names:
            bases[name] = kept.basis(name, make)
    return bases


def train_bases(
    model: Any,
    train: Any,
    starts: dict[str, wpca.Basis],
    kept: dict[str, Kept],
    *,
    steps: int,
    ranks: Sequence[int] = (),
) -> dict[str, dict[str, wpca.Basis]]:
    """By hook point: "trained", for every rank, and "trained at k" for some ranks alone."""
    found: dict[str, dict[str, wpca.Basis]] = {place: {} for place in starts}
    for k in (None, *ranks):
        name = "trained" if k is None else f"trained at {k}"
        for place, start in starts.items():
            found[place][name] = kept[place].basis(
                name,
                lambda start=start, k=k: wpca.optimize_basis(
                    model, train, start, k, steps=steps, progress=False
                ),
            )
    return found


def excess(value: float) -> str:
    """Four decimals, and no minus before a zero."""
    return f"{round(value, 4) + 0.0:.4f}"


def table(
    curves: AblationCurves, seconds: dict[str, float]
) -> tuple[list[str], dict[str, tuple[float, float]], bool]:
    """The table of a hook point; the relative excesses in it; and whether an excess was floored."""
    half = [k for k in curves.ranks if curves.width <= 8 * k <= 4 * curves.width]
    lines = [
        f"Unablated loss {curves.baseline:.4f}; excess loss by rank:\n",
        "| basis | "
        + " | ".join(map(str, curves.ranks))
        + " | relative excess | d/8 to d/2 | seconds |",
        "|---|" + "---:|" * (len(curves.ranks) + 3),
    ]
    relative = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, scores in curves.scores.items():
            cells = [excess(s - curves.baseline) for s in scores]
            pair = (curves.relative_excess(name), curves.relative_excess(name, ranks=half))
            relative[name] = pair
            ratios = [f"{e:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in pair]
            lines.append(
                f"| {shown(name)} | "
                + " | ".join([*cells, *ratios, f"{seconds.get(name, 0.0):.1f}"])
                + " |"
            )
    return lines, relative, bool(caught)


def trained_rows(
    model: Any,
    heldout: Any,
    place: str,
    curves: AblationCurves,
    alone: dict[str, wpca.Basis],
    kept: Kept,
) -> list[str]:
    """The trained basis beside those of one rank alone, and beside the computed ones."""
    if "trained" not in curves.scores:
        return []
    rows = [""]
    for name, basis in alone.items():
        k = basis.n_components
        at = kept.curves(
            f"curves {name}",
            lambda name=name, basis=basis, k=k: wpca.ablation_curves(
                model, heldout, {name: basis}, place, ranks=[k], progress=False
            ),
        )
        own = at.scores[name][0] - at.baseline
        nested = curves.scores["trained"][curves.ranks.index(k)] - curves.baseline
        rows.append(
            f"Trained for rank {k} alone: {excess(own)}; the basis for every rank has "
            f"{nested / own:.2f} times that."
        )
    above = [
        f"{shown(name)} at rank {k}"
        for name in curves.scores
        for k, difference in zip(curves.ranks, curves.difference(name, to="trained"), strict=True)
        if difference.high < 0
    ]
    rows.append(
        f"\nSignificantly below the trained basis (95%): {', '.join(above) or 'no basis at any rank'}."
    )
    return rows


def summary(means: dict[str, list[tuple[float, float]]]) -> list[str]:
    """The table of mean relative excesses over the residual hook points, best first."""
    rows = ["\n| basis | d/8 to 7d/8 | d/8 to d/2 |", "|---|---:|---:|"]
    averages = {
        name: [fmean(column) for column in zip(*e, strict=True)] for name, e in means.items()
    }
    for name in sorted(averages, key=lambda name: averages[name]):
        rows.append(
            f"| {shown(name)} | " + " | ".join(f"{mean:.2f}" for mean in averages[name]) + " |"
        )
    return ["\n## Mean over the residual hook points", *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the table here, as Markdown")
    parser.add_argument(
        "--section", type=Path, help="write the tables between the marks on this page"
    )
    parser.add_argument("--picture", type=Path, help="write the picture of one hook point here")
    parser.add_argument("--hook", action="append", help="only at this hook point")
    parser.add_argument("--plain", action="store_true", help="the model of plain stories")
    parser.add_argument("--quick", action="store_true", help="few stories, one hook point")
    parser.add_argument("--train", type=int, default=800, help="training stories")
    parser.add_argument("--heldout", type=int, default=300, help="held-out stories")
    parser.add_argument("--bases", nargs="*", default=BASES, choices=BASES, help="only these")
    parser.add_argument("--steps", type=int, default=400, help="of training; 0 leaves it out")
    parser.add_argument(
        "--alone", type=int, nargs="*", default=[16, 32], help="ranks to train alone as well"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path(".cache"), help="folder of what is done already"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.train, arguments.heldout, arguments.steps = 64, 32, 0
        arguments.keep = Path(tempfile.mkdtemp())
    slips = not arguments.plain
    model = wpca.embedded.load_model(slips=slips)
    train = wpca.embedded.stories("train", arguments.train, slips=slips)
    heldout = wpca.embedded.stories("heldout", arguments.heldout, slips=slips)
    hook_points = arguments.hook or (HOOK_POINTS[1:2] if arguments.quick else HOOK_POINTS)
    pictured = HOOK_POINTS[2] if HOOK_POINTS[2] in hook_points else hook_points[-1]
    folder = arguments.keep / ("bases-slips" if slips else "bases-plain")
    kept = {place: Kept(folder / place) for place in hook_points}
    n_path = min(300, arguments.train)
    bases = {
        place: bases_at(model, train, n_path, place, kept[place], arguments.bases)
        for place in hook_points
    }
    starts = {
        place: bases[place]["fisher"] for place in hook_points if place.endswith("resid_post")
    }
    alone: dict[str, dict[str, wpca.Basis]] = {}
    if arguments.steps:
        trained = train_bases(
            model, train, starts, kept, steps=arguments.steps, ranks=arguments.alone
        )
        for place, found in trained.items():
            bases[place]["trained"] = found.pop("trained")
            alone[place] = found
    lines: list[str] = []
    means: dict[str, list[tuple[float, float]]] = {}
    for place in hook_points:
        width = bases[place]["pca"].width
        parts = [
            kept[place].curves(
                f"curves {name}",
                lambda name=name, basis=basis, place=place, width=width: wpca.ablation_curves(
                    model,
                    heldout,
                    {name: basis},
                    place,
                    ranks=[i * width // 8 for i in range(1, 8)],
                    progress=False,
                ),
            )
            for name, basis in bases[place].items()
        ]
        curves = replace(
            parts[0], per_sequence={n: c for part in parts for n, c in part.per_sequence.items()}
        )
        rows, relative, floored = table(curves, kept[place].seconds)
        if place in starts:
            for name, pair in relative.items():
                means.setdefault(name, []).append(pair)
            rows += trained_rows(model, heldout, place, curves, alone.get(place, {}), kept[place])
        lines += folded(f"`{place}`", [*rows, *([FLOORED] if floored else [])])
        print("\n".join(["", place, *rows]), flush=True)
        if arguments.picture and place == pictured:
            drawn = ("pca", "weighted", "fisher", "joint", "path, twice", "trained")
            names = {name: shown(name) for name in drawn if name in curves.scores}
            curves.plot(names=names).savefig(arguments.picture)
    print("\n".join(summary(means)))
    if arguments.section:
        write_between_marks(
            arguments.section,
            "slips" if slips else "plain",
            [*summary(means)[1:], *lines, "", made_on()],
        )
    if arguments.out:
        write_after_mark(arguments.out, [*summary(means), *lines, "", made_on()])


if __name__ == "__main__":
    main()
