"""`ablate`: which basis keeps the model's loss low for longest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show
from tl_weighted_pca.cli.left_out import report_left_out
from tl_weighted_pca.cli.model_options import SameModelOptions
from tl_weighted_pca.cli.options import (
    CountedOptions,
    OutputOptions,
    Ranks,
    existing,
    parsed_ranks,
)
from tl_weighted_pca.cli.pictures import PictureOptions
from tl_weighted_pca.cli.tables import ablation_table
from tl_weighted_pca.cli.text_options import DataOptions

if TYPE_CHECKING:
    from tl_weighted_pca.bases.basis import Basis
    from tl_weighted_pca.runs.run_folder import RunFolder


@command(max_tokens=20_000)
def ablate(
    *,
    output: OutputOptions,
    same: SameModelOptions,
    text: DataOptions,
    bases: Annotated[
        list[Path], typer.Argument(help="Files of bases, or folders of them made by `basis`.")
    ],
    ranks: Ranks = "",
    score: Annotated[
        Literal["loss", "kl"],
        typer.Option(help="The next-token loss, or the KL divergence from the unablated model."),
    ] = "loss",
    anywhere: Annotated[
        bool, typer.Option("--anywhere", help="Accept bases made with another model.")
    ] = False,
    how: CountedOptions,
    pictures: PictureOptions,
) -> None:
    """Keep the top k components of each basis, ablate the rest, and score the model.

    For each hook point that the bases were made at there is a table and a
    picture of the excess over the unablated model; ablation.csv holds all
    numbers, with 95% intervals.

    \b
    Examples:
      tl-weighted-pca ablate bases --out ablation
      tl-weighted-pca ablate bases/*.pca.safetensors --ranks 0,8,16,32 \\
          --dataset notes.txt --out ablation
    """
    import pandas as pd

    from tl_weighted_pca.ablation.node_ablation import ablation_curves

    steps = parsed_ranks(ranks)
    with output.folder() as run:
        by_place = _by_hook_point(bases, run)
        made = [one.provenance for named in by_place.values() for one in named.values()]
        (text, own), how = text.of(run), how.of(run)
        model, data = text.read(
            same.of(run),
            run,
            "heldout",
            made=() if anywhere else made,
            unless="--anywhere",
            own=own,
        )
        found = {}
        for place, named in by_place.items():
            curves = ablation_curves(
                model,
                data,
                named,
                place,
                ranks=steps,
                score=score,
                anywhere=anywhere,
                max_tokens=text.max_tokens,
                **how.options,
            )
            # Ahead of the files: a full disk must not cost what was found.
            show(ablation_table(curves, to="pca" if "pca" in named else None))
            found[place] = curves
        tables = [curves.to_pandas() for curves in found.values()]
        pd.concat(tables).to_csv(run / "ablation.csv", index=False)
        left_out = {
            place: curves.left_out[place] for place, curves in found.items() if curves.left_out
        }
        report_left_out(left_out, run)
        for place, curves in found.items():
            pictures.draw(run / f"{place}.png", curves.plot)


def _by_hook_point(paths: list[Path], run: RunFolder) -> dict[str, dict[str, Basis]]:
    """The bases by hook point and by what their files call them, without the hook point.

    Raises:
        ValueError: if there are none, or two of one name.
    """
    from tl_weighted_pca.bases.basis import Basis

    found: dict[str, dict[str, Basis]] = {}
    for path in paths:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"The folder {path} holds no bases: pass one made by `basis`.")
        for file in files:
            if file.name.startswith("moments"):
                raise ValueError(f"{file} holds moments: make bases of them first, with `basis`.")
            one = Basis.load(existing(file))
            run.reads(file)  # once it is known to be one: what is huge takes long to hash
            place = one.provenance.hook_point
            name = file.stem.removeprefix(f"{place}.").replace("-", " ")
            here = found.setdefault(place, {})
            if name in here:
                raise ValueError(
                    f"Two bases at {place} are called {name!r}: rename one of the files, or leave it out."
                )
            here[name] = one
    return found
