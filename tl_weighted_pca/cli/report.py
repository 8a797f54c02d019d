"""`report`: a chain of run folders on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.options import OutputOptions


@command()
def report(
    *,
    output: OutputOptions,
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders that other commands wrote.")
    ],
) -> None:
    """Put run folders on one page to mail: moments, bases, curves, maps, cards
    and manifests.

    The page is one file, report.html, that opens offline. Runs come in the order
    of their chain, each after those whose files it read.

    \b
    Example:
      tl-weighted-pca report run bases ablation cards --out report
    """
    from tl_weighted_pca.runs.run_report import report as report_of

    with output.folder() as run:
        found = report_of(folders)
        for each in found.runs:
            run.reads(each.folder)
        found.save(run / "report.html")
