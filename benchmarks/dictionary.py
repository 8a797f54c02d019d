"""Dictionaries on the embedded model: is ProLU better than ReLU, and does λ_a make features act sparsely?

    python benchmarks/dictionary.py frontier attribution helps --out results.json
    python benchmarks/dictionary.py report --out results.json --pictures docs/images

`frontier` trains ReLU, ProLU-STE and ProLU-ReLU at five λ₁ and three seeds; `attribution` switches λ_a
on over a factor of 13 to 20, to be set against the same kind's frontier at equal loss recovered; `helps`
changes, one at a time, what is meant to make λ_a forgiving; `throughput` times training against its parts.
Activations and gradients are cached once. Results are kept run by run: a run that stopped goes on.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.data import batches
from tl_weighted_pca.dictionary import (
    Recipe,
    SparseAutoencoder,
    Trainer,
    Units,
    plot_biases,
    train_dictionary,
)
from tl_weighted_pca.dictionary.evaluation import _Sums
from tl_weighted_pca.downstream import Downstream
from tl_weighted_pca.moments import Moments, SecondMoment
from tl_weighted_pca.objectives import Run, target_losses
from tl_weighted_pca.quiet_model import quiet

HOOK = "blocks.2.hook_resid_post"
POSITIONS = slice(1, None)
SEEDS = (0, 1, 2)
LAMBDA_1 = {
    "relu": (0.03, 0.06, 0.12, 0.25, 0.5),
    "prolu_ste": (0.01, 0.03, 0.06, 0.12, 0.25),
    "prolu_relu": (0.003, 0.01, 0.02, 0.04, 0.08),
}
LAMBDA_A = {
    "relu": (0.01, 0.02, 0.05, 0.1, 0.2),
    "prolu_ste": (0.03, 0.05, 0.1, 0.2, 0.4),
}
BASE = {"relu": 0.03, "prolu_ste": 0.001}
"""λ₁ beside λ_a: small, so that it is λ_a that makes features sparse."""
NAMES = {"relu": "ReLU", "prolu_ste": "ProLU-STE", "prolu_relu": "ProLU-ReLU"}
COLORS = {"relu": "#bbbbbb", "prolu_ste": "#4477aa", "prolu_relu": "#ee6677"}
HELPS = [
    ("without warm-up", {"warmup": 0.0}),
    ("token unit", {"attribution_unit": "token"}),
    ("stream unit", {"attribution_unit": "stream"}),
    ("with λ_u = 0.1", {"unexplained": 0.1}),
]


class Bench:
    """The embedded model, cached pairs, and how to train and score on them."""

    def __init__(self, stories: int, heldout: int, features: int, steps: int) -> None:
        self.features, self.steps = features, steps
        self.model = embedded.load_model(device="cpu")
        self.x, self.g = self.pairs("train", stories)
        self.held_x, self.held_g = self.pairs("heldout", heldout)
        self.moments = Moments(second(self.x), second(self.g), None, len(self.x), stories)
        self.units = Units.of(self.moments)
        tokens = embedded.stories("heldout", heldout).select_columns("input_ids")
        with quiet(self.model, gradients=False):
            self.downstream = Downstream(self.model, HOOK, POSITIONS)
            (batch,) = batches(tokens, heldout)
            self.run = self.downstream.start(batch)
            self.clean = self.loss(lambda x: x)
            self.ablated = self.loss(lambda x: self.units.center.expand_as(x))

    def pairs(self, split: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        data = embedded.stories(split, n).select_columns("input_ids")
        stream = wpca.stream_pairs(self.model, data, HOOK, positions=POSITIONS, batch_size=32)
        rows = [pairs[HOOK].rows() for pairs in stream]
        return torch.cat([x for x, _ in rows]), torch.cat([g[0] for _, g in rows])

    def loss(self, edit) -> float:
        run = self.run
        with quiet(self.model, gradients=False):
            output = self.downstream.resume(edit)
        losses = target_losses(Run(output, run.inputs, run.mask, run.sequence_index))
        return float(losses.sum() / (run.mask[:, 1:] & run.mask[:, :-1]).sum())

    def train(self, kind: str, recipe: Recipe) -> SparseAutoencoder:
        start = SparseAutoencoder(self.x.shape[1], self.features, kind, seed=recipe.seed)
        trainer = Trainer(start, recipe, self.units, self.steps)
        generator = torch.Generator().manual_seed(recipe.seed)
        for _ in range(self.steps):
            rows = torch.randint(len(self.x), (recipe.batch_size,), generator=generator)
            trainer.step(self.x[rows], self.g[rows] if recipe.needs_gradients else None)
        return trainer.finished()

    def score(self, code) -> dict:
        """As `evaluate_dictionary` does it, on the cached pairs."""
        sums = _Sums(code)
        sums.add(self.held_x, self.held_g[None])
        edit = code if isinstance(code, SparseAutoencoder) else code.project
        recovered = (self.ablated - self.loss(edit)) / (self.ablated - self.clean)
        return vars(sums.scores(recovered, float("nan")))


def second(rows: torch.Tensor) -> SecondMoment:
    wide = rows.double()
    return SecondMoment.about_zero(torch.tensor(len(wide)), wide.sum(0), wide.T @ wide)


def plan(parts: list[str]) -> list[dict]:
    """What to train: part, kind, and what differs from the default recipe."""
    runs = []
    for seed in SEEDS:
        if "frontier" in parts:
            runs += [
                {"part": "frontier", "kind": kind, "seed": seed, "sparsity": value}
                for kind, values in LAMBDA_1.items()
                for value in values
            ]
        if "attribution" in parts:
            runs += [
                {
                    "part": "attribution",
                    "kind": kind,
                    "seed": seed,
                    "sparsity": base,
                    "attribution": a,
                }
                for kind, base in BASE.items()
                for a in LAMBDA_A[kind]
            ]
    if "helps" in parts:
        base = {"kind": "prolu_ste", "seed": 0, "sparsity": BASE["prolu_ste"], "attribution": 0.1}
        runs += [{"part": "helps", "name": name} | base | changes for name, changes in HELPS]
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["frontier", "attribution", "helps", "throughput", "report"]
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--out", type=Path, required=True, help="results, a JSON line a run")
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    parser.add_argument("--stories", type=int, default=1200)
    parser.add_argument("--heldout", type=int, default=120)
    parser.add_argument("--features", type=int, default=192)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    if args.out.exists():
        results = [json.loads(line) for line in args.out.read_text().splitlines()]
    done = [result["run"] for result in results]
    todo = [run for run in plan(args.parts) if run not in done]
    if todo:
        bench = Bench(args.stories, args.heldout, args.features, args.steps)
        for number, run in enumerate(todo, 1):
            settings = {k: v for k, v in run.items() if k not in ("part", "kind", "name")}
            began = time.monotonic()
            trained = bench.train(run["kind"], Recipe(**settings, batch_size=args.batch_size))
            scores = bench.score(trained) | {"negative": float((trained.biases < 0).float().mean())}
            if run["part"] == "frontier" and run["seed"] == 0:
                scores["biases"] = trained.biases.tolist()
            results.append({"run": run, "scores": scores})
            with args.out.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
            print(
                f"{number}/{len(todo)} {time.monotonic() - began:5.1f} s  {run}  L0 {scores['l0']:.1f}  "
                f"loss recovered {scores['loss_recovered']:.4f}  attribution L0 "
                f"{scores['attribution_l0']:.2f}",
                flush=True,
            )
    if "throughput" in args.parts:
        throughput(args)
    if "report" in args.parts:
        report(results, args.pictures)


def throughput(args: argparse.Namespace, n_tokens: int = 20_000) -> None:
    """Tokens a second of `train_dictionary`, of the bare collector, and of the autoencoder alone."""
    model = embedded.load_model(device="cpu")
    data = embedded.stories("train", 250).select_columns("input_ids")
    recipe = Recipe(attribution=0.05, batch_size=args.batch_size)
    moments = wpca.collect(model, data, HOOK, positions=POSITIONS, batch_size=32, progress=False)
    x, g = [], []
    began = time.perf_counter()
    for pairs in wpca.stream_pairs(
        model, data, HOOK, positions=POSITIONS, batch_size=32, max_tokens=n_tokens
    ):
        rows = pairs[HOOK].rows()
        x.append(rows[0])
        g.append(rows[1][0])
    x, g = torch.cat(x), torch.cat(g)
    collector = (time.perf_counter() - began) / len(x)
    start = SparseAutoencoder(x.shape[1], args.features, "prolu_ste")
    began = time.perf_counter()
    for rows in x.split(args.batch_size):
        start.zero_grad()
        (rows - start(rows)).square().sum().backward()
    alone = (time.perf_counter() - began) / len(x)
    began = time.perf_counter()
    train_dictionary(
        model, data, HOOK, recipe, n_features=args.features, n_tokens=n_tokens, kind="prolu_ste",
        moments=moments[HOOK], positions=POSITIONS, buffer_tokens=2**13, progress=False,
    )  # fmt: skip
    whole = (time.perf_counter() - began) / n_tokens
    print(
        f"tokens/s: train_dictionary {1 / whole:.0f}, collector {1 / collector:.0f}, autoencoder forward "
        f"and backward {1 / alone:.0f}; the two together {1 / (collector + alone):.0f}, of which training "
        f"reaches {(collector + alone) / whole:.0%}"
    )


def points(results: list[dict], part: str, kind: str, seed: int, **where) -> list[dict]:
    return [
        r["scores"] | r["run"]
        for r in results
        if r["run"]["part"] == part and r["run"]["kind"] == kind and r["run"]["seed"] == seed
        and all(r["run"].get(k) == v for k, v in where.items())
    ]  # fmt: skip


def lost_at(rows: list[dict], l0):
    """1 − loss recovered at an L0: straight lines between the runs on logarithmic axes, NaN outside.

    On linear axes the chords of so bent a curve would lie off it, to the baseline's cost.
    """
    rows = sorted(rows, key=lambda r: r["l0"])
    x, y = np.log([r["l0"] for r in rows]), np.log([1 - r["loss_recovered"] for r in rows])
    return np.exp(np.interp(np.log(l0), x, y, np.nan, np.nan))


def holders_at(rows: list[dict], loss_recovered: float) -> float:
    """Attribution L0 at a loss recovered, likewise."""
    rows = sorted(rows, key=lambda r: -r["loss_recovered"])
    x = np.log([1 - r["loss_recovered"] for r in rows])
    y = np.log([r["attribution_l0"] for r in rows])
    return float(np.exp(np.interp(np.log(1 - loss_recovered), x, y, np.nan, np.nan)))


def interval(values) -> tuple[float, float]:
    """Mean and the half-width of its 95% t-interval."""
    values = np.asarray(values, float)
    quantile = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}.get(len(values) - 1, 1.96)
    return float(values.mean()), quantile * float(values.std(ddof=1)) / len(values) ** 0.5


def report(results: list[dict], pictures: Path | None) -> None:
    seeds = [s for s in SEEDS if points(results, "frontier", "relu", s)]
    print("\nLoss recovered at matched L0, minus ReLU's (mean over seeds ± 95% interval)")
    grid = np.array([4, 6, 8, 10, 12, 16, 20])
    print("L0            " + "".join(f"{l0:>18}" for l0 in grid) + "              all")
    for kind in ("prolu_ste", "prolu_relu"):
        differences = []
        for seed in seeds:
            if not points(results, "frontier", kind, seed):
                continue
            ours, relus = (
                lost_at(points(results, "frontier", k, seed), grid) for k in (kind, "relu")
            )
            differences.append(relus - ours)
        cells = []
        for column in np.array(differences).T:
            mean, half = interval(column)
            cells.append("                 –" if np.isnan(mean) else f"{mean:+9.4f} ±{half:.4f}")
        if not differences:
            continue
        shared = ~np.isnan(np.array(differences)).any(0)
        mean, half = interval(np.array(differences)[:, shared].mean(1))
        print(f"{NAMES[kind]:14}" + "".join(cells) + f"   {mean:+.4f} ±{half:.4f}")
    print("\nBiases below zero, mean over the frontier")
    for kind in LAMBDA_1:
        rows = [r for s in seeds for r in points(results, "frontier", kind, s)]
        print(f"{NAMES[kind]:12} {np.mean([r['negative'] for r in rows]):.0%}")
    print("\nAttribution L0 against the baseline whose λ₁ gives the same loss recovered")
    for kind in BASE:
        for a in LAMBDA_A[kind]:
            falls, losses, holders = [], [], []
            for seed in seeds:
                base = points(results, "frontier", kind, seed)
                for row in points(results, "attribution", kind, seed, attribution=a):
                    falls.append(
                        1 - row["attribution_l0"] / holders_at(base, row["loss_recovered"])
                    )
                    losses.append(row["loss_recovered"])
                    holders.append(row["attribution_l0"])
            if falls:
                mean, half = interval(falls) if len(falls) > 1 else (falls[0], float("nan"))
                print(
                    f"{NAMES[kind]:10} λ_a {a:<5} attribution L0 {np.mean(holders):5.2f}  loss recovered "
                    f"{np.mean(losses):.4f}  fall {mean:.0%} ± {half:.0%}"
                )
    rows = points(results, "helps", "prolu_ste", 0)
    if rows:
        print("\nλ_a = 0.1, one seed, with one thing changed")
        base = points(results, "frontier", "prolu_ste", 0)
        for row in points(results, "attribution", "prolu_ste", 0, attribution=0.1) + rows:
            fall = 1 - row["attribution_l0"] / holders_at(base, row["loss_recovered"])
            print(
                f"{row.get('name', 'nothing changed'):16} attribution L0 {row['attribution_l0']:5.2f}  "
                f"loss recovered {row['loss_recovered']:.4f}  fall {fall:+.0%}"
            )
    if pictures:
        draw(results, seeds, pictures)


def draw(results: list[dict], seeds: list[int], folder: Path) -> None:
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)

    def line(ax, rows_by_seed, x, y, **style):
        ax.set_xscale("log")
        ax.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        ax.minorticks_off()
        for rows in rows_by_seed:
            rows = sorted(rows, key=lambda r: r[x])
            ax.plot([r[x] for r in rows], [r[y] for r in rows], "o-", markersize=3, **style)
            style.pop("label", None)

    fig, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for kind, name in NAMES.items():
        rows = [points(results, "frontier", kind, s) for s in seeds]
        line(ax, rows, "l0", "loss_recovered", color=COLORS[kind], label=name)
    ax.set(xlabel="L0: features at a token", ylabel="loss recovered")
    ax.set_title("One line a seed; up and to the left is better", fontsize=10)
    ax.legend(frameon=False)
    fig.savefig(folder / "dictionary-frontier.png", dpi=150)

    kinds = [k for k in BASE if points(results, "attribution", k, 0)]
    fig, axes = plt.subplots(
        1,
        len(kinds),
        figsize=(4.2 * len(kinds), 3.6),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax, kind in zip(axes[0], kinds, strict=True):
        off = [points(results, "frontier", kind, s) for s in seeds]
        on = [points(results, "attribution", kind, s) for s in seeds]
        line(
            ax, off, "attribution_l0", "loss_recovered", color="#bbbbbb", label="λ_a = 0, λ₁ varied"
        )
        line(ax, on, "attribution_l0", "loss_recovered", color="#228833", label="λ_a on, varied")
        ax.set(xlabel="attribution L0", title=NAMES[kind])
    axes[0][0].set_ylabel("loss recovered")
    axes[0][0].legend(frameon=False)
    fig.savefig(folder / "dictionary-attribution.png", dpi=150)

    fig, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    for ax, kind in zip(axes, LAMBDA_1, strict=True):
        (row,) = points(results, "frontier", kind, 0, sparsity=LAMBDA_1[kind][2])
        plot_biases(torch.tensor(row["biases"]), ax)
        ax.set_title(f"{NAMES[kind]}: {ax.get_title()}", fontsize=9)
    fig.savefig(folder / "dictionary-biases.png", dpi=150)


if __name__ == "__main__":
    main()
