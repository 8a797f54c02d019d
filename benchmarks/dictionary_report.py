"""Tables and pictures of what `benchmarks/dictionary.py` measured.

    python benchmarks/dictionary_report.py results.jsonl --pictures docs/images
    python benchmarks/dictionary_report.py rates.jsonl

Dictionaries are compared at equal loss recovered, or at equal L0, along straight lines between the runs
of one seed on logarithmic axes; differences are then averaged over seeds, with 95% t-intervals.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from dictionary import HELPS, LAMBDA_1, LAMBDA_A, MIDDLE, SEEDS

from tl_weighted_pca.dictionary import plot_biases
from tl_weighted_pca.support.figure import PALETTE

NAMES = {"relu": "ReLU", "prolu_ste": "ProLU-STE", "prolu_relu": "ProLU-ReLU"}
FRONTIERS = {
    "SAELens JumpReLU": {"kind": "sae_lens jumprelu"},
    "SAELens TopK": {"kind": "sae_lens topk"},
    "SAELens BatchTopK": {"kind": "sae_lens batchtopk"},
    "ReLU, log penalty": {"part": "off", "kind": "relu"},
    "ReLU": {"part": "frontier", "kind": "relu"},
    "ProLU-STE": {"part": "frontier", "kind": "prolu_ste"},
    "ProLU-ReLU": {"part": "frontier", "kind": "prolu_relu"},
    "ReLU, log penalty and λ_a": {"part": "attribution", "kind": "relu"},
    "SAELens standard": {"kind": "sae_lens standard"},
}
"""All ways to train a dictionary, each with several settings a seed; the first seven are drawn."""
LOSSES = (0.95, 0.98, 0.99, 0.995)
"""Of the loss recovered, at which they are compared."""


class Results:
    """Scores with their settings, run by run."""

    def __init__(self, path: Path) -> None:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        self.rows = [line["scores"] | line["run"] for line in lines]
        self.made = sorted({line["made"] for line in lines if "made" in line})

    def of(self, **where) -> list[dict]:
        return [r for r in self.rows if all(r.get(k) == v for k, v in where.items())]


def along(rows: list[dict], x, y, at) -> np.ndarray:
    """y where x is `at`, on logarithmic axes, NaN outside the runs.

    On linear axes the chords of so bent a curve would lie off it, to the baseline's cost.
    """
    points = sorted((float(np.log(x(r))), float(np.log(y(r)))) for r in rows)
    if not points:
        return np.full(np.shape(at), np.nan)
    return np.exp(np.interp(np.log(at), *zip(*points, strict=True), np.nan, np.nan))


def l0(row: dict) -> float:
    return row["l0"]


def holders(row: dict) -> float:
    return row["attribution_l0"]


def lost(row: dict) -> float:
    """1 − loss recovered; a dictionary that does better than the model has lost next to nothing."""
    return max(1 - row["loss_recovered"], 1e-6)


def fall(row: dict, baseline: list[dict]) -> float:
    """By how much attribution L0 is below the baseline's at the same loss recovered; NaN where the
    baseline does not reach."""
    return 1 - holders(row) / float(along(baseline, lost, holders, lost(row)))


def interval(values) -> tuple[float, float]:
    """Mean and the half-width of its 95% t-interval."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()) if len(values) else np.nan, np.nan
    quantile = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}.get(len(values) - 1, 1.96)
    return float(values.mean()), quantile * float(values.std(ddof=1)) / len(values) ** 0.5


def percent(values) -> str:
    mean, half = interval(values)
    return "outside" if np.isnan(mean) else f"{mean:+.0%} ± {half:.0%}"


def frontier(results: Results) -> None:
    print("\nLoss recovered at matched L0, minus ReLU's")
    grid = np.array([4, 6, 8, 10, 12, 16, 20])
    print(f"{'L0':12}" + "".join(f"{v:>17}" for v in grid) + f"{'mean':>17}")
    for kind in ("prolu_ste", "prolu_relu"):
        gains = []
        for seed in SEEDS:
            ours, relus = (
                along(results.of(part="frontier", kind=k, seed=seed), l0, lost, grid)
                for k in (kind, "relu")
            )
            gains.append(relus - ours)
        gains = np.array(gains)
        shared = ~np.isnan(gains).any(0)
        columns = [*gains.T, gains[:, shared].mean(1)]
        cells = ["{:+.4f} ±{:.4f}".format(*interval(c)) for c in columns]
        print(f"{NAMES[kind]:12}" + "".join(f"{cell:>17}" for cell in cells))
    print("\nBiases below zero, mean over the frontier")
    for kind, name in NAMES.items():
        rows = results.of(part="frontier", kind=kind)
        print(f"{name:12} {np.mean([r['negative'] for r in rows]):.0%}")


def placed(results: Results) -> None:
    """Every way to train, at the same loss recovered."""
    for title, size in (("L0", l0), ("Attribution L0", holders)):
        print(f"\n| {title} at loss recovered | " + " | ".join(map(str, LOSSES)) + " |")
        print("|---" * (len(LOSSES) + 1) + "|")
        for name, where in FRONTIERS.items():
            at = 1 - np.array(LOSSES)
            found = [along(results.of(seed=s, **where), lost, size, at) for s in SEEDS]
            cells = ["{:.1f} ± {:.1f}".format(*interval(c)) for c in np.array(found).T]
            print(f"| {name} | " + " | ".join("–" if "nan" in c else c for c in cells) + " |")


