"""The program: its commands, and what comes before any of them."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Annotated

import typer

from tl_weighted_pca.cli.ablate import ablate
from tl_weighted_pca.cli.ansatz import ansatz
from tl_weighted_pca.cli.basis import basis
from tl_weighted_pca.cli.cards import cards
from tl_weighted_pca.cli.collect import collect
from tl_weighted_pca.cli.demo import demo
from tl_weighted_pca.cli.dictionary import dictionary
from tl_weighted_pca.cli.errors import Debug, OneSentenceGroup
from tl_weighted_pca.cli.info import info
from tl_weighted_pca.cli.interaction import interaction
from tl_weighted_pca.cli.map import map as map_model
from tl_weighted_pca.cli.report import report
from tl_weighted_pca.cli.svd import svd

app = typer.Typer(
    name="tl-weighted-pca",
    cls=OneSentenceGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("tl-weighted-pca"))
        raise typer.Exit


@app.callback()
def main(
    debug: Debug = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Find the directions a transformer uses.

    Each step's folder is the next one's input: collect, basis, ablate, cards.
    """
    # Pictures go into files: what a notebook's environment says to draw with may not be there.
    os.environ["MPLBACKEND"] = "agg"


for _command in (
    demo,
    map_model,
    collect,
    basis,
    ablate,
    cards,
    svd,
    ansatz,
    interaction,
    dictionary,
    report,
    info,
):
    app.command()(_command)
