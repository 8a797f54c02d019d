"""What does a GPU change? One command, under eight minutes on one card of 80 GB, no downloads.

    pip install -e '.[peers]'                      # without it, kronfluence's row is left out
    python benchmarks/gpu.py --out docs/gpu.md
    python benchmarks/gpu.py --quick --device cpu  # tiny shapes, to see that it runs

Sections come in the order of their worth. One that fails, or for which the budget is spent, costs no other
its rows, and the page is written after each row. Seconds are wall time from an idle device to an idle one,
the sides taking turns, after one round that is not counted; peak memory is what torch has allocated above
the model. Only the rows "model in TF32" have TF32 on outside of the products.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import svd  # noqa: E402
import torch  # noqa: E402
from helpers.card import Card  # noqa: E402
from helpers.collect_sides import GPT2  # noqa: E402
from helpers.gpu_bases import bases, decompositions, fitted, smollm2, tf32_bases  # noqa: E402
from helpers.gpu_collecting import collecting, kronfluence, moments, options  # noqa: E402
from helpers.page import made_on, write_after_mark  # noqa: E402
from helpers.sections import Section, measure  # noqa: E402

_GPT = dict(d_vocab=50257, n_ctx=1024)
LARGE: dict[str, Any] = {
    "models": {
        "GPT-2 small": (GPT2, 8, 1024),
        "GPT-2 medium": (dict(d_model=1024, n_layers=24, n_heads=16, **_GPT), 8, 1024),
        "1.4B": (dict(d_model=2048, n_layers=24, n_heads=16, **_GPT), 4, 1024),
    },
    "moments": (4, 4, 512, 1024),
    "svd": [case.name for case in svd.CASES],
    "widths": [768, 2048],
    "seconds": 4.0,
    "stories": 400,
    "steps": 200,
    "smollm2": True,
}
"""Shapes with sequences and positions; batches, sequences, positions and width; and so on."""
TINY: dict[str, Any] = {
    "models": {"tiny": (dict(d_model=32, n_layers=2, n_heads=2, d_vocab=50, n_ctx=32), 2, 16)},
    "moments": (2, 2, 12, 24),
    "svd": ["32 × 8 × 32, a batch of 12", "64 × 2 × 64"],
    "widths": [24],
    "seconds": 0.0,
    "stories": 24,
    "steps": 2,
    "smollm2": False,
}


TABLES: list[tuple[str, str, Any]] = [
    ("Moments", "activations | options | activation | gradient | weighted | overlap | ms", moments),
    ("Collecting", "model | dtype | tokens | floor | recipe | first | further | further / floor "
     "| recipe / further | floor MB | recipe MB | `collect` MB", collecting),
    ("SVD", "factors | TransformerLens | torch.linalg.svd(A @ B) | ours | ratio "
     "| reconstruction, theirs → ours | orthogonality, theirs → ours", decompositions),
    ("kronfluence", "shape | dtype | `collect` | kronfluence | ratio | `collect` MB | kronfluence MB",
     kronfluence),
    ("Options", "option | ms | to none | MB | error", options),
    ("TF32 and conclusions", "basis | k = 1 | k = 4 | k = 16 | k = 32 | k = 48", tf32_bases),
    ("Bases", "basis | width | on the card | on the CPU | ratio | distance", bases),
    ("A trained basis and a dimension map", "what | device | seconds | result", fitted),
    ("SmolLM2-135M", "what | seconds | result", smollm2),
]  # fmt: skip
"""Title, head and rows of each section; the rows' docstring goes onto the page."""


def sections(card: Card, sizes: dict[str, Any]) -> list[Section]:
    """All of them, those of most worth first."""
    return [
        Section(
            title, " ".join(rows.__doc__.split()), head.split(" | "), partial(rows, card, sizes)
        )
        for title, head, rows in TABLES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=420, help="after which no row is begun")
    parser.add_argument("--out", type=Path, help="the page to write")
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("There is no GPU here: `--quick --device cpu` shows that the script runs.")
    card = Card(given.device)
    libraries = ["kronfluence"] if importlib.util.find_spec("kronfluence") else []
    head = ["", f"{card}.", "", made_on(*libraries), ""]

    def tell(lines: list[str]) -> None:
        print(lines[-1], flush=True)
        if given.out:
            write_after_mark(given.out, [*head, *lines])

    failed = measure(sections(card, TINY if given.quick else LARGE), given.seconds, tell)
    if failed:
        sys.exit(f"These sections failed, the others are whole: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
