"""The command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from tl_weighted_pca.curves import AblationCurves

app = typer.Typer(
    name="tl-weighted-pca",
    help="Find the directions a transformer uses.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Find the directions a transformer uses."""


@contextmanager
def one_sentence(debug: bool) -> Iterator[None]:
    """What the user can mend is told in one sentence on stderr, with exit code 1 and no traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        if debug:
            raise
        # Escaped: to rich a shape such as [batch, pos] is a tag, and vanishes.
        sentence = f"[bold red]Error:[/] {escape(str(error))}"
        Console(stderr=True, soft_wrap=True).print(sentence, highlight=False)
        raise typer.Exit(1) from error


@app.command()
def demo(
    hook: Annotated[
        str, typer.Option(help="The hook point: where to compare the bases.")
    ] = "blocks.2.hook_resid_post",
    out: Annotated[
        Path,
        typer.Option(file_okay=False, help="Folder for the picture, the table and the bases."),
    ] = Path("demo-out"),
    stories: Annotated[
        int, typer.Option(min=1, help="Training stories to make the bases from.")
    ] = 1000,
    heldout: Annotated[int, typer.Option(min=2, help="Held-out stories to score them on.")] = 300,
    ranks: Annotated[
        str,
        typer.Option(help="Components to keep, such as '0,16,32'; by default nine, none to all."),
    ] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Stories a batch.")] = 64,
    seed: Annotated[
        int,
        typer.Option(help="Of the sampled labels and the random basis; same seed, same numbers."),
    ] = 0,
    model_class: Annotated[
        str,
        typer.Option(help="HookedTransformer or TransformerBridge; by default the best there is."),
    ] = "",
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Compare bases of the embedded model by node ablation, with no network, in under a minute.

    At one hook point it keeps the top k components of each basis, ablates the rest, and measures the
    model's loss on stories that neither the model nor the bases have seen.
    """
    with one_sentence(debug):
        # Not at the top: `--help` should not wait for torch.
        import torch

        from tl_weighted_pca import embedded
        from tl_weighted_pca.demo import run_demo

        # The model is so small that two threads only wait for each other.
        torch.set_num_threads(1)
        steps = _ranks(ranks)
        model = embedded.load_model(model_class or None)  # type: ignore[arg-type]
        found = run_demo(
            model,
            embedded.stories("train", stories),
            embedded.stories("heldout", heldout),
            hook,
            ranks=steps,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        console = Console()
        # Ahead of the files: a full disk must not cost what was found.
        console.print(_table(found.curves))
        console.print(found.sentence(), highlight=False)
        written = ", ".join(file.name for file in found.save(out))
        console.print(f"Written to {out}: {written}.", highlight=False, markup=False)


def _ranks(text: str) -> list[int] | None:
    try:
        return [int(part) for part in text.split(",")] if text.strip() else None
    except ValueError as error:
        raise ValueError(
            f"--ranks is {text!r}; expected whole numbers with commas between them, such as '0,16,32'."
        ) from error


def _table(curves: AblationCurves) -> Table:
    """Loss by rank and basis, the lowest in bold, then the two summaries."""
    table = Table(
        title=f"Held-out loss by components kept at {curves.hook_point} (nats per token)",
        caption="area: the mean excess loss over ranks. relative: the excess over PCA's, geometric mean "
        "over ranks d/8 to d/2, ± half its 95% interval.",
    )
    names = list(curves.per_sequence)
    table.add_column("kept", justify="right", no_wrap=True, min_width=len("relative"))
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for i, rank in enumerate(curves.ranks):
        losses = [curves.scores[name][i] for name in names]
        lowest = f"{min(losses):.3f}"
        shown = [f"[bold]{x:.3f}[/]" if f"{x:.3f}" == lowest else f"{x:.3f}" for x in losses]
        table.add_row(str(rank), *shown, end_section=i == len(curves.ranks) - 1)
    table.add_row("area", *(f"{float(curves.area(name)):.3f}" for name in names))
    try:
        middle = [k for k in curves.ranks if curves.width / 8 <= k <= curves.width / 2]
        ratios = [curves.relative_excess(name, to="PCA", ranks=middle) for name in names]
    except ValueError:  # no rank in the middle was asked for
        return table
    table.add_row("relative", *(f"{r:.2f}\n±{(r.high - r.low) / 2:.2f}" for r in ratios))
    return table


if __name__ == "__main__":
    app()