def rates(results: Results) -> None:
    """L0 at 0.98 of the loss recovered, by step size, between the two or three settings of each."""
    rows = results.of(part="rates")
    kinds = sorted({(r["kind"], r.get("penalty", "")) for r in rows})
    tried = sorted({r["learning_rate"] for r in rows})
    print("\n| L0 at 0.98, by step size | " + " | ".join(map(str, tried)) + " |")
    print("|---" * (len(tried) + 1) + "|")
    for kind, penalty in kinds:
        mine = [r for r in rows if (r["kind"], r.get("penalty", "")) == (kind, penalty)]
        each = [[r for r in mine if r["learning_rate"] == rate] for rate in tried]
        found = [float(along(some, lost, l0, 0.02)) for some in each]
        cells = ["–" if np.isnan(v) else f"{v:.1f}" for v in found]
        print(f"| {kind} {penalty} | " + " | ".join(cells) + " |")


def attribution(results: Results) -> None:
    print("\nFall of attribution L0 at equal loss recovered")
    print(f"{'':12}{'λ_a':>7}{'L0':>7}{'attr. L0':>10}{'recovered':>11}", end="")
    print(f"{'against λ₁':>16}{'λ_a off, λ₁ again':>20}")
    for kind, name in NAMES.items():
        for a in LAMBDA_A:
            rows = results.of(part="attribution", kind=kind, attribution=a)
            if not rows:
                continue
            l0s, holds, lrs = (
                np.mean([r[k] for r in rows]) for k in ("l0", "attribution_l0", "loss_recovered")
            )
            falls = [
                percent([fall(r, results.of(part=part, kind=kind, seed=r["seed"])) for r in rows])
                for part in ("frontier", "off")
            ]
            print(f"{name:12}{a:>7}{l0s:7.1f}{holds:10.2f}{lrs:11.4f}{falls[0]:>16}{falls[1]:>20}")


def helps(results: Results) -> None:
    print(f"\nλ_a = {MIDDLE}, with one thing changed")
    for kind, name in NAMES.items():
        whole = results.of(part="attribution", kind=kind, attribution=MIDDLE)
        named = {"nothing": whole}
        named |= {n: results.of(part="helps", kind=kind, name=n) for n in HELPS}
        for change, rows in named.items():
            if not rows:
                continue
            falls = [fall(r, results.of(part="frontier", kind=kind, seed=r["seed"])) for r in rows]
            holds, lrs = (
                np.mean([r[k] for r in rows]) for k in ("attribution_l0", "loss_recovered")
            )
            print(f"{name:12}{change:24}{holds:8.2f}{lrs:10.4f}{percent(falls):>16}")


def line(ax, rows_by_seed, x: str, label: str, color: str) -> None:
    for number, rows in enumerate(rows_by_seed):
        rows = sorted(rows, key=lambda r: r[x])
        xs, ys = [r[x] for r in rows], [lost(r) for r in rows]
        ax.plot(xs, ys, "o-", markersize=3, color=color, label=label if number == 0 else None)
    ax.set(xscale="log", yscale="log")
    ax.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    ax.minorticks_off()


def draw(results: Results, folder: Path) -> None:
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)

    def by_seed(**where) -> list[list[dict]]:
        return [rows for s in SEEDS if (rows := results.of(seed=s, **where))]

    fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.8), layout="constrained", sharey=True)
    for ax, size in zip(axes, ("l0", "attribution_l0"), strict=True):
        for (name, where), color in zip(FRONTIERS.items(), PALETTE, strict=False):
            line(ax, by_seed(**where), size, name, color)
    axes[0].set(xlabel="L0: features at a token", ylabel="1 − loss recovered")
    axes[1].set(xlabel="attribution L0")
    fig.suptitle("One line a seed; down and to the left is better", fontsize=10)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    fig.savefig(folder / "dictionary-frontier.png", dpi=150)

    kinds = [k for k in NAMES if results.of(part="attribution", kind=k)]
    size = (1 + 3.9 * len(kinds), 3.6)
    fig, axes = plt.subplots(1, len(kinds), figsize=size, layout="constrained", sharey=True)
    for ax, kind in zip(np.atleast_1d(axes), kinds, strict=True):
        x = "attribution_l0"
        line(ax, by_seed(part="frontier", kind=kind), x, "λ₁ Σ|f|, varied", "#bbbbbb")
        line(ax, by_seed(part="off", kind=kind), x, "log and λ_u, λ₁ varied", "#ddaa33")
        line(
            ax, by_seed(part="attribution", kind=kind), x, "log, λ_u and λ_a, λ_a varied", "#228833"
        )
        ax.set(xlabel="attribution L0", title=NAMES[kind])
    np.atleast_1d(axes)[0].set_ylabel("1 − loss recovered")
    np.atleast_1d(axes)[0].legend(frameon=False, fontsize=8)
    fig.savefig(folder / "dictionary-attribution.png", dpi=150)

    fig, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    for ax, kind in zip(axes, NAMES, strict=True):
        (row,) = results.of(part="frontier", kind=kind, seed=0, sparsity=LAMBDA_1[kind][2])
        plot_biases(torch.tensor(row["biases"]), ax)
        ax.set_title(f"{NAMES[kind]}: {ax.get_title()}", fontsize=8)
    fig.savefig(folder / "dictionary-biases.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    args = parser.parse_args()
    results = Results(args.results)
    if results.of(part="rates"):
        return rates(results)
    for part in (placed, frontier, attribution, helps):
        part(results)
    print(*results.made, sep="\n")
    if args.pictures:
        draw(results, args.pictures)


if __name__ == "__main__":
    main()
