"""Does the local interaction basis need fewer features and fewer edges than PCA for the same loss?

python benchmarks/interaction.py                # modular addition, five seeds
python benchmarks/interaction.py --embedded     # the embedded language model
python benchmarks/interaction.py --blocks       # how blocks mix, where inputs are drawn at random
"""

import argparse
import itertools
import math
import time

import torch
from helpers.page import made_on

from tl_weighted_pca import ablation_curves, collect, pca
from tl_weighted_pca.interaction import (
    edge_ablation_curves,
    interaction_edges,
    local_interaction_basis,
)
from tl_weighted_pca.objectives import classification_loss
from tl_weighted_pca.toy import HookedMLP, modular_addition, train

P, WIDTHS = 31, (48, 96)


def needed(steps: list[int], scores: list[float], most: float) -> int:
    """The smallest step from which on every score is at most `most`."""
    wrong = [i for i, score in enumerate(scores) if not score <= most]
    at = wrong[-1] + 1 if wrong else 0
    return steps[at] if at < len(steps) else -1


def grid(most: int, points: int = 40) -> list[int]:
    """Counts of edges, three per cent to thirty per cent apart."""
    return sorted({round(most ** (i / points)) for i in range(points + 1)} | {0, most})


def addition(seeds: int, steps: int) -> None:
    inputs, labels = modular_addition(P)
    score = classification_loss(labels)
    names = ["layers.1.hook_in", "layers.2.hook_in", "layers.2.hook_pre"]
    # 1% of the loss itself, which is tiny here, and 1% of the way from it to chance.
    chance = math.log(P)
    print(f"modular addition mod {P}, MLP {2 * P}-{'-'.join(map(str, WIDTHS))}-{P}")
    print(
        "smallest number that keeps the loss within 1% of itself | within 1% of the way to chance"
    )
    print(f"{'seed':>4} {'loss':>8} {'what':34} {'LIB':>13} {'PCA':>13} {'LIB of PCA':>11}")
    for seed in range(seeds):
        model = HookedMLP([2 * P, *WIDTHS, P], seed=seed)
        loss = train(model, inputs, labels, steps=steps, weight_decay=0.5, seed=seed)
        options = {"batch_size": len(inputs), "progress": False}
        lib = local_interaction_basis(model, inputs, names, **options)
        stats = collect(model, inputs, names, objective=None, **options)
        components = {name: pca(stats[name]) for name in names}
        levels = (1.01 * loss, loss + 0.01 * (chance - loss))

        def line(what: str, steps: list[int], curves, seed=seed, loss=loss, levels=levels) -> None:
            found = {
                name: [needed(steps, curves.scores[name], level) for level in levels]
                for name in ("LIB", "PCA")
            }
            ours, theirs = ("{:5d} | {:5d}".format(*found[name]) for name in ("LIB", "PCA"))
            ratio = found["LIB"][0] / max(1, found["PCA"][0])
            print(
                f"{seed:4d} {loss:8.1e} {what:34} {ours:>13} {theirs:>13} {ratio:11.2f}", flush=True
            )

        for name in names:
            ranks = list(range(lib[name].width + 1))
            bases = {"LIB": lib[name], "PCA": components[name]}
            curves = ablation_curves(
                model, inputs, bases, name, ranks=ranks, score=score, **options
            )
            line(f"features at {name}", ranks, curves)
        graphs = {
            "LIB": interaction_edges(model, inputs, lib, threshold=1e-9, **options),
            "PCA": interaction_edges(model, inputs, components, threshold=1e-9, **options),
        }
        for pair in itertools.pairwise(names):
            counts = grid(max(graph.edges[pair].numel() for graph in graphs.values()))
            curves = edge_ablation_curves(
                model, inputs, graphs, pair, n_edges=counts, score=score, **options
            )
            line("edges into " + pair[1], counts, curves)


