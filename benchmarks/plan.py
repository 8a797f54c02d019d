"""What `collect --plan` tells of an 8B model, from its configuration alone.

    python benchmarks/plan.py --out docs/recipes.md

The shape is that of Llama 3.1 8B; no weights are loaded, and the GPU need not be there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.page import made_on, write_between_marks
from transformers import AutoTokenizer, LlamaConfig

from tl_weighted_pca.embedded.vocabulary import MODEL_FOLDER

SHAPE = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
COMMON = [
    *("--device", "meta", "--dtype", "bfloat16", "--batch-size", "1"),
    *("--context-length", "2048", "--recompute", "--objective", "fisher"),
]
WHAT = {
    "the residual stream after every block": ["--hook", "blocks.*.hook_resid_post"],
    "the MLP's hidden layer in four blocks, float32 sums": [
        *("--hook", "blocks.[0-3].mlp.hook_out", "--hook", "blocks.[0-3].mlp.out.hook_in"),
        *("--sums-dtype", "float32"),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the lines here, between their marks")
    arguments = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as place:
        LlamaConfig(**SHAPE).save_pretrained(place)
        AutoTokenizer.from_pretrained(MODEL_FOLDER).save_pretrained(place)  # any will do
        for what, options in WHAT.items():
            command = [
                *(sys.executable, "-m", "tl_weighted_pca", "collect", "--plan", "--model", place),
                *(*COMMON, *options, "--out", "run"),
            ]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            lines += ["", f"{what[0].upper()}{what[1:]}:", "", "```text", said.strip(), "```"]
            print("\n".join(lines[-5:]), flush=True)
    if arguments.out:
        write_between_marks(arguments.out, "plan", [*lines[1:], "", made_on()])


if __name__ == "__main__":
    main()
