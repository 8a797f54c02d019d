"""Is W Wᵀ proportional to the average gradient outer product, and how much of that is chance?

python benchmarks/ansatz.py                # a regression network through training, several seeds
python benchmarks/ansatz.py --embedded     # the embedded language model, three objectives
python benchmarks/ansatz.py --models       # forty networks: see ansatz_models.py
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from helpers.page import made_on

from tl_weighted_pca import logit_probe, next_token_loss, sampled_token_loss
from tl_weighted_pca.ansatz import feature_ansatz
from tl_weighted_pca.objectives import squared_error
from tl_weighted_pca.toy import HookedMLP, low_rank_regression, train

COLUMNS = [
    "cosine", "identity", "rotated", "centred", "other_layers", "replaced", "left", "left_identity",
    "captured", "captured_by_chance", "tight_before", "tight_after", "tight_weight",
]  # fmt: skip
PAGE = ["cosine", "identity", "rotated", "replaced", "captured", "tight_before"]
"""Columns of the table in docs/feature_ansatz.md."""


def regression(seeds: int, steps: int, width: int) -> pd.DataFrame:
    """Checkpoints of an MLP on a task in which three of 32 directions matter."""
    tables = []
    for seed in range(seeds):
        x, y = low_rank_regression(seed=seed)
        fresh = torch.randn(1000, x.shape[1], generator=torch.Generator().manual_seed(1000 + seed))
        model = HookedMLP([x.shape[1], width, width, 1], scale=0.5, seed=seed)

        def measure(step: int, model=model, x=x, y=y, fresh=fresh, seed=seed) -> None:
            # Gradients on inputs that were not trained on; the residuals' on those that were.
            for data, objective in (
                (fresh, {"output": logit_probe()}),
                (x, {"squared error": squared_error(y)}),
            ):
                found = feature_ansatz(
                    model, data, objective=objective, batch_size=1000, progress=False
                )
                table = found.to_pandas()
                with torch.no_grad():
                    table["loss"] = float(0.5 * (model(x) - y).square().mean())
                tables.append(table.assign(step=step, seed=seed))

        at = [0, steps // 30, steps // 10, steps // 3, steps]
        train(
            model, x, y, steps=steps, batch_size=200, learning_rate=3e-3, weight_decay=0.1,
            seed=seed, at=at, then=measure,
        )  # fmt: skip
    return pd.concat(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--embedded", action="store_true", help="the embedded language model")
    parser.add_argument("--stories", type=int, default=300)
    parser.add_argument("--models", action="store_true", help="many networks")
    parser.add_argument("--quick", action="store_true", help="two of the many")
    parser.add_argument("--families", nargs="*", default=[], help="of the many, only these")
    parser.add_argument("--keep", type=Path, help="folder for the rows of the many")
    parser.add_argument("--page", type=Path, help="write the table of the many between its marks")
    parser.add_argument("--picture", type=Path, help="write the picture of the many here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.models:
        from ansatz_models import run

        run(args)
        return
    pd.set_option("display.width", 250, "display.max_columns", 40, "display.max_rows", 200)
    if args.embedded:
        from tl_weighted_pca import embedded

        found = feature_ansatz(
            embedded.load_model(),
            embedded.stories("heldout", args.stories),
            objective={
                "logit probes": logit_probe(),
                "loss": next_token_loss,
                "sampled labels": sampled_token_loss(),
            },
            batch_size=32,
            progress=False,
        )
        table = found.to_pandas().set_index(["objective", "kind", "layer"])[COLUMNS].sort_index()
        print(table.round(3).to_string())
        print("\nthe page's table: mean over layers")
        for (objective, kind), row in table.groupby(["objective", "kind"])[PAGE].mean().iterrows():
            figures = " | ".join("–" if pd.isna(value) else f"{value:.2f}" for value in row)
            print(f"| {objective} | {kind} | {figures} |")
        print(made_on())
        return
    table = regression(args.seeds, args.steps, args.width)
    groups = table.groupby(["objective", "name", "step"])
    print(f"mean over {args.seeds} seeds")
    print(groups[["loss", *COLUMNS]].mean().round(3).to_string())
    print("\nsmallest and largest over seeds")
    print(groups[["cosine", "identity", "rotated"]].agg(["min", "max"]).round(3).to_string())
    print(made_on())


if __name__ == "__main__":
    main()