def embedded_model(stories: int) -> None:
    from tl_weighted_pca import embedded

    model = embedded.load_model()
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(4)]
    made, heldout = embedded.stories("train", stories), embedded.stories("heldout", stories // 4)
    started = time.monotonic()
    lib = local_interaction_basis(model, made, names, batch_size=32, progress=False)
    stats = collect(model, made, names, objective=None, batch_size=32, progress=False)
    print(f"embedded model, {stories} stories; bases in {time.monotonic() - started:.0f} s")
    print(
        "smallest multiple of 4 that keeps the held-out loss within 1%; relative excess with 95% interval"
    )
    for name in names:
        bases = {"LIB": lib[name], "PCA": pca(stats[name])}
        ranks = list(range(0, 65, 4))
        curves = ablation_curves(
            model, heldout, bases, name, ranks=ranks, batch_size=64, progress=False
        )
        ours, theirs = (
            needed(ranks, curves.scores[b], 1.01 * curves.baseline) for b in ("LIB", "PCA")
        )
        # Where both lose more than a per cent: below that, differences are noise.
        over = {b: curves.excess(b) for b in ("LIB", "PCA")}
        counted = [
            k
            for i, k in enumerate(ranks)
            if k and all(over[b][i] > 0.01 * curves.baseline for b in over)
        ]
        ratio = curves.relative_excess("LIB", to="PCA", ranks=counted)
        print(
            f"{name}: LIB {ours}, PCA {theirs} of 64 features; excess at ranks "
            f"{counted[0]} to {counted[-1]} {ratio:.2f} times PCA's ({ratio.low:.2f} to {ratio.high:.2f})",
            flush=True,
        )
    options = {"threshold": 1e-6, "batch_size": 16, "max_tokens": 20_000, "progress": False}
    lib_graph = interaction_edges(model, made, lib, **options)
    pca_graph = interaction_edges(model, made, {n: pca(stats[n]) for n in names}, **options)
    for pair in lib_graph.edges:
        ours, theirs = (g.n_edges(0.99)[pair] for g in (lib_graph, pca_graph))
        print(f"edges that hold 99% of the strength into {pair[1]}: LIB {ours}, PCA {theirs}")


def blocks(seeds: int) -> None:
    """Two networks side by side: the share of edge strength between them, by the number of inputs."""

    def side_by_side(seed: int) -> HookedMLP:
        model = HookedMLP([6, 16, 16, 4], torch.tanh, seed=seed).double()
        with torch.no_grad():
            for layer in model.layers:
                a, b = (n // 2 for n in layer.W.shape)
                layer.W[:a, b:] = 0
                layer.W[a:, :b] = 0
        return model

    names = [*(f"layers.{layer}.hook_in" for layer in range(3)), "layers.2.hook_pre"]

    def across(model: HookedMLP, x: torch.Tensor, **options) -> float:
        bases = local_interaction_basis(model, x, names, progress=False, batch_size=4096, **options)
        graph = interaction_edges(model, x, bases, batch_size=4096, threshold=1e-9, progress=False)
        crossing = whole = 0.0
        for (here, there), edges in graph.edges.items():
            # The share of each feature that lies in the first network, by its decoder's energy.
            p, q = (_share(graph.bases[name].decoder) for name in (here, there))
            mixed = p[:, None] * (1 - q) + (1 - p)[:, None] * q
            crossing, whole = crossing + float((edges * mixed).sum()), whole + float(edges.sum())
        return crossing / whole

    print(
        f"share of edge strength between two independent networks, {seeds} seeds: mean (10% … 90%)"
    )
    print(f"{'inputs':>16} {'exact Jacobians':>28} {'8 random probes':>28}")
    numbers = (100, 300, 1000, 3000, 10_000, 30_000)
    means: dict[bool, list[float]] = {True: [], False: []}
    for what in ("product of 30×30", *numbers):
        line = f"{what!s:>16}"
        for exact in (True, False):
            shares = []
            for seed in range(seeds):
                generator = torch.Generator().manual_seed(seed)
                if isinstance(what, int):
                    x = torch.randn(what, 6, generator=generator).double()
                else:
                    first, second = torch.randn(2, 30, 3, generator=generator).double()
                    x = torch.cat([first.repeat_interleave(30, 0), second.repeat(30, 1)], 1)
                shares.append(across(side_by_side(seed), x, exact=exact))
            found = torch.tensor(shares).double()
            low, high = found.quantile(torch.tensor([0.1, 0.9]).double()).tolist()
            means[exact].append(float(found.mean()))
            line += f" {means[exact][-1]:10.1e} ({low:.0e} … {high:.0e})"
        print(line, flush=True)
    # A gap between eigenvalues of the two parts below ~1/√n lets them mix, and such gaps are as
    # frequent as they are wide: hence 1/√n on average, though 1/n for any one gap.
    for exact, values in means.items():
        x, y = torch.tensor(numbers).log(), torch.tensor(values[1:]).log()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        print(f"{'exact' if exact else 'random probes'}: the mean falls as n^{slope:.2f}")


def _share(decoder: torch.Tensor) -> torch.Tensor:
    energy = decoder.square()
    return energy[:, : decoder.shape[1] // 2].sum(1) / energy.sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, help="5; with --blocks 30")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--embedded", action="store_true", help="the embedded language model")
    parser.add_argument("--blocks", action="store_true", help="two networks side by side")
    parser.add_argument("--stories", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.embedded:
        embedded_model(args.stories)
    elif args.blocks:
        blocks(args.seeds or 30)
    else:
        addition(args.seeds or 5, args.steps)
    print(made_on())


if __name__ == "__main__":
    main()
