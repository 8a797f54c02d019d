"""How many directions does each layer use, and what is left when all layers keep only those?

    python benchmarks/model_maps.py --train 200 --heldout 40 --out docs/model_maps.md
    python benchmarks/model_maps.py --real --quick     # SmolLM2-135M; see real_model.py

On the embedded models: the map of stream and outputs; all ablated together beside the sum of one at a time;
`allocate_ranks` beside equal shares; sequential bases beside independent ones; what stands in for what is
ablated; predicted beside measured loss; a map's cost. On SmolLM2-135M's stream the first three. Resumable.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from helpers.expected_square import expected_square
from helpers.page import folded, made_on, shown, write_between_marks
from helpers.sequential_bases import sequential_bases

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded

STREAM = [f"blocks.{layer}.hook_resid_post" for layer in range(4)]
OUTPUTS = [f"blocks.{layer}.hook_{part}_out" for layer in range(4) for part in ("attn", "mlp")]
SHARES = [0.25, 0.5, 0.75]
"""Of the width, kept at several hook points together, and in SmolLM2-135M's map."""
SEEDS = 2
"""Of predictions, with 8 labels a position each: how much they differ is their sampling error."""


@dataclasses.dataclass
class Subject:
    """A model, its text, its map, and what is ablated together."""

    name: str
    model: Any
    train: Any
    heldout: Any
    places: dict[str, list[str]]
    options: dict[str, Any]
    found: wpca.DimensionMap

    def curves(self, bases: Any, **options: Any) -> wpca.AblationCurves:
        return wpca.ablation_curves(self.model, self.heldout, bases, **options, **self.options)


def table(head: str, rows: list[list[Any]]) -> list[str]:
    """A Markdown table."""
    n = head.count("|") + 1
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return [f"| {head} |", "|" + "---|" * n, *lines, ""]


def number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"


def interval(ratio: wpca.Estimate) -> str:
    return f"{ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def the_map(at: Subject) -> Iterator[str]:
    ranks = {name: at.found.smallest_ranks(name) for name in at.found.names}
    rows = [
        [f"`{s}`", *(f"{r[s]:.0f} [{r[s].low:.0f}, {r[s].high:.0f}]" for r in ranks.values())]
        for s in at.found
    ]  # fmt: skip
    yield from table(" | ".join(["hook point", *map(shown, at.found.names)]), rows)


def together(at: Subject) -> Iterator[str]:
    rows = []
    for what, places in at.places.items():
        both = at.curves(
            {n: {s: of[s] for s in places} for n, of in at.found.bases.items()}, ranks=SHARES
        )
        for name in at.found.names:
            for share, excess in zip(SHARES, both.excess(name), strict=True):
                alone = [
                    curves.excess(name)[curves.ranks.index(round(share * curves.width))]
                    for curves in map(at.found.__getitem__, places)
                ]
                cells = (excess, sum(alone), max(alone), excess / sum(alone))
                rows.append([what, shown(name), share, *map(number, cells)])
    head = "ablated | basis | share kept | together | sum of each alone | largest alone"
    yield from table(f"{head} | together / sum", rows)


def allocated(at: Subject) -> Iterator[str]:
    rows = []
    for what, places in at.places.items():
        bases = {s: at.found.bases["fisher"][s] for s in places}
        totals = [sum(round(share * b.width) for b in bases.values()) for share in SHARES]
        ranks = [wpca.allocate_ranks(bases, total=total) for total in totals]
        equal, mine = (at.curves({"equal": bases}, ranks=r, score="kl") for r in (SHARES, ranks))
        assert equal.ranks == mine.ranks
        both = equal.per_sequence | {"mine": mine.per_sequence["equal"]}
        curves = dataclasses.replace(equal, per_sequence=both)
        for i, share in enumerate(SHARES):
            ratio = curves.relative_excess("mine", to="equal", ranks=curves.ranks[i : i + 1])
            measured = (number(curves.excess(name)[i]) for name in both)
            components = ", ".join(map(str, ranks[i].values()))
            rows.append([what, share, *measured, interval(ratio), components])
    head = "ablated together | share kept in all | KL, equal shares | KL, allocated | ratio | ranks"
    yield from table(head, rows)


