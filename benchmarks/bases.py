"""Which basis keeps an embedded model's loss low for longest? Each basis at each kind of hook point.

    python benchmarks/bases.py --out docs/bases.md            # some 15 minutes on 2 cores
    python benchmarks/bases.py --plain --out docs/bases_plain.md
    python benchmarks/bases.py --quick                        # a minute, to see that it runs

Bases are made from training stories, scored by node ablation on held-out ones. The trained limit is a
linear bottleneck of each rank trained on the loss, from the computed basis that is best there on
training stories. Intervals are paired bootstraps over held-out stories.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any

from helpers.page import folded, made_on, write_after_mark

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
FLOORED = "\n*Some excesses were not positive, and floored at their interval's half-width.*"


def bases_at(model: Any, train: Any, n_path: int, hook_point: str) -> tuple[dict, dict]:
    """Bases by name, and what each took in seconds beyond the collection they share."""
    options = {"batch_size": 32, "progress": False}
    seconds: dict[str, float] = {}

    def timed(name: str, make: Any) -> Any:
        start = time.perf_counter()
        made = make()
        seconds[name] = time.perf_counter() - start
        return made

    objectives = {"loss": wpca.next_token_loss, "fisher": FISHER}
    stats = timed(
        "collect", lambda: wpca.collect(model, train, hook_point, objective=objectives, **options)
    )
    loss, fisher = stats["loss"][hook_point], stats["fisher"][hook_point]
    pairs = (
        batch[hook_point]
        for batch in wpca.stream_pairs(
            model, train, hook_point, objective=wpca.sampled_token_loss(1), batch_size=32
        )
    )
    bases = {
        "pca": timed("pca", lambda: wpca.pca(fisher)),
        "weighted": timed("weighted", lambda: wpca.weighted_pca(loss)),
        "gradient": timed("gradient", lambda: wpca.gradient_pca(fisher)),
        "fisher": timed("fisher", lambda: wpca.metric_pca(fisher)),
        "joint": timed("joint", lambda: wpca.joint_pca(fisher, pairs, shrinkage=0.5, steps=200)),
    }
    few = train.select(range(n_path))

    def path(basis: wpca.Basis) -> wpca.Metric:
        return wpca.path_metric(model, few, hook_point, basis, **options)

    first = timed("path", lambda: path(bases["pca"]))
    bases["path"] = wpca.metric_pca(fisher, first)
    second = timed("path, twice", lambda: path(bases["path"]))
    bases["path, twice"] = wpca.metric_pca(fisher, first + second)
    # And the gradients at the unablated model, for high ranks: a third of the whole.
    whole = wpca.fisher_metric(fisher)
    mixed = first + second + whole / whole.matrix.trace()
    bases["path and Fisher"] = wpca.metric_pca(fisher, mixed)
    seconds["path and Fisher"] = 0.0
    return bases, seconds


def limit(
    model: Any,
    train: Any,
    heldout: Any,
    bases: dict[str, wpca.Basis],
    curves: AblationCurves,
    steps: int,
) -> tuple[list[float], list[str]]:
    """The trained bottleneck's excess loss by rank, and which bases are significantly below it."""
    options = {"hook_point": curves.hook_point, "progress": False}
    few = train.select(range(min(100, len(train))))
    seen = wpca.ablation_curves(model, few, bases, ranks=curves.ranks, **options).scores
    found, below = [], []
    for i, k in enumerate(curves.ranks):
        start = bases[min(seen, key=lambda name: seen[name][i])]
        trained = wpca.optimize_basis(model, train, start, k, steps=steps, progress=False)
        at = wpca.ablation_curves(
            model, heldout, {"trained": trained, **bases}, ranks=[k], **options
        )
        found.append(at.scores["trained"][0] - at.baseline)
        below += [
            f"{name} at rank {k}" for name in bases if at.difference("trained", to=name)[0].low > 0
        ]
    return found, below


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
            shown = [f"{e:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in pair]
            lines.append(
                f"| {name} | " + " | ".join([*cells, *shown, f"{seconds[name]:.1f}"]) + " |"
            )
    return lines, relative, bool(caught)


def summary(means: dict[str, list[tuple[float, float]]]) -> list[str]:
    """The table of mean relative excesses over the residual hook points, best first."""
    rows = ["\n| basis | d/8 to 7d/8 | d/8 to d/2 |", "|---|---:|---:|"]
    averages = {
        name: [fmean(column) for column in zip(*e, strict=True)] for name, e in means.items()
    }
    for name in sorted(averages, key=lambda name: averages[name]):
        rows.append(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in averages[name]) + " |")
    return ["\n## Mean over the residual hook points", *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--picture", type=Path, help="write the picture of one hook point here")
    parser.add_argument("--hook", action="append", help="only at this hook point")
    parser.add_argument("--plain", action="store_true", help="the model of stories without slips")
    parser.add_argument("--quick", action="store_true", help="few stories, one hook point")
    parser.add_argument("--train", type=int, default=800, help="training stories")
    parser.add_argument("--heldout", type=int, default=300, help="held-out stories")
    parser.add_argument(
        "--limit-steps", type=int, default=150, help="0 leaves the trained limit out"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.train, arguments.heldout, arguments.limit_steps = 64, 32, 0
    slips = not arguments.plain
    model = wpca.embedded.load_model(slips=slips)
    train = wpca.embedded.stories("train", arguments.train, slips=slips)
    heldout = wpca.embedded.stories("heldout", arguments.heldout, slips=slips)
    hook_points = arguments.hook or (HOOK_POINTS[1:2] if arguments.quick else HOOK_POINTS)
    pictured = HOOK_POINTS[2] if HOOK_POINTS[2] in hook_points else hook_points[-1]
    lines: list[str] = []
    means: dict[str, list[tuple[float, float]]] = {}
    for hook_point in hook_points:
        bases, seconds = bases_at(model, train, min(300, arguments.train), hook_point)
        width = bases["pca"].width
        curves = wpca.ablation_curves(
            model,
            heldout,
            bases,
            hook_point,
            ranks=[i * width // 8 for i in range(1, 8)],
            progress=False,
        )
        residual = hook_point.endswith("resid_post")
        rows, relative, floored = table(curves, seconds)
        if residual:
            for name, pair in relative.items():
                means.setdefault(name, []).append(pair)
        if arguments.limit_steps and residual:
            trained, below = limit(model, train, heldout, bases, curves, arguments.limit_steps)
            cells = " | ".join(excess(e) for e in trained)
            rows.append(f"| trained limit | {cells} | | | |")
            rows.append(
                "\nSignificantly below the trained limit (95%): "
                f"{', '.join(below) or 'no computed basis'}."
            )
        rows.append(f"\nCollection shared by all: {seconds['collect']:.1f} s.")
        lines += folded(f"`{hook_point}`", [*rows, *([FLOORED] if floored else [])])
        print("\n".join(["", hook_point, *rows]), flush=True)
        if arguments.picture and hook_point == pictured:
            curves.plot().savefig(arguments.picture)
    if arguments.out:
        write_after_mark(arguments.out, [*summary(means), *lines, "", made_on()])


if __name__ == "__main__":
    main()
