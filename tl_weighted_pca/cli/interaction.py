"""`interaction`: the local interaction basis, and what interacts in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show
from tl_weighted_pca.cli.model_options import ModelOptions
from tl_weighted_pca.cli.options import (
    Hooks,
    OutputOptions,
    PassOptions,
    Seed,
)
from tl_weighted_pca.cli.pictures import PictureOptions
from tl_weighted_pca.cli.tables import table
from tl_weighted_pca.cli.text_options import DataOptions

if TYPE_CHECKING:
    from tl_weighted_pca.interaction.graph import InteractionGraph


@command(max_tokens=20_000)
def interaction(
    *,
    output: OutputOptions,
    source: ModelOptions,
    text: DataOptions,
    hook: Hooks = ["blocks.*.hook_resid_post"],  # noqa: B006 (typer's, and never changed)
    probes: Annotated[
        int, typer.Option(min=1, help="Random probes per sequence, where Jacobians are estimated.")
    ] = 8,
    share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of each pair of layers' strength that edges.csv holds."
        ),
    ] = 0.99,
    edge_tokens: Annotated[
        int,
        typer.Option(min=1, help="Tokens for the edges, which take a gradient for each feature."),
    ] = 1_000,
    how: PassOptions,
    pictures: PictureOptions,
    seed: Seed = 0,
) -> None:
    """The local interaction basis of neighbouring hook points, first to last,
    and the strength of each interaction.

    Each hook point must carry all that reaches the next, as the residual stream
    does. The bases are files for `ablate` and `cards`.

    \b
    Examples:
      tl-weighted-pca interaction --out lib
      tl-weighted-pca interaction --hook blocks.1.hook_resid_post \\
          --hook blocks.2.hook_resid_post --out lib
    """
    from tl_weighted_pca.interaction.local_basis import interaction_edges, local_interaction_basis
    from tl_weighted_pca.models.hook_points import resolve

    with output.folder() as run:
        model, data = text.read(source, run)
        points = resolve(model, hook)
        options = {"seed": seed, **how.options}
        bases = local_interaction_basis(
            model,
            data,
            points,
            n_probes=probes,
            max_tokens=text.max_tokens,
            **options,
        )
        for name, basis in bases.items():
            basis.save(run / f"{name}.local_interaction_basis.safetensors")
        tokens = min(edge_tokens, text.max_tokens)
        graph = interaction_edges(model, data, bases, max_tokens=tokens, **options)
        show(table(_summary(graph)))
        graph.to_pandas(share).to_csv(run / "edges.csv", index=False)
        pictures.draw(run / "graph.png", graph.plot)


def _summary(graph: InteractionGraph) -> Any:
    import pandas as pd

    return pd.DataFrame(
        {
            "from": here,
            "to": there,
            "features": "×".join(map(str, graph.edges[here, there].shape)),
            "edges for 90%": graph.n_edges(0.9)[here, there],
            "for 99%": graph.n_edges(0.99)[here, there],
        }
        for here, there in graph.edges
    )
