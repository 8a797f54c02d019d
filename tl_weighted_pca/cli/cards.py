"""`cards`: what the components of a basis mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show
from tl_weighted_pca.cli.left_out import report_left_out
from tl_weighted_pca.cli.model_options import SameModelOptions
from tl_weighted_pca.cli.options import CountedOptions, OutputOptions, Seed, existing_file
from tl_weighted_pca.cli.text_options import DataOptions


@command(positions="1:", max_tokens=20_000)
def cards(
    *,
    output: OutputOptions,
    same: SameModelOptions,
    text: DataOptions,
    basis: Annotated[Path, typer.Argument(help="A file made by `basis`, or by `interaction`.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Number of components.")] = 20,
    contexts: Annotated[
        int, typer.Option(min=1, help="Contexts of each component, at either end.")
    ] = 8,
    ablation: Annotated[
        bool, typer.Option(help="Measure what ablating each component alone costs the model.")
    ] = True,
    compare: Annotated[
        Path | None, typer.Option(help="Another basis, whose nearest components are shown.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A text to show token by token; may be repeated.")
    ] = None,
    how: CountedOptions,
    seed: Seed = 0,
) -> None:
    """Write a page of cards, one a component: the tokens it promotes, where it
    is strong, its histogram, its neighbours, what its loss costs.

    On the embedded model's stories also which fact of a story it tells. The page
    is one file, cards.html, that opens offline (past 64 components an index of
    one file a component, and cards_whole.html has all of them for a report);
    cards.csv and cards.json hold its numbers.

    \b
    Examples:
      tl-weighted-pca cards bases/blocks.2.hook_resid_post.pca.safetensors \\
          --out cards
      tl-weighted-pca cards bases/blocks.2.hook_mlp_out.path.safetensors \\
          --dataset notes.txt -n 10 --out cards
    """
    from tl_weighted_pca import embedded
    from tl_weighted_pca.bases.basis import Basis
    from tl_weighted_pca.bases.names import display_name
    from tl_weighted_pca.feature_cards import cards as feature_cards
    from tl_weighted_pca.feature_cards.page import ON_ONE_PAGE
    from tl_weighted_pca.support.files import write_text_atomically

    with output.folder() as run:
        one = Basis.load(existing_file(basis))
        run.reads(basis)
        how = how.of(run)  # the basis's own, whatever it is compared with
        other = None if compare is None else Basis.load(existing_file(compare))
        if compare is not None:
            run.reads(compare)  # once it is known to be a basis: what is huge takes long to hash
        text, own = text.of(run)
        made = [one.provenance]
        model, data = text.read(same.of(run), run, "heldout", made=made, own=own)
        found = feature_cards(
            model,
            data,
            one,
            n,
            facts=embedded.FACTS if text.dataset is None else None,
            compare=other,
            prompts=prompt or (),
            contexts=contexts,
            score="loss" if ablation else None,
            max_tokens=text.max_tokens,
            seed=seed,
            **how.options,
        )
        found.save(run / "cards.html")
        if len(found) > ON_ONE_PAGE:
            write_text_atomically(run / "cards_whole.html", found.to_html())
        found.to_pandas().to_csv(run / "cards.csv", index=False)
        write_text_atomically(run / "cards.json", found.to_json())
        facts = found.facts_to_pandas()
        if len(facts):
            facts.to_csv(run / "facts.csv", index=False)
        if found.ablations is not None:
            report_left_out(found.ablations.left_out, run)
        show(
            f"{len(found)} cards of {display_name(found.method)} at {found.hook_point}, "
            f"from {found.n_tokens:,} tokens.",
            highlight=False,
        )
