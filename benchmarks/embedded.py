"""What the embedded models know: held-out loss against the exact entropy and a bigram model.

python benchmarks/embedded.py
python benchmarks/embedded.py --slips
"""

import argparse

from helpers.page import made_on

from tl_weighted_pca import embedded
from tl_weighted_pca.embedded.score import Bigram, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=int, default=1_000, help="number of held-out stories")
    parser.add_argument("--kind", choices=["HookedTransformer", "TransformerBridge"])
    parser.add_argument("--slips", action="store_true", help="the model of noisy stories")
    args = parser.parse_args()

    heldout = embedded.stories("heldout", args.stories, slips=args.slips)
    model = score(embedded.load_model(args.kind, device="cpu", slips=args.slips), heldout)
    bigram = score(Bigram(embedded.stories("train", slips=args.slips)), heldout)

    print(f"{len(heldout)} held-out stories      nats/token   over entropy   fact tokens right")
    print(f"exact entropy             {model.entropy:10.4f}")
    for name, result in (("embedded model", model), ("bigram model", bigram)):
        print(
            f"{name:26}{result.loss:10.4f}   {result.excess:+11.1%}   {result.accuracy:16.1%}",
        )
    print("\nfact         tokens    model   bigram")
    for kind, count in model.count_of.items():
        ours, theirs = model.accuracy_of[kind], bigram.accuracy_of[kind]
        print(f"{kind:12} {count:6d} {ours:8.1%} {theirs:8.1%}")
    print(made_on())


if __name__ == "__main__":
    main()
