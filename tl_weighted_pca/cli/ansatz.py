"""`ansatz`: do weights look like the gradients at their input?"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show
from tl_weighted_pca.cli.model_options import ModelOptions
from tl_weighted_pca.cli.options import (
    ObjectiveName,
    OutputOptions,
    PassOptions,
    Samples,
    Seed,
    objective,
)
from tl_weighted_pca.cli.pictures import PictureOptions
from tl_weighted_pca.cli.tables import table
from tl_weighted_pca.cli.text_options import DataOptions

_SHOWN = {
    "name": "weight",
    "cosine": "cosine",
    "identity": "of identity",
    "rotated": "rotated",
    "captured": "captured",
    "captured_by_chance": "by chance",
}


@command(max_tokens=20_000)
def ansatz(
    *,
    output: OutputOptions,
    source: ModelOptions,
    text: DataOptions,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            help="Only these layers (the unembedding counts as the one after the last); may be repeated."
        ),
    ] = None,
    what: Annotated[
        Literal["logits", "loss", "fisher"],
        typer.Option("--objective", help="What to differentiate; the paper uses 'logits'."),
    ] = "logits",
    samples: Samples = 1,
    folded: Annotated[
        bool, typer.Option("--folded", help="Use weights with the norms' gains folded into them.")
    ] = False,
    how: PassOptions,
    pictures: PictureOptions,
    seed: Seed = 0,
) -> None:
    """The deep neural feature ansatz: cos(W Wᵀ, E[g gᵀ]) for each weight, and
    what chance alone would give.

    \b
    Examples:
      tl-weighted-pca ansatz --out ansatz
      tl-weighted-pca ansatz --layer 0 --layer 1 --objective loss --out ansatz
    """
    from tl_weighted_pca.ansatz.model_ansatz import feature_ansatz

    with output.folder() as run:
        model, data = text.read(source, run)
        differentiated = objective(ObjectiveName(what), samples, seed)
        assert differentiated is not None
        found = feature_ansatz(
            model,
            data,
            layer,
            differentiated,
            folded=folded,
            max_tokens=text.max_tokens,
            **how.options,
        )
        frame = found.to_pandas()
        show(table(frame[list(_SHOWN)].rename(columns=_SHOWN), digits=3))
        frame.to_csv(run / "ansatz.csv", index=False)
        pictures.draw(run / "cosines.png", found.plot)
        pictures.draw(run / "captured.png", found.plot_captured)
