"""How long does the SVD of a factored matrix take, and how right is it?

TransformerLens's `FactoredMatrix(A, B).svd()` and `tl_weighted_pca.svd(A, B)` take turns in one process, on
random factors of the shapes of well-known models; `torch.linalg.svd(A @ B)` is timed on one of the matrices
and scaled up. Printed are medians, the ratio of TransformerLens's to ours with the quartiles of the ratios of
single rounds, and for both the relative error of U S V_T and the largest entry of UᵀU − I and V_T V − I,
computed in float64.

    python benchmarks/svd.py                 # the table in docs/svd.md; some minutes
    python benchmarks/svd.py --seconds 2     # a quick look
    python benchmarks/svd.py --runs 5        # the ratio at whole models' shapes, five times over
    python benchmarks/svd.py --heads         # how near to orthogonal are the heads of SmolLM2-135M?

The last needs the wheel that `real_model.py` names.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import transformer_lens
from helpers.page import made_on

from tl_weighted_pca.factored.thin_svd import svd


class Case(NamedTuple):
    name: str
    batch: tuple[int, ...]
    l: int
    m: int
    r: int
    condition: float = 0.0  # of both factors; 0 for the entries of weights at initialisation
    repeat: int = 1  # query heads that share a key-value head
    dtype: torch.dtype = torch.float32


CASES = [
    Case("GPT-2 small, OV, all heads", (12, 12), 768, 64, 768),
    Case("GPT-2 medium, OV, 6 of 24 layers", (6, 16), 1024, 64, 1024),
    Case("Pythia-1.4b, OV, 6 of 24 layers", (6, 16), 2048, 128, 2048),
    Case("Llama-3.2-1B (grouped), OV, 3 of 16 layers", (3, 32), 2048, 64, 2048, repeat=4),
    Case("GPT-2 small, cond(A) = cond(B) = 4.2", (12, 12), 768, 64, 768, 4.2),
    Case("GPT-2 small, cond(A) = cond(B) = 100", (12, 12), 768, 64, 768, 1e2),
    Case("GPT-2 small, cond(A) = cond(B) = 1e12", (2, 12), 768, 64, 768, 1e12),
    Case("GPT-2 small, float64, one layer", (1, 12), 768, 64, 768, dtype=torch.float64),
    Case("one head of GPT-2 small", (), 768, 64, 768),
    Case("one head of Pythia-1.4b", (), 2048, 128, 2048),
    Case("a head through the unembedding", (), 768, 64, 50257),
    Case("inner dimension largest", (12,), 64, 768, 64),
    Case("square", (), 256, 256, 256),
    Case("32 × 8 × 32, a batch of 12", (12,), 32, 8, 32),
    Case("32 × 8 × 32", (), 32, 8, 32),
    Case("16 × 4 × 16", (), 16, 4, 16),
    Case("64 × 2 × 64", (), 64, 2, 64),
    Case("1000 × 1 × 1000", (), 1000, 1, 1000),
    Case("3 × 2 × 4", (), 3, 2, 4),
    Case("3 × 2 × 4, float64", (), 3, 2, 4, dtype=torch.float64),
]


def factors(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Random A and B; with a condition number, A and B of singular values spaced evenly in the logarithm."""
    torch.manual_seed(0)
    A = torch.randn(*case.batch, case.l, case.m) * 0.02
    B = torch.randn(*case.batch, case.m, case.r) * 0.02
    if case.condition:
        values = torch.logspace(0, -torch.tensor(case.condition).log10().item(), case.m).double()
        A, B = (_respaced(A, values), _respaced(B.mT, values).mT)
    if case.repeat > 1:
        A = A[..., :: case.repeat, :, :].repeat_interleave(case.repeat, dim=-3)
    return A.to(case.dtype).contiguous(), B.to(case.dtype).contiguous()


