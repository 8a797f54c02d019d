"""`demo`: the main job on the embedded model, with no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show
from tl_weighted_pca.cli.model_options import ModelOptions
from tl_weighted_pca.cli.options import (
    BatchSize,
    OutputOptions,
    Progress,
    Ranks,
    Seed,
    parsed_ranks,
)
from tl_weighted_pca.cli.pictures import PictureOptions
from tl_weighted_pca.cli.tables import ablation_table


# A folder by default, so that `demo` alone is a whole command.
@command(out=Path("demo-out"))
def demo(
    output: OutputOptions,
    pictures: PictureOptions,
    hook: Annotated[
        str, typer.Option(help="The hook point: where to compare the bases.")
    ] = "blocks.2.hook_resid_post",
    stories: Annotated[
        int, typer.Option(min=1, help="Training stories to make the bases from.")
    ] = 1000,
    heldout: Annotated[int, typer.Option(min=2, help="Held-out stories to score them on.")] = 300,
    slips: Annotated[
        bool, typer.Option("--slips", help="Use the noisy stories and the model trained on them.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Uncentred, path-metric and joint PCA, too.")
    ] = False,
    steps: Annotated[
        int, typer.Option(min=1, help="Of the trained basis: batches of 16 stories to train on.")
    ] = 100,
    ranks: Ranks = "",
    batch_size: BatchSize = 64,
    model_class: Annotated[
        Literal["HookedTransformer", "TransformerBridge"] | None,
        typer.Option(help="By default the first of them that TransformerLens has."),
    ] = None,
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Compare bases of the embedded model by node ablation, with no network, in
    about a minute.

    At one hook point it keeps the top k components of each basis, ablates the
    rest, and measures the model's loss on stories that neither the model nor the
    bases have seen.

    \b
    Example:
      tl-weighted-pca demo --hook blocks.1.hook_resid_post --out demo-1
    """
    # Not at the top: `--help` should not wait for torch.
    from tl_weighted_pca import embedded
    from tl_weighted_pca.cli.demo_run import run_demo

    chosen = parsed_ranks(ranks)
    source = ModelOptions("embedded-slips" if slips else "embedded", model_class)
    with output.folder() as run:
        found = run_demo(
            source.load(run),
            embedded.stories("train", stories, slips=slips),
            embedded.stories("heldout", heldout, slips=slips),
            hook,
            every=every,
            steps=steps,
            ranks=chosen,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        # Ahead of the files: a full disk must not cost what was found.
        show(ablation_table(found.curves, to="PCA"))
        show(found.sentence(), highlight=False)
        found.save(run.partial, pictures)
