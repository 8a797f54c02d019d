"""Dictionaries on the embedded model: ours beside SAELens's, and does λ_a make features act sparsely?

    python benchmarks/dictionary.py rates --validation --seeds 0 --out rates.jsonl
    python benchmarks/dictionary.py frontier attribution off helps references --out results.jsonl
    python benchmarks/dictionary_report.py results.jsonl --pictures docs/images
    python benchmarks/dictionary.py throughput

`rates` tries step sizes for every kind, on stories of the training split that no run is trained on
(`--validation`); the others take `RATE`. `frontier` trains ReLU, ProLU-STE and ProLU-ReLU at
five λ₁ and three seeds; `attribution` varies λ_a alone; `off` is the recipe of `attribution` without
λ_a, its λ₁ varied; `helps` changes one part of that recipe at a time; `references` trains SAELens's
TopK, BatchTopK, JumpReLU and standard SAEs (extra [sae]); `throughput` times training against its
parts. Activations and gradients are cached once. Results are kept run by run: a run that stopped goes
on.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from dictionary_references import LEVELS, RATE_THERE, Reference, reference
from helpers.page import made_on

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.ablation.scores import Scorer
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.dictionary import (
    Recipe,
    SparseAutoencoder,
    Trainer,
    Units,
    train_dictionary,
)
from tl_weighted_pca.dictionary.scores import CodeSums
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.run import Run
from tl_weighted_pca.moments.second_moment import Moments, SecondMoment
from tl_weighted_pca.objectives.losses import target_losses

HOOK = "blocks.2.hook_resid_post"
POSITIONS = slice(1, None)
SEEDS = (0, 1, 2)
LAMBDA_1 = {
    "relu": (0.03, 0.05, 0.08, 0.13, 0.25),
    "prolu_ste": (0.01, 0.03, 0.06, 0.12, 0.25),
    "prolu_relu": (0.008, 0.013, 0.02, 0.03, 0.045),
}
RATES = (0.001, 0.003, 0.01, 0.02, 0.03)
"""Step sizes to choose from."""
RATE = {"relu": 0.02, "prolu_ste": 0.003, "prolu_relu": 0.003}
"""Those of the tables; `rates` shows how the others compare."""
LAMBDA_A = (0.0001, 0.0002, 0.0005, 0.001, 0.002)
RECIPE = {"penalty": "log", "sparsity": 0.004, "unexplained": 0.02}
"""What λ_a is added to."""
OFF = (0.0015, 0.0025, 0.004, 0.008, 0.016)
"""λ₁ of that recipe without λ_a."""
MIDDLE = 0.0005
HELPS = {
    "without λ_a": {"attribution": 0.0},
    "without λ_u": {"unexplained": 0.0},
    "without λ₁, λ_a = 0.005": {"sparsity": 0.0, "attribution": 0.005},
    "Σ|·|, λ₁ = 0.09": {"penalty": "l1", "sparsity": 0.09},
    "Σ√|·|, λ₁ = 0.014": {"penalty": "sqrt", "sparsity": 0.014},
    "unit of the stream": {"attribution_unit": "stream"},
    "without warm-up": {"warmup": 0.0},
}


class Bench:
    """The embedded model, cached pairs, and how to train and score on them."""

    def __init__(
        self, stories: int, heldout: int, features: int, steps: int, validation: bool
    ) -> None:
        self.features, self.steps = features, steps
        self.model = embedded.load_model(device="cpu")
        train, held = (
            embedded.stories("train", stories + heldout),
            embedded.stories("heldout", heldout),
        )
        if validation:
            held = train.select(range(stories, stories + heldout))
        train, held = (each.select_columns("input_ids") for each in (train, held))
        self.x, self.g = self.pairs(train.select(range(stories)))
        self.held_x, self.held_g = self.pairs(held)
        self.moments = Moments(second(self.x), second(self.g), None, len(self.x), stories)
        self.units = Units.of(self.moments)
        with quiet(self.model, gradients=False):
            self.downstream = Downstream(self.model, HOOK, POSITIONS)
            (batch,) = batches(held, heldout)
            self.run = self.downstream.start(batch)
            self.clean = self.loss(lambda x: x)
            self.ablated = self.loss(lambda x: self.units.center.expand_as(x))
            self.ablated_kl = self.kl(lambda x: self.units.center.expand_as(x))

    def pairs(self, data) -> tuple[torch.Tensor, torch.Tensor]:
        stream = wpca.stream_pairs(self.model, data, HOOK, positions=POSITIONS, batch_size=32)
        rows = [pairs[HOOK].rows() for pairs in stream]
        return torch.cat([x for x, _ in rows]), torch.cat([g[0] for _, g in rows])

    def loss(self, edit) -> float:
        run = self.run
        with quiet(self.model, gradients=False):
            output = self.downstream.resume(edit)
        losses = target_losses(Run(output, run.inputs, run.mask, run.sequence_index))
        return float(losses.sum() / (run.mask[:, 1:] & run.mask[:, :-1]).sum())

    def kl(self, edit) -> float:
        with quiet(self.model, gradients=False):
            total, terms = torch.stack(Scorer("kl")(self.run, self.downstream.resume(edit))).sum(1)
        return float(total / terms)

    def refer(
        self, kind: str, level: float, seed: int, learning_rate: float, batch_size: int
    ) -> Reference:
        generator = torch.Generator().manual_seed(seed)

        def draw() -> torch.Tensor:
            return self.x[torch.randint(len(self.x), (batch_size,), generator=generator)]

        unit = self.units.scale / self.x.shape[1] ** 0.5
        return reference(
            kind, level, draw, self.units.center, unit,
            features=self.features, steps=self.steps, batch_size=batch_size, seed=seed,
            learning_rate=learning_rate,
        )  # fmt: skip

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
        sums = CodeSums(code)
        sums.add(self.held_x, self.held_g[None])
        recovered = (self.ablated - self.loss(code)) / (self.ablated - self.clean)
        kl = self.kl(code)
        with torch.no_grad():
            guess = code(self.held_x)
        return vars(sums.scores(recovered, kl)) | {
            "kl_recovered": 1 - kl / self.ablated_kl,
            "relative_reconstruction_bias": float(
                guess.square().sum() / (guess * self.held_x).sum()
            ),
        }


def second(rows: torch.Tensor) -> SecondMoment:
    wide = rows.double()
    return SecondMoment.about_zero(torch.tensor(len(wide)), wide.sum(0), wide.T @ wide)


def plan(parts: list[str], kinds: list[str], seeds: list[int]) -> list[dict]:
    """What to train: part, kind, and what differs from the default recipe."""
    runs = []
    for seed in seeds:
        theirs = [{"kind": k, "level": v, "seed": seed} for k, each in LEVELS.items() for v in each]
        if "references" in parts:
            runs += [
                {"part": "references", "learning_rate": RATE_THERE[r["kind"]]} | r for r in theirs
            ]
        if "rates" in parts:
            ours = [
                {"kind": kind, "seed": seed} | with_what
                for kind in kinds
                for with_what in (
                    *({"sparsity": v} for v in LAMBDA_1[kind][1::2]),
                    *(RECIPE | {"sparsity": v} for v in OFF[1::2]),
                )
            ]
            runs += [
                {"part": "rates", "learning_rate": v} | r for v in RATES for r in ours + theirs
            ]
        for kind in kinds:
            here = {"kind": kind, "seed": seed, "learning_rate": RATE[kind]}
            if "frontier" in parts:
                runs += [{"part": "frontier"} | here | {"sparsity": v} for v in LAMBDA_1[kind]]
            if "attribution" in parts:
                runs += [
                    {"part": "attribution"} | here | RECIPE | {"attribution": a} for a in LAMBDA_A
                ]
            if "off" in parts:
                runs += [{"part": "off"} | here | RECIPE | {"sparsity": v} for v in OFF]
            if "helps" in parts:
                whole = here | RECIPE | {"attribution": MIDDLE}
                runs += [{"part": "helps", "name": n} | whole | c for n, c in HELPS.items()]
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["rates", "frontier", "attribution", "off", "helps", "references", "throughput"]
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--kinds", nargs="+", choices=LAMBDA_1, default=list(LAMBDA_1))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--out", type=Path, default=Path("results.jsonl"), help="results, a line a run"
    )
    parser.add_argument(
        "--validation", action="store_true", help="score on unused training stories"
    )
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
    todo = [run for run in plan(args.parts, args.kinds, args.seeds) if run not in done]
    if todo:
        bench = Bench(args.stories, args.heldout, args.features, args.steps, args.validation)
        for number, run in enumerate(todo, 1):
            settings = {k: v for k, v in run.items() if k not in ("part", "kind", "name")}
            began = time.monotonic()
            if "level" in run:
                trained = bench.refer(**settings, kind=run["kind"], batch_size=args.batch_size)
                scores = bench.score(trained)
            else:
                recipe = Recipe(**settings, batch_size=args.batch_size)
                trained = bench.train(run["kind"], recipe)
                negative = float((trained.biases < 0).float().mean())
                scores = bench.score(trained) | {"negative": negative}
            if run["part"] == "frontier" and run["seed"] == 0:
                scores["biases"] = trained.biases.tolist()
            results.append({"run": run, "scores": scores, "made": made_on()})
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


def throughput(args: argparse.Namespace, n_tokens: int = 20_000) -> None:
    """Tokens a second of `train_dictionary`, of the bare collector, and of the autoencoder alone."""
    model = embedded.load_model(device="cpu")
    data = embedded.stories("train", 250).select_columns("input_ids")
    recipe = Recipe(**RECIPE, attribution=MIDDLE, batch_size=args.batch_size)
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
        f"reaches {(collector + alone) / whole:.0%}\n{made_on()}"
    )


if __name__ == "__main__":
    main()