def sequential(at: Subject) -> Iterator[str]:
    """Fisher-metric bases, each of activations with the earlier hook points ablated."""
    rows = []
    for what, places in at.places.items():
        independent = {name: {s: of[s] for s in places} for name, of in at.found.bases.items()}
        for share in SHARES[1:]:
            found = sequential_bases(at.model, at.train, places, share, batch_size=20)
            bases = independent | {"sequential": found}
            curves = at.curves(bases, ranks=[share], score="kl")
            ratios = (
                interval(curves.relative_excess("sequential", to=name, ranks=curves.ranks))
                for name in independent
            )
            measured = (number(curves.excess(name)[0]) for name in bases)
            rows.append([what, share, *measured, *ratios])
    names = [*map(shown, at.found.names)]
    head = " | ".join(f"KL, {name}" for name in [*names, "sequential"])
    over = " | ".join(f"sequential over {name}" for name in names)
    yield from table(f"ablated together | share kept | {head} | {over}", rows)


def fills(at: Subject) -> Iterator[str]:
    rows = []
    for place in (STREAM[1], "blocks.1.hook_mlp_out"):
        bases = {name: at.found.bases[name][place] for name in at.found.names}
        for fill in ("mean", "zero", "resample"):
            curves = at.curves(bases, ranks=[0.0, *SHARES], fill=fill)
            ratio = curves.relative_excess("fisher", ranks=curves.ranks[1:])
            pairs = zip(*map(curves.excess, bases), strict=True)
            excess = [" / ".join(map(number, pair)) for pair in pairs]
            rows.append([f"`{place}`", fill, *excess, interval(ratio)])
    shares = " | ".join(f"share {share}: PCA / Fisher-metric PCA" for share in (0, *SHARES))
    yield from table(f"hook point | fill | {shares} | Fisher-metric PCA over PCA", rows)


def predicted(at: Subject) -> Iterator[str]:
    """Ratios to the measured KL: of the expected square, of its mean over sampled labels, and of ½ΣΛ."""
    rows, ranks = [], [56, 60, 62]
    for what, places in {f"`{STREAM[1]}`": STREAM[1:2], **at.places}.items():
        bases = {name: {s: at.found.bases[name][s] for s in places} for name in at.found.names}
        several = [
            at.curves(
                bases, ranks=ranks, score="kl", predicted=wpca.sampled_token_loss(8, seed=seed)
            )
            for seed in range(SEEDS)
        ]
        for name, of in bases.items():
            second = several[0].eigenvalue_prediction.get(name)
            for i, kl in enumerate(several[0].excess(name)):
                first = ", ".join(f"{one.predicted(name)[i] / kl:.2f}" for one in several)
                exact = (
                    expected_square(at.model, at.heldout, of[places[0]], ranks[i]) / kl
                    if len(places) == 1
                    else None
                )
                cells = [None if second is None else second[i] / kl, exact]
                written = ["–" if cell is None else f"{cell:.2f}" for cell in cells]
                rows.append([what, shown(name), ranks[i], f"{kl:.2e}", *written, first])
    head = "ablated | basis | rank, each | KL | ½ΣΛ / KL | ½E(Σ g·δ)² / KL, exact"
    yield from table(f"{head} | sampled", rows)


def cost(at: Subject) -> Iterator[str]:
    """Process seconds, sides alternating, of the stream's map and of its separate ablations."""
    few = dataclasses.replace(at, heldout=at.heldout.select(range(min(8, len(at.heldout)))))
    bases = {name: {s: at.found.bases[name][s] for s in STREAM} for name in at.found.names}

    def whole() -> None:
        wpca.dimension_map(at.model, None, heldout=few.heldout, bases=bases, **at.options)

    def parts() -> None:
        for s in STREAM:
            few.curves({name: of[s] for name, of in bases.items()}, ranks=at.found.shares)

    seconds: dict[str, list[float]] = {"whole": [], "parts": []}
    for _ in range(3):
        for name, side in (("whole", whole), ("parts", parts)):
            start = time.process_time()
            side()
            seconds[name].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(seconds["whole"], seconds["parts"], strict=True)]
    yield (
        f"On {len(few.heldout)} stories the map of the stream from given bases took "
        f"{min(seconds['whole']):.1f} s of CPU time, its four separate ablations "
        f"{min(seconds['parts']):.1f} s (the best of three); run by run it was "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)} of them."
    )


