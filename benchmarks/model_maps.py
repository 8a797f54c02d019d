"""How many directions does each layer use, and what is left when all layers keep only those?

    python benchmarks/model_maps.py --out docs/model_maps.md

On the embedded models: the map of the stream, attention and MLP outputs; ablating all of them together beside
the sum of one at a time; ranks by `allocate_ranks` beside equal shares; bases of activations that are ablated
already beside plain ones; what stands in for what is ablated; the loss that is predicted beside the measured
one; and what a map costs beside its parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from helpers.page import made_on, write_between_marks
from torch import Tensor

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.ablation.scored_pass import scores_of_edits
from tl_weighted_pca.data.batches import batches

STREAM = [f"blocks.{layer}.hook_resid_post" for layer in range(4)]
OUTPUTS = [f"blocks.{layer}.hook_{part}_out" for layer in range(4) for part in ("attn", "mlp")]
OPTIONS: dict[str, Any] = {"batch_size": 20, "progress": False}


def table(*rows: list[Any]) -> list[str]:
    """Rows of a Markdown table, the first its head."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""]


def number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"


def the_map(found: wpca.DimensionMap) -> Iterator[str]:
    ranks = {name: found.smallest_ranks(name) for name in found.names}
    rows = [
        [f"`{s}`", *(f"{at[s]:.0f} [{at[s].low:.0f}, {at[s].high:.0f}]" for at in ranks.values())]
        for s in found
    ]
    yield from table(["hook point (width 64)", *found.names], *rows)


def together(model: Any, heldout: Any, found: wpca.DimensionMap) -> Iterator[str]:
    rows = []
    for what, places in {"stream": STREAM, "attention and MLP outputs": OUTPUTS}.items():
        for name in found.names:
            bases = {name: {s: found.bases[name][s] for s in places}}
            shares = [0.25, 0.5, 0.75]
            curves = wpca.ablation_curves(model, heldout, bases, ranks=shares, **OPTIONS)
            for share, excess in zip(shares, curves.excess(name), strict=True):
                alone = [
                    found[s].excess(name)[found[s].ranks.index(round(share * found[s].width))]
                    for s in places
                ]
                total = sum(alone)
                cells = map(number, (excess, total, max(alone), excess / total))
                rows.append([what, name, share, *cells])
    head = [
        "ablated",
        "basis",
        "share kept",
        "together",
        "sum of each alone",
        "largest alone",
        "together / sum",
    ]
    yield from table(head, *rows)


def allocated(model: Any, heldout: Any, found: wpca.DimensionMap) -> Iterator[str]:
    rows = []
    for what, places in {"stream": STREAM, "attention and MLP outputs": OUTPUTS}.items():
        bases = {s: found.bases["fisher"][s] for s in places}
        for share in (0.25, 0.5, 0.75):
            total = round(share * sum(basis.width for basis in bases.values()))
            ranks = wpca.allocate_ranks(bases, total=total)
            options: dict[str, Any] = {"score": "kl", **OPTIONS}
            equal, mine = (
                wpca.ablation_curves(model, heldout, {"equal": bases}, ranks=[one], **options)
                for one in (share, ranks)
            )
            assert equal.ranks == mine.ranks
            both = dataclasses.replace(
                equal, per_sequence=equal.per_sequence | {"mine": mine.per_sequence["equal"]}
            )
            ratio = both.relative_excess("mine", to="equal", ranks=both.ranks)
            rows.append(
                [what, share, number(both.excess("equal")[0]), number(both.excess("mine")[0]),
                 f"{ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]", ", ".join(map(str, ranks.values()))]
            )  # fmt: skip
    yield from table(
        [
            "ablated together",
            "share kept in all",
            "KL, equal shares",
            "KL, allocated",
            "ratio",
            "ranks",
        ],
        *rows,
    )


