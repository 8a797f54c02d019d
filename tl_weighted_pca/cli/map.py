"""`map`: how many directions each layer of a model uses."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show
from tl_weighted_pca.cli.left_out import report_left_out
from tl_weighted_pca.cli.model_options import ModelOptions
from tl_weighted_pca.cli.options import CountedOptions, Hooks, OutputOptions, Resume
from tl_weighted_pca.cli.pictures import PictureOptions
from tl_weighted_pca.cli.tables import table
from tl_weighted_pca.cli.text_options import DataOptions

if TYPE_CHECKING:
    from rich.table import Table

    from tl_weighted_pca.model_map.dimensions import DimensionMap
    from tl_weighted_pca.runs.run_folder import RunFolder


class MapBasis(str, Enum):
    """A basis that a map can make."""

    pca = "pca"
    fisher = "fisher"
    random = "random"


@command()
def map(
    *,
    output: OutputOptions,
    source: ModelOptions,
    text: DataOptions,
    heldout: Annotated[
        str | None,
        typer.Option(
            help="Other text, as for --dataset, to score on. By default the held-out stories, or "
            "every tenth text of --dataset.",
            rich_help_panel=DataOptions.PANEL,
        ),
    ] = None,
    heldout_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="--max-tokens of the held-out text.", rich_help_panel=DataOptions.PANEL
        ),
    ] = 20_000,
    hook: Hooks = ["blocks.*.hook_resid_post"],  # noqa: B006 (typer's, and never changed)
    basis: Annotated[
        list[MapBasis],
        typer.Option(help="PCA, PCA in the Fisher metric, or a random rotation."),
    ] = [MapBasis.pca, MapBasis.fisher],  # noqa: B006
    tolerance: Annotated[
        float, typer.Option(min=0, help="The excess in nats up to which a rank is enough.")
    ] = 0.1,
    shares: Annotated[
        str, typer.Option(help="Of the width to keep, such as '0,0.25,0.5,1'; ten by default.")
    ] = "",
    score: Annotated[
        Literal["loss", "kl"],
        typer.Option(help="The next-token loss, or the KL divergence from the unablated model."),
    ] = "loss",
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="Batches between two checkpoints.")
    ] = 20,
    resume: Resume = False,
    how: CountedOptions,
    pictures: PictureOptions,
) -> None:
    """Map a model: how many components every hook point needs.

    One pass makes the bases at all hook points; one ablates each of them alone,
    keeping ten shares of its width. The folder then holds a page, a picture and
    all numbers with 95% intervals. A run that is cut short goes on with --resume.

    \b
    Examples:
      tl-weighted-pca map --out map
      tl-weighted-pca map --model gpt2 --dataset notes.txt \\
          --hook 'blocks.*.hook_resid_post' --hook 'blocks.*.mlp.hook_post' \\
          --out map
    """
    from tl_weighted_pca.model_map.measurement import SHARES, dimension_map
    from tl_weighted_pca.runs.run_folder import partial_of

    steps = _parsed_shares(shares) or SHARES
    if resume:
        output.stop_if_done()
    with output.folder(resume=resume) as run:
        model, data, judged = _read(source, run, text, heldout, heldout_tokens)
        found = dimension_map(
            model,
            data,
            hook,
            heldout=judged,
            bases=[each.value for each in basis],
            shares=steps,
            tolerance=tolerance,
            score=score,
            max_tokens=text.max_tokens,
            heldout_tokens=heldout_tokens,
            checkpoint=partial_of(output.out),
            checkpoint_every=checkpoint_every,
            **how.options,
        )
        _write(found, run, run.manifest["model"]["name"], pictures)


def _read(
    source: ModelOptions, run: RunFolder, text: DataOptions, heldout: str | None, n_tokens: int
) -> tuple[Any, Any, Any]:
    """The model, what to make the bases of, and what to score on."""
    text.check(source, run, *([] if heldout is None else [heldout]))
    model = source.load(run)
    data = text.load(model, "train", source.slips)
    own = heldout is None and text.dataset is not None
    other = replace(
        text,
        dataset=text.dataset if own else heldout,
        split=text.split if own or heldout is not None else None,
        max_tokens=n_tokens,
    )
    return model, data, other.load(model, "heldout", source.slips, own=own)


def ranks_table(found: DimensionMap) -> Table:
    """The smallest rank of each basis at each hook point, with its interval."""
    import pandas as pd

    from tl_weighted_pca.bases.names import display_name
    from tl_weighted_pca.model_map.page import whole

    ranks = {name: found.smallest_ranks(name) for name in found.names}
    rows = [
        {"hook point": place, "width": curves.width}
        | {
            display_name(
                name
            ): f"{whole(at[place])} [{whole(at[place].low)}, {whole(at[place].high)}]"
            for name, at in ranks.items()
        }
        for place, curves in found.items()
    ]
    return table(pd.DataFrame(rows), f"Components within {found.tolerance:g} nats")


def _write(found: DimensionMap, run: RunFolder, model: str, pictures: PictureOptions) -> None:
    """The table to the terminal first: a full disk must not cost what was found."""
    from tl_weighted_pca.model_map.page import page

    show(ranks_table(found))
    report_left_out({s: c.left_out[s] for s, c in found.items() if c.left_out}, run)
    found.save(run / "map.safetensors")
    found.to_pandas().to_csv(run / "map.csv", index=False)
    PictureOptions().draw(run / "map.png", partial(found.plot, title=model))
    text = page(found, f"Dimensions of {model}", interactive=pictures.interactive)
    (run / "map.html").write_text(text, encoding="utf-8")


def _parsed_shares(text: str) -> list[float]:
    """'0,0.25,1' as numbers."""
    try:
        found = [float(part) for part in text.split(",")] if text.strip() else []
        if not all(0 <= share <= 1 for share in found):
            raise ValueError
        return found
    except ValueError as error:
        raise ValueError(
            f"--shares is {text!r}; expected numbers between 0 and 1 with commas between them, such as "
            "'0,0.25,0.5,1'."
        ) from error