def _respaced(X: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    U, _, V_T = torch.linalg.svd(X.double(), full_matrices=False)
    return U * values @ V_T


def errors(A: torch.Tensor, B: torch.Tensor, U: torch.Tensor, S: torch.Tensor, V_T: torch.Tensor):
    """Relative reconstruction error and loss of orthogonality of the worst matrix (of at most 24)."""
    lead = A.shape[:-2].numel()
    A, B, U, V_T = (X.reshape(lead, *X.shape[-2:])[:24].double() for X in (A, B, U, V_T))
    S = S.reshape(lead, -1)[:24].double()
    M = A @ B
    difference = torch.linalg.matrix_norm((U * S[:, None]) @ V_T - M) / torch.linalg.matrix_norm(M)
    eye = torch.eye(S.shape[-1], dtype=torch.float64)
    orthogonality = max((U.mT @ U - eye).abs().max(), (V_T @ V_T.mT - eye).abs().max())
    return difference.max().item(), orthogonality.item()


def alternate(
    sides: dict[str, Callable[[], object]], seconds: float, calls: int
) -> dict[str, list[float]]:
    """Seconds per call of each side in each round, the order turning from round to round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[names[0]]) < 5:
        for name in names:
            start = time.perf_counter()
            for _ in range(calls):
                sides[name]()
            times[name].append((time.perf_counter() - start) / calls)
        names.append(names.pop(0))
    return times


def dense_time(A: torch.Tensor, B: torch.Tensor) -> float:
    """Seconds for torch.linalg.svd of all products, measured on one of them."""
    n = A.shape[:-2].numel()
    one_A, one_B = A.reshape(n, *A.shape[-2:])[0], B.reshape(n, *B.shape[-2:])[0]
    start = time.perf_counter()
    torch.linalg.svd(one_A @ one_B, full_matrices=False)
    return (time.perf_counter() - start) * n


def sides_of(case: Case) -> dict[str, Callable[[], object]]:
    """The two sides, warm."""
    A, B = factors(case)
    sides = {
        "theirs": lambda: transformer_lens.FactoredMatrix(A, B).svd(),
        "ours": lambda: svd(A, B),
    }
    for side in sides.values():
        side()
    return sides


def repeated(runs: int, seconds: float) -> None:
    """What a single run can't say: by how much the ratio of medians differs from run to run."""
    print("| case | " + " | ".join(f"run {i + 1}" for i in range(runs)) + " |")
    print("|---|" + "---:|" * runs)
    ratios: dict[str, list[float]] = {case.name: [] for case in CASES[:4]}
    for _ in range(runs):
        for case in CASES[:4]:
            times = alternate(sides_of(case), seconds, calls=1)
            theirs, ours = statistics.median(times["theirs"]), statistics.median(times["ours"])
            ratios[case.name].append(theirs / ours)
    for name, row in ratios.items():
        print(f"| {name} | " + " | ".join(f"{ratio:.1f}" for ratio in row) + " |")


def heads() -> None:
    """Of SmolLM2-135M's heads the quantiles of ‖D R⁻¹‖², which bounds ‖D x‖², and the share up to 6."""
    from real_model import smollm2

    layers = smollm2().original_model.model.layers
    print("| weights | 10% | median | 90% | largest | at most 6 |\n|---|---:|---:|---:|---:|---:|")
    for name in ("v_proj", "o_proj", "q_proj", "k_proj"):
        weights = torch.stack([getattr(layer.self_attn, name).weight for layer in layers]).detach()
        # [layer, head, d_head, d_model], also for what leads back to the residual stream.
        weights = weights.mT if name == "o_proj" else weights
        X = weights.unflatten(1, (-1, 64)).mT.double()
        inverse = torch.linalg.inv(torch.linalg.qr(X).R)
        stretch = torch.linalg.matrix_norm(X.norm(dim=-2)[..., None] * inverse, 2) ** 2
        spread = stretch.quantile(torch.tensor([0.1, 0.5, 0.9, 1.0]).double()).tolist()
        cells = " | ".join(f"{value:.2f}" for value in spread)
        print(f"| {name} | {cells} | {(stretch <= 6).double().mean():.0%} |")


def show(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and check the SVD of factored matrices.")
    parser.add_argument("--seconds", type=float, default=12, help="for each case")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--exactly", help="the case of this name")
    parser.add_argument("--heads", action="store_true", help="only look at the heads of SmolLM2")
    parser.add_argument("--runs", type=int, help="only the ratios of whole models, so many times")
    arguments = parser.parse_args()
    if arguments.heads:
        return heads()
    if arguments.runs:
        return repeated(arguments.runs, arguments.seconds)

    print(f"{made_on()} Load {os.getloadavg()[0]:.1f} at the start.\n")
    print(
        "| case | batch × [l, m] · [m, r] | TransformerLens | dense | ours | faster (quartiles) | rounds "
        "| reconstruction, theirs → ours | orthogonality, theirs → ours |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---|---|")
    for case in CASES:
        if arguments.only not in case.name or arguments.exactly not in (None, case.name):
            continue
        A, B = factors(case)
        sides = sides_of(case)
        small = A.numel() + B.numel() < 10**4
        times = alternate(sides, arguments.seconds, calls=50 if small else 1)
        medians = {name: statistics.median(values) for name, values in times.items()}
        rounds = [x / y for x, y in zip(times["theirs"], times["ours"], strict=True)]
        low, _, high = statistics.quantiles(rounds, n=4)
        dense = show(dense_time(A, B)) if case.l * case.r < 5e6 else "–"
        U, S, V = sides["theirs"]()
        theirs, ours = errors(A, B, U, S, V.mT), errors(A, B, *sides["ours"]())
        print(
            f"| {case.name} | {'×'.join(map(str, case.batch)) or 1} × [{case.l}, {case.m}] · "
            f"[{case.m}, {case.r}] | {show(medians['theirs'])} | {dense} | {show(medians['ours'])} | "
            f"**{medians['theirs'] / medians['ours']:.2f}×** ({low:.2f}–{high:.2f}) | {len(rounds)} | "
            f"{theirs[0]:.1e} → {ours[0]:.1e} | {theirs[1]:.1e} → {ours[1]:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
