"""Do the components of a trained basis read better than PCA's? The first ten cards of each, in one table.

    python benchmarks/trained_cards.py --out docs/training_finds.md       # a minute of CPU
    python benchmarks/trained_cards.py --quick                           # seconds, to see that it runs

The noisy-story model after block 2, cards of held-out stories: the tokens at which a component is most often
highest and lowest, one a story, and the fact of the story that it tells best (ε², where 0 is chance).
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from helpers.kept import Kept
from helpers.page import folded, made_on, write_between_marks

import tl_weighted_pca as wpca
from tl_weighted_pca.feature_cards.card import Context

HOOK_POINT = "blocks.2.hook_resid_post"


def tokens(contexts: list[Context]) -> str:
    """The two tokens that most of the contexts are about."""
    counted = Counter(context.token.strip() for context in contexts)
    return ", ".join(f"`{token}`" for token, _ in counted.most_common(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the table between the marks on this page")
    parser.add_argument("--steps", type=int, default=400, help="of the training")
    parser.add_argument("--train", type=int, default=500, help="training stories")
    parser.add_argument("--heldout", type=int, default=100, help="held-out stories")
    parser.add_argument("--quick", action="store_true", help="few stories, few steps")
    parser.add_argument("--keep", type=Path, default=Path(".cache"), help="folder of what is done")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.train, arguments.heldout, arguments.steps = 96, 40, 4
        arguments.keep = Path(tempfile.mkdtemp())
    model = wpca.embedded.load_model(slips=True)
    stories = wpca.embedded.stories("train", arguments.train, slips=True)
    heldout = wpca.embedded.stories("heldout", arguments.heldout, slips=True)
    kept = Kept(arguments.keep / "trained-cards")
    m = kept.moments("collect", model, stories, HOOK_POINT)
    trained = kept.basis(
        f"trained {arguments.steps}",
        lambda: wpca.optimize_basis(
            model, stories, wpca.metric_pca(m), steps=arguments.steps, progress=False
        ),
    )
    rows = [
        "| basis | component | highest at | lowest at | fact told best | ε² |",
        "|---|---:|---|---|---|---:|",
    ]
    for name, basis in {"trained basis": trained, "PCA": wpca.pca(m)}.items():
        for card in wpca.cards(
            model,
            heldout,
            basis,
            10,
            facts=wpca.embedded.FACTS,
            score=None,
            positions=slice(1, None),
            batch_size=32,
            progress=False,
        ):
            best = card.facts[0]
            rows.append(
                f"| {name} | {card.component} | {tokens(card.highest)} | {tokens(card.lowest)} "
                f"| {best.fact}, {best.where} | {best.beyond_chance:.2f} |"
            )
    lines = folded("Ten components of each", [*rows, "", made_on()])
    print("\n".join(lines))
    if arguments.out:
        write_between_marks(arguments.out, "cards", lines)


if __name__ == "__main__":
    main()