PARTS = {
    "The map": the_map,
    "Together": together,
    "Allocated ranks": allocated,
    "Sequential bases": sequential,
    "What stands in": fills,
    "Predicted beside measured": predicted,
    "Cost": cost,
}
REAL = list(PARTS)[:3]


def embedded_subject(slips: bool, n_train: int, n_heldout: int, keep: Path) -> Subject:
    name = "gpt2-slips" if slips else "gpt2-stories"
    options: dict[str, Any] = {"batch_size": 20, "progress": False}
    model = embedded.load_model(slips=slips)
    train = embedded.stories("train", n_train, slips=slips)
    heldout = embedded.stories("heldout", n_heldout, slips=slips)
    places = {"stream": STREAM, "attention and MLP outputs": OUTPUTS}
    found = wpca.dimension_map(
        model,
        train,
        [*STREAM, *OUTPUTS],
        heldout=heldout,
        checkpoint=keep / f"{name} {n_train} {n_heldout}",
        **options,
    )
    return Subject(name, model, train, heldout, places, options, found)


def real_subject(n_train: int, n_heldout: int, quick: bool, keep: Path) -> Subject:
    """SmolLM2-135M on sequences of 64 tokens of Python's manual, the first position left out."""
    from real_model import sequences, smollm2

    length, n_hook_points = (32, 3) if quick else (64, 30)
    model = smollm2()
    train, heldout = sequences(model.tokenizer, length)
    train, heldout = train[:n_train], heldout[:n_heldout]
    layers = torch.linspace(0, model.cfg.n_layers - 1, n_hook_points).round().int().tolist()
    stream = [f"blocks.{layer}.hook_resid_post" for layer in layers]
    options: dict[str, Any] = {"positions": slice(1, None), "batch_size": 2, "progress": False}
    folder = keep / f"real {n_train} {n_heldout} {n_hook_points}"
    found = wpca.dimension_map(
        model, train, stream, heldout=heldout, shares=SHARES, checkpoint=folder,
        checkpoint_every=1, **options | {"progress": True},
    )  # fmt: skip
    return Subject("SmolLM2-135M", model, train, heldout, {"stream": stream}, options, found)


def report(at: Subject, said: str, parts: list[str], keep: Path) -> Iterator[str]:
    """The parts, each made once."""
    yield f"### {at.name}\n"
    yield f"{said}\n"
    for title in parts:
        file = keep / f"{at.name} {len(at.found)} {said} {title}.md"
        if not file.exists():
            start = time.process_time()
            file.write_text("\n".join(PARTS[title](at)) + "\n")
            print(
                f"{at.name}, {title}: {time.process_time() - start:.0f} s of CPU time", flush=True
            )
        yield from folded(title, file.read_text().splitlines())
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="the page; by default the terminal alone")
    parser.add_argument("--train", type=int, default=200, help="sequences to make bases from")
    parser.add_argument("--heldout", type=int, default=40, help="sequences to ablate on")
    parser.add_argument("--model", choices=["stories", "slips"], action="append")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="only this part")
    parser.add_argument("--real", action="store_true", help="SmolLM2-135M instead")
    parser.add_argument(
        "--quick", action="store_true", help="two sequences; of SmolLM2-135M three layers"
    )
    parser.add_argument("--keep", type=Path, default=Path(".cache/model_maps"))
    asked = parser.parse_args()
    if asked.quick:
        asked.train = asked.heldout = 2
    torch.set_num_threads(1)
    asked.keep.mkdir(parents=True, exist_ok=True)
    said = f"Bases from {asked.train} training sequences, scores on {asked.heldout} held-out ones."
    for which in ["real"] if asked.real else asked.model or ["stories", "slips"]:
        if asked.real:
            at = real_subject(asked.train, asked.heldout, asked.quick, asked.keep)
        else:
            at = embedded_subject(which == "slips", asked.train, asked.heldout, asked.keep)
        parts = asked.part or (REAL if asked.real else list(PARTS))
        lines = [made_on(), "", *report(at, said, parts, asked.keep)]
        print("\n".join(lines))
        if asked.out is not None:
            picture = asked.out.parent / "images" / f"model_map_{at.name}.png"
            at.found.plot(title=at.name).savefig(picture)
            write_between_marks(asked.out, which, lines)


if __name__ == "__main__":
    main()
