"""Is any factor worse decomposed here than by TransformerLens? A random search among contrived ones.

    python benchmarks/svd_search.py --seconds 120

Factors are random matrices, some with columns or rows of other sizes, parallel columns, signs, spikes,
a common mean, zeros. Counted are the products whose loss of orthogonality, or error relative to ‖A‖‖B‖,
exceeds both TransformerLens's and 1e-6; the worst are listed.
"""

import argparse
import random
import time

import torch
import transformer_lens
from helpers.page import made_on
from svd import errors

from tl_weighted_pca.factored.thin_svd import svd


def contrived(l: int, m: int, choose: random.Random) -> tuple[torch.Tensor, str]:
    """A factor [l, m], and what was done to it."""
    X, done = torch.randn(l, m), []
    for _ in range(choose.randint(0, 2)):
        done.append(
            choose.choice(["columns", "rows", "parallel", "signs", "spike", "mean", "zeros"])
        )
        if done[-1] == "columns":
            X = X * torch.logspace(0, choose.uniform(-10, 10), m)
        elif done[-1] == "rows":
            X = X * torch.logspace(0, choose.uniform(-10, 10), l)[:, None]
        elif done[-1] == "parallel":
            X[:, 1] = X[:, 0] + 10 ** choose.uniform(-8, 0) * X[:, 1]
        elif done[-1] == "signs":
            X = X.sign() * X.abs().amax()
        elif done[-1] == "spike":
            X[choose.randrange(l)] *= 10 ** choose.uniform(0, 5)
        elif done[-1] == "mean":
            X = X + choose.uniform(0, 1) * X.abs().amax()
        else:
            X = X * (torch.rand(l, m) < choose.uniform(0.01, 0.3))
    return X, "+".join(done) or "random"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    choose = random.Random(arguments.seed)
    n, worse = 0, {"reconstruction": 0, "orthogonality": 0}
    listed = []
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        m = choose.choice([16, 32, 48, 64, 97, 128])
        A, of_A = contrived(choose.randint(2 * m, 1100), m, choose)
        B, of_B = contrived(choose.randint(2 * m, 1100), m, choose)
        B = B.mT
        U, S, V = transformer_lens.FactoredMatrix(A, B).svd()
        theirs, ours = errors(A, B, U, S, V.mT), errors(A, B, *svd(A, B))
        # Reconstruction relative to the factors: products that cancel have no digits to lose.
        product, *each = (X.double().norm().item() for X in (A.double() @ B.double(), A, B))
        scale = product / max(each[0] * each[1], 1e-300)
        for kind, us, them in (
            ("reconstruction", ours[0] * scale, theirs[0] * scale),
            ("orthogonality", ours[1], theirs[1]),
        ):
            if not us <= max(them, 1e-6):
                worse[kind] += 1
                listed.append((us / them, f"{kind} {us:.1e}, theirs {them:.1e}: {of_A} | {of_B}"))
        n += 1
    print(made_on())
    print(f"{n} products; worse than TransformerLens's: {worse}")
    for ratio, line in sorted(listed, reverse=True)[:5]:
        print(f"  {ratio:.1f}× {line}")


if __name__ == "__main__":
    main()
