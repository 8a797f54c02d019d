"""Sections of the page of `gpu.py` about collecting: moments, seconds and memory."""

from __future__ import annotations

import gc
import importlib.util
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from collect import FURTHER, ratio
from peers import agreement
from torch import Tensor

import tl_weighted_pca as wpca
from helpers.card import Card, ms
from helpers.collect_sides import SIDES, build, hook_points, ours, random_tokens
from helpers.sections import LeftOut

KINDS = ("activation", "gradient", "weighted")


def moments(card: Card, sizes: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """Relative errors of centred moments against float64 sums on the CPU; overlap of the top eighth of
    the eigenvectors, the smallest of the three; milliseconds a batch."""
    n, batch, length, width = sizes["moments"]
    generator = torch.Generator().manual_seed(0)
    F, g = torch.randn(2, n, batch, length, width, generator=generator)
    F = F * torch.logspace(0, -2, width) + 10
    for dtype in (torch.float32, torch.bfloat16):
        here, there = ([*x.to(card.device, dtype)] for x in (F, g))
        X, G = (x.to(dtype).double() for x in (F, g))
        mean = X.flatten(0, -2).mean(0)
        X = X - mean
        crossed = (G.mT @ X).flatten(0, -2)
        right = dict(
            zip(KINDS, (x.flatten(0, -2).mT @ x.flatten(0, -2) for x in (X, G)), strict=False)
        )
        right["weighted"] = crossed.mT @ crossed
        truth = {(kind, ""): partial(torch.clone, second) for kind, second in right.items()}
        for options in (
            {}, {"sums_device": "cpu"}, {"sums_dtype": "float32"}, {"precision": "tf32"},
        ):  # fmt: skip

            def accumulated(options: Any = options, batches: Any = (here, there)) -> wpca.Moments:
                accumulator = wpca.MomentAccumulator(**options)
                for pair in zip(*batches, strict=True):
                    accumulator.update(*pair)
                return accumulator.result()

            found = accumulated()
            centre = {"activation": mean, "gradient": torch.zeros(width), "weighted": mean}
            reads = {
                (kind, ""): partial(m.to("cpu").about, centre[kind])
                for kind, m in found.held.items()
            }
            worst = agreement(reads, truth, width)
            (times,) = card.alternate([accumulated], sizes["seconds"] / 8)
            yield [
                str(dtype).removeprefix("torch."),
                ", ".join(f"`{key}={value!r}`" for key, value in options.items()) or "none",
                *(f"{worst[kind][0]:.0e}" for kind in KINDS),
                f"{min(overlap for _, overlap in worst.values()):.6f}",
                ms([t / n for t in times]),
            ]


def collecting(card: Card, sizes: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """All residual hook points, random weights. Milliseconds a batch (medians), of a call's first and of its
    further ones; ratios of medians [quartiles by round; of minima]; peak MB above the model. The floor is a
    forward and a backward pass that keep nothing; the recipe stores, then sums."""
    for name, (shape, n, length) in sizes["models"].items():
        model = build(shape, str(card.device))
        tokens, names = random_tokens(model, n, length).to(card.device), hook_points(model, "all")
        for dtype in (torch.float32, torch.bfloat16):
            model.to(dtype, print_details=False)
            calls = [partial(SIDES[s], model, tokens, names) for s in ("floor", "usual", "ours")]
            peaks = [card.peak(call) for call in calls]
            more = tokens.repeat(1 + FURTHER, 1)
            calls.append(partial(ours, model, more, names, batch_size=n))
            floor, usual, first, several = card.alternate(calls, sizes["seconds"])
            further = [(b - a) / FURTHER for a, b in zip(first, several, strict=True)]
            yield [
                name, str(dtype).removeprefix("torch."), f"{n}×{length}",
                *map(ms, (floor, usual, first, further)), ratio(further, floor), ratio(usual, further),
                *peaks,
            ]  # fmt: skip
        del model, calls
        gc.collect()


def kronfluence(card: Card, sizes: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """Inputs and output gradients of the linear maps of residual MLP blocks of each shape: the same
    moments on both sides. Milliseconds a batch, of a call with four."""
    if importlib.util.find_spec("kronfluence") is None:
        raise LeftOut("kronfluence is not installed (extra `peers`)")
    from helpers.kronfluence_covariance import LinearBlocks, covariance_fit, our_fit

    for name, (shape, n, length) in sizes["models"].items():
        for dtype in (torch.float32, torch.bfloat16):
            model = LinearBlocks(shape["d_model"], shape["n_layers"], shape["d_vocab"])
            model = model.to(card.device, dtype)
            generator = torch.Generator().manual_seed(1)
            tokens = torch.randint(0, shape["d_vocab"], (4 * n, length), generator=generator)
            mine = our_fit(model, tokens, n)
            peak = card.peak(mine)  # before kronfluence wraps the modules
            (collected,) = card.alternate([mine], sizes["seconds"])
            fit = covariance_fit(model, tokens, n)
            theirs_peak = card.peak(fit)
            (theirs,) = card.alternate([fit], sizes["seconds"])
            a_batch = [ms([t / 4 for t in times]) for times in (collected, theirs)]
            yield [name, str(dtype).removeprefix("torch."), *a_batch,
                   ratio(collected[: len(theirs)], theirs[: len(collected)]), peak, theirs_peak]  # fmt: skip
            del model, mine, fit
            gc.collect()


def options(card: Card, sizes: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """`collect` at GPT-2 small's shape, float32; the error is relative to the row without options."""
    shape, n, length = next(iter(sizes["models"].values()))
    model = build(shape, str(card.device))
    tokens, names = random_tokens(model, n, length).to(card.device), hook_points(model, "all")
    run = partial(SIDES["ours"], model, tokens, names)
    exact, (plain,) = run(), card.alternate([run], sizes["seconds"] / 2)
    choices: dict[str, dict[str, Any]] = {
        "none": {},
        "`precision='tf32'`": {"precision": "tf32"},
        "model in TF32": {},
        "model in TF32, `precision='tf32'`": {"precision": "tf32"},
        "`sums_dtype='float32'`": {"sums_dtype": "float32"},
        "`sums_device='cpu'`": {"sums_device": "cpu"},
        "`recompute=True`": {"recompute": True},
        "`statistics=['activation', 'gradient']`": {"statistics": ["activation", "gradient"]},
    }
    for name, chosen in choices.items():
        with tf32("model in TF32" in name):
            call = partial(run, **chosen)
            peak, found = card.peak(call), call()
            (times,) = card.alternate([call], sizes["seconds"] / 2)
        held = {n: m for n, m in found.items() if set(m.held) == set(KINDS)}
        error = distance(found, exact) if held else "–"
        yield (
            name,
            ms(times),
            f"{statistics.median(times) / statistics.median(plain):.2f}",
            peak,
            error,
        )


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def distance(a: wpca.Collection, b: wpca.Collection) -> str:
    """The largest relative Frobenius error of a second moment."""
    return f"{max(_difference(a[n].held[k].second, m.second) for n in b for k, m in b[n].held.items()):.0e}"


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.cpu() - b.cpu()).norm() / b.cpu().norm())
