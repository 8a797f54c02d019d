"""`cards`: what the components of a basis mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show
from tl_weighted_pca.cli.model_options import SameModelOptions
from tl_weighted_pca.cli.options import (
    BatchSize,
    Debug,
    OutputOptions,
    PositionSlice,
    Progress,
    Seed,
    existing_file,
    parsed_positions,
)
from tl_weighted_pca.cli.text_options import SampleOptions


@command
def cards(
    context: typer.Context,
    output: OutputOptions,
    same: SameModelOptions,
    text: SampleOptions,
    basis: Annotated[Path, typer.Argument(help="A file made by `basis`, or by `interaction`.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many components.")] = 20,
    contexts: Annotated[int, typer.Option(min=1, help="Of each component, at either end.")] = 8,
    ablation: Annotated[
        bool, typer.Option(help="Measure what the loss of each component alone costs the model.")
    ] = True,
    positions: PositionSlice = "1:",
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    progress: Progress = True,
    debug: Debug = False,
) -> None:
    """Write a page of cards, one a component: the tokens it promotes, where it
    is strong, its histogram, what its loss costs.

    On the embedded model's stories also which fact of a story it tells. The page
    is one file, cards.html, that opens offline; cards.csv holds its numbers.

    \b
    Examples:
      tl-weighted-pca cards bases/blocks.2.hook_resid_post.pca.safetensors \\
          --out cards
      tl-weighted-pca cards bases/blocks.2.hook_mlp_out.metric.safetensors \\
          --dataset notes.txt -n 10 --out cards
    """
    from tl_weighted_pca import embedded
    from tl_weighted_pca.bases.basis import Basis
    from tl_weighted_pca.feature_cards import cards as feature_cards

    where = parsed_positions(positions)
    with output.folder(context) as run:
        one = Basis.load(run.reads(existing_file(basis)))
        source = same.of(run)
        text.check(source, run)
        model = source.load(run)
        source.check_made(model, one.provenance)
        found = feature_cards(
            model,
            text.load(model, "heldout", source.slips),
            one,
            n,
            facts=embedded.FACTS if text.dataset is None else None,
            contexts=contexts,
            score="loss" if ablation else None,
            positions=where,
            batch_size=batch_size,
            max_tokens=text.max_tokens,
            seed=seed,
            progress=progress,
        )
        found.save(run / "cards.html")
        found.to_pandas().to_csv(run / "cards.csv", index=False)
        facts = found.facts_to_pandas()
        if len(facts):
            facts.to_csv(run / "facts.csv", index=False)
        show(
            f"{len(found)} cards of {found.method} at {found.hook_point}, "
            f"from {found.n_tokens:,} tokens.",
            highlight=False,
        )