def ablated_so_far(
    model: Any, train: Any, place: str, edits: dict[str, Callable[[Tensor], Tensor]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and second moments at a hook point of ablated activations, and with the clean ones."""

    def hook(edit: Callable[[Tensor], Tensor]) -> Any:
        return lambda f, hook: edit(f)

    n, sums = 0, [torch.zeros(64, dtype=torch.float64) for _ in range(2)]
    second, cross = (torch.zeros(64, 64, dtype=torch.float64) for _ in range(2))
    for batch in batches(train, 20):
        mask = torch.ones(batch.inputs.shape).bool() if batch.mask is None else batch.mask
        seen = []
        for hooks in ([(name, hook(edit)) for name, edit in edits.items()], []):
            keep = [(place, lambda f, hook, mask=mask, seen=seen: seen.append(f[mask].double()))]
            with torch.no_grad(), model.hooks(fwd_hooks=hooks + keep):
                model(batch.inputs, attention_mask=mask.long())
        ablated, clean = seen
        n += len(clean)
        sums[0], sums[1] = sums[0] + ablated.sum(0), sums[1] + clean.sum(0)
        second, cross = second + ablated.T @ ablated, cross + ablated.T @ clean
    mine, theirs = sums[0] / n, sums[1] / n
    return mine, theirs, second / n - torch.outer(mine, mine), cross / n - torch.outer(mine, theirs)


def sequential(model: Any, train: Any, heldout: Any, stats: Any) -> Iterator[str]:
    """Fisher-metric bases of the stream's layers, each of activations with the earlier layers ablated."""
    rows = []
    for share in (0.25, 0.5, 0.75):
        k = round(share * 64)
        plain: dict[str, Any] = {}
        ablated: dict[str, Any] = {}
        anchored: dict[str, Any] = {}
        for place in STREAM:
            basis = wpca.metric_pca(stats[place])
            metric = wpca.fisher_metric(stats[place]).matrix
            plain[place] = lambda f, basis=basis, k=k: basis.project(f, k)
            # Its own centre and covariance, the clean model's metric.
            mean, _, covariance, _ = ablated_so_far(model, train, place, ablated)
            values, axes = torch.linalg.eigh(metric)
            root = axes * values.clamp(min=0).sqrt() @ axes.T
            inverse = torch.linalg.pinv(root, rtol=1e-6, hermitian=True)
            top = torch.linalg.eigh(root @ covariance @ root)[1][:, -k:]
            E = root @ top
            D = torch.linalg.pinv(E.T @ covariance @ E, hermitian=True) @ E.T @ covariance
            ablated[place] = lambda f, E=E, D=D, m=mean: (m + (f.double() - m) @ E @ D).to(f)
            # The clean activation, by reduced-rank regression on the ablated one.
            mean, clean, covariance, cross = ablated_so_far(model, train, place, anchored)
            slope = torch.linalg.pinv(covariance, rtol=1e-8, hermitian=True) @ cross
            top = torch.linalg.eigh(root @ slope.T @ covariance @ slope @ root)[1][:, -k:]
            W = slope @ root @ top @ top.T @ inverse
            anchored[place] = lambda f, W=W, m=mean, c=clean: (c + (f.double() - m) @ W).to(f)
        found = scores_of_edits(
            model, heldout, [plain, ablated, anchored], score="kl", positions=None, max_tokens=None, **OPTIONS
        )  # fmt: skip
        names = ("clean", "ablated", "anchored")
        rows_of = {name: slice(i, i + 1) for i, name in enumerate(names)}
        curves = found.curves(rows_of, ranks=[4 * k], width=256)
        ratios = [curves.relative_excess(n, to="clean", ranks=[4 * k]) for n in names[1:]]
        rows.append(
            [share, *(number(curves.excess(n)[0]) for n in names),
             *(f"{r:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in ratios)]
        )  # fmt: skip
    head = [
        "share kept",
        "KL, clean bases",
        "of ablated activations",
        "anchored to the clean",
        "ablated / clean",
        "anchored / clean",
    ]
    yield from table(head, *rows)


def fills(model: Any, heldout: Any, found: wpca.DimensionMap) -> Iterator[str]:
    rows = []
    for place in (STREAM[1], "blocks.1.hook_mlp_out"):
        bases = {name: found.bases[name][place] for name in found.names}
        for fill in ("mean", "zero", "resample"):
            curves = wpca.ablation_curves(
                model, heldout, bases, ranks=[0.0, 0.25, 0.5, 0.75], fill=fill, **OPTIONS
            )
            ratio = curves.relative_excess("fisher", ranks=curves.ranks[1:])
            excess = [
                " / ".join(number(x) for x in pair)
                for pair in zip(*map(curves.excess, bases), strict=True)
            ]
            rows.append(
                [f"`{place}`", fill, *excess, f"{ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"]
            )
    head = [
        "hook point",
        "fill",
        *(f"share {s}: PCA / Fisher" for s in (0, 0.25, 0.5, 0.75)),
        "Fisher over PCA",
    ]
    yield from table(head, *rows)


def predicted(model: Any, heldout: Any, found: wpca.DimensionMap) -> Iterator[str]:
    rows = []
    for place in STREAM[:3]:
        bases = {name: found.bases[name][place] for name in found.names}
        curves = wpca.ablation_curves(
            model, heldout, bases, ranks=[48, 56, 60, 62], score="kl",
            predicted=wpca.sampled_token_loss(8), **OPTIONS,
        )  # fmt: skip
        for name in bases:
            second = curves.eigenvalue_prediction.get(name)
            for i, kl in enumerate(curves.excess(name)):
                first = curves.predicted(name)[i]
                rows.append(
                    [f"`{place}`", name, curves.ranks[i], f"{kl:.2e}",
                     f"{first / kl:.2f} [{first.low / kl:.2f}, {first.high / kl:.2f}]",
                     f"{second[i] / kl:.2f}" if second else "–"]
                )  # fmt: skip
    yield from table(["hook point", "basis", "rank", "KL", "½E(Σ g·δ)² / KL", "½ΣΛ / KL"], *rows)


def cost(model: Any, heldout: Any, found: wpca.DimensionMap) -> Iterator[str]:
    """Process seconds, sides alternating, of the stream's map and of its separate ablations."""
    bases = {name: {s: found.bases[name][s] for s in STREAM} for name in found.names}

    def whole() -> None:
        wpca.dimension_map(model, None, heldout=heldout, bases=bases, **OPTIONS)

    def parts() -> None:
        for s in STREAM:
            here = {name: at[s] for name, at in bases.items()}
            wpca.ablation_curves(model, heldout, here, ranks=found.shares, **OPTIONS)

    seconds: dict[str, list[float]] = {"whole": [], "parts": []}
    for _ in range(3):
        for name, side in (("whole", whole), ("parts", parts)):
            start = time.process_time()
            side()
            seconds[name].append(time.process_time() - start)
    ratios = sorted(a / b for a, b in zip(seconds["whole"], seconds["parts"], strict=True))
    yield (
        f"The map of the stream from given bases took {min(seconds['whole']):.1f} s of CPU time, its "
        f"four separate ablations {min(seconds['parts']):.1f} s (best of three); the ratio of the sides, "
        f"alternating, was {ratios[1]:.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})."
    )


def report(slips: bool, n_train: int, n_heldout: int, picture: Path | None) -> Iterator[str]:
    model = embedded.load_model(slips=slips)
    train = embedded.stories("train", n_train, slips=slips)
    heldout = embedded.stories("heldout", n_heldout, slips=slips)
    name = "gpt2-slips" if slips else "gpt2-stories"
    yield f"### {name}\n"
    yield f"Bases from {n_train} training stories, scores on {n_heldout} held-out ones.\n"
    start = time.process_time()
    found = wpca.dimension_map(model, train, [*STREAM, *OUTPUTS], heldout=heldout, **OPTIONS)
    took = time.process_time() - start
    yield f"The map of {len(found)} hook points took {took:.0f} s of CPU time.\n"
    if picture is not None:
        found.plot(title=name).savefig(picture / f"model_map_{name}.png")
    yield from the_map(found)
    stats = wpca.collect(
        model, train, STREAM, objective=wpca.sampled_token_loss(),
        statistics=["activation", "gradient"], **OPTIONS,
    )  # fmt: skip
    parts = {
        "Together": together(model, heldout, found),
        "Allocated ranks": allocated(model, heldout, found),
        "Sequential bases": sequential(model, train, heldout, stats),
        "What stands in": fills(model, heldout, found),
        "Predicted beside measured": predicted(model, heldout, found),
        "Cost": cost(model, heldout, found),
    }
    for title, lines in parts.items():
        yield f"#### {title}\n"
        yield from lines
        yield ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="the page; by default the terminal alone")
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--heldout", type=int, default=100)
    parser.add_argument("--model", choices=["stories", "slips"], action="append")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pictures = None if asked.out is None else asked.out.parent / "images"
    for which in asked.model or ["stories", "slips"]:
        lines = [made_on(), ""]
        for line in report(which == "slips", asked.train, asked.heldout, pictures):
            print(line, flush=True)
            lines.append(line)
        if asked.out is not None:
            write_between_marks(asked.out, which, lines)
