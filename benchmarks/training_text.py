"""How much text does a trained basis need, and does it have to be of the kind that it is judged on?

    python benchmarks/training_text.py --out docs/trained_basis.md       # three minutes of CPU
    python benchmarks/training_text.py --plain --out docs/trained_basis.md
    python benchmarks/training_text.py --quick                           # a minute, to see that it runs

One hook point of an embedded model. Fisher-metric PCA and the basis trained from it are made of so many
tokens per dimension of the model's own kind of story, and of the other kind, and judged on held-out stories
of its own: the excess loss over d/8 to d/2, relative to the PCA of all its training stories. What is done is
kept in a folder, trainings under way included.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

from helpers.kept import Kept
from helpers.page import made_on, write_between_marks

import tl_weighted_pca as wpca

HOOK_POINT = "blocks.2.hook_resid_post"


def first_tokens(stories: Any, n_tokens: int) -> Any:
    """The first stories that have so many tokens, or all there are."""
    sizes = itertools.accumulate(map(len, stories["input_ids"]))
    n = sum(size < n_tokens for size in sizes) + 1
    return stories.select(range(min(n, len(stories))))


def bases_of(model: Any, stories: Any, steps: int, kept: Kept, key: str) -> dict[str, wpca.Basis]:
    """PCA, Fisher-metric PCA and the basis trained from it, of some stories."""
    m = kept.moments(f"collect {key}", model, stories, HOOK_POINT)
    bases = {"pca": wpca.pca(m), "fisher": wpca.metric_pca(m)}
    bases["trained"] = kept.basis(
        f"trained {key}",
        lambda: wpca.optimize_basis(
            model,
            stories,
            bases["fisher"],
            steps=steps,
            # At least six batches, of which one is held out.
            batch_size=max(1, min(16, len(stories) // 6)),
            checkpoint=kept.folder / f"trained {key}.checkpoint",
            progress=False,
        ),
    )
    return bases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write the table between the marks on this page")
    parser.add_argument("--plain", action="store_true", help="the model of plain stories")
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument(
        "--tokens", type=int, nargs="*", default=[30, 100, 300], help="per dimension"
    )
    parser.add_argument("--train", type=int, default=500, help="training stories")
    parser.add_argument("--heldout", type=int, default=60, help="held-out stories")
    parser.add_argument("--quick", action="store_true", help="few stories, few steps")
    parser.add_argument("--keep", type=Path, default=Path(".cache"), help="folder of what is done")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.train, arguments.heldout, arguments.steps = 96, 16, 4
        arguments.tokens, arguments.keep = [30], Path(tempfile.mkdtemp())
    slips = not arguments.plain
    model = wpca.embedded.load_model(slips=slips)
    own, other = (
        wpca.embedded.stories("train", arguments.train, slips=kind) for kind in (slips, not slips)
    )
    heldout = wpca.embedded.stories("heldout", arguments.heldout, slips=slips)
    width = model.cfg.d_model
    texts = {
        **{f"{n} tokens per dimension": first_tokens(own, n * width) for n in arguments.tokens},
        "all": own,
        "all of the other kind": other,
    }
    kept = Kept(arguments.keep / ("training-text-slips" if slips else "training-text-plain"))
    bases: dict[str, wpca.Basis] = {}
    for name, stories in texts.items():
        key = name.replace(" ", "-")
        for method, basis in bases_of(model, stories, arguments.steps, kept, key).items():
            bases[f"{method} {name}"] = basis
    ranks = [i * width // 8 for i in range(1, 5)]
    judged = {n: b for n, b in bases.items() if not n.startswith("pca") or n == "pca all"}
    curves = kept.curves(
        " ".join(["curves", *map(str, arguments.tokens)]),
        lambda: wpca.ablation_curves(
            model, heldout, judged, HOOK_POINT, ranks=ranks, progress=False
        ),
    )
    rows = [
        "| training text | stories | Fisher-metric PCA | trained basis |",
        "|---|---:|---:|---:|",
    ]
    for name, stories in texts.items():
        found = [
            curves.relative_excess(f"{method} {name}", to="pca all")
            for method in ("fisher", "trained")
        ]
        cells = [f"{e:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in found]
        rows.append(f"| {name} | {len(stories)} | " + " | ".join(cells) + " |")
    said = [
        "",
        f"{'Noisy' if slips else 'Plain'} stories, {HOOK_POINT}, {arguments.steps} steps.",
        "",
        made_on(),
    ]
    print("\n".join([*rows, *said]))
    if arguments.out:
        mark = "training text" if slips else "training text of plain"
        write_between_marks(arguments.out, mark, [*rows, *said])


if __name__ == "__main__":
    main()
