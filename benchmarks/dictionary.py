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
import time
from pathlib import Path

import torch
from helpers.dictionary_bench import POSITIONS, Bench, run_all
from helpers.dictionary_references import LEVELS, RATE_THERE
from helpers.page import made_on

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.dictionary import Recipe, SparseAutoencoder, train_dictionary

HOOK = "blocks.2.hook_resid_post"
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


def bench(args: argparse.Namespace) -> Bench:
    """The embedded model."""
    train = embedded.stories("train", args.stories + args.heldout)
    held = embedded.stories("heldout", args.heldout)
    if args.validation:
        held = train.select(range(args.stories, args.stories + args.heldout))
    train = train.select(range(args.stories))
    return Bench(
        embedded.load_model(device="cpu"), HOOK,
        train.select_columns("input_ids"), held.select_columns("input_ids"),
        features=args.features, steps=args.steps,
    )  # fmt: skip


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
    runs = plan(args.parts, args.kinds, args.seeds)
    run_all(runs, args.out, lambda: bench(args), args.batch_size)
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
