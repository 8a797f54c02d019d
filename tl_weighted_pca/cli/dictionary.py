"""`dictionary`: more directions than dimensions, a few of them at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show, tell
from tl_weighted_pca.cli.model_options import ModelOptions
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
from tl_weighted_pca.cli.tables import table
from tl_weighted_pca.cli.text_options import SampleOptions

_TOKENS_FOR_MOMENTS = 2**15


@command
def dictionary(
    context: typer.Context,
    output: OutputOptions,
    source: ModelOptions,
    text: SampleOptions,
    hook: Annotated[str, typer.Option(help="The hook point.")] = "blocks.2.hook_resid_post",
    features: Annotated[int, typer.Option(min=1, help="Of the dictionary.")] = 512,
    n_tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on.")] = 500_000,
    heldout: Annotated[
        str | None,
        typer.Option(
            help="Text to evaluate on, as --dataset has it; by default the held-out stories.",
            rich_help_panel="Data",
        ),
    ] = None,
    kind: Annotated[
        Literal["relu", "prolu_ste", "prolu_relu"],
        typer.Option(help="Activation function, and for ProLU the rule of its gradient."),
    ] = "prolu_relu",
    sparsity: Annotated[float, typer.Option(min=0, help="λ₁, of the features f.")] = 0.1,
    attribution: Annotated[
        float, typer.Option(min=0, help="λ_a, of what features do: f (g·d).")
    ] = 0.0,
    unexplained: Annotated[
        float, typer.Option(min=0, help="λ_u, of what the error does: (g·(x − x̂))².")
    ] = 0.0,
    penalty: Annotated[
        Literal["l1", "sqrt", "log"],
        typer.Option(help="How features and attributions count: |·|, √|·| or log(1 + |·|/0.03)."),
    ] = "l1",
    start: Annotated[
        Path | None, typer.Option(help="A basis to start from, made at the same hook point.")
    ] = None,
    positions: PositionSlice = "",
    batch_size: BatchSize = 32,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the checkpoint of a run that was cut short."),
    ] = False,
    seed: Seed = 0,
    progress: Progress = True,
    debug: Debug = False,
) -> None:
    """Train a sparse autoencoder on a hook point's activations, and evaluate it
    beside PCA of the same size.

    --max-tokens is of the evaluation. A run that is cut short goes on with
    --resume.

    \b
    Examples:
      tl-weighted-pca dictionary --out dictionary
      tl-weighted-pca dictionary --features 1024 --sparsity 0.05 --out wide
      tl-weighted-pca dictionary --kind relu --penalty log --sparsity 0.004 \\
          --attribution 0.0005 --unexplained 0.02 --out few
    """
    from tl_weighted_pca.bases.basis import Basis
    from tl_weighted_pca.bases.principal_components import pca
    from tl_weighted_pca.dictionary import (
        Recipe,
        evaluate_dictionary,
        plot_biases,
        train_dictionary,
    )
    from tl_weighted_pca.models.hook_points import resolve
    from tl_weighted_pca.streaming.one_pass import collect

    where = parsed_positions(positions)
    recipe = Recipe(
        sparsity=sparsity,
        attribution=attribution,
        unexplained=unexplained,
        penalty=penalty,
        seed=seed,
    )
    if resume:
        output.stop_if_done(context)
    with output.folder(context, resume=resume) as run:
        text.check(source, run, *([] if heldout is None else [heldout]))
        basis = None if start is None else Basis.load(run.reads(existing_file(start)))
        if heldout is None and (text.dataset is not None or text.split is not None):
            tell(
                "The scores are of text that it was trained on: pass other text with --heldout.",
                head="Note",
                style="bold yellow",
            )
        model = source.load(run)
        (hook,) = resolve(model, [hook])  # ahead of the data, which may be long in coming
        train = replace(text, max_tokens=n_tokens).load(model, "train", source.slips)
        # Ahead of the training, which may take hours.
        judge = text if heldout is None else replace(text, dataset=heldout)
        judged = judge.load(model, "heldout", source.slips)
        options: dict[str, Any] = {"positions": where, "batch_size": batch_size}
        # For the units of the terms, and for the PCA to compare with. Kept too: collected anew by another
        # number of threads they would differ in their last bits, and the training not go on.
        moments = collect(
            model,
            train,
            hook,
            row_metric="identity",
            statistics=("activation", "gradient"),
            max_tokens=_TOKENS_FOR_MOMENTS,
            checkpoint=run / "prepared.moments.safetensors",
            progress=False,
            **options,
        )[hook]
        trained = train_dictionary(
            model,
            train,
            hook,
            recipe,
            n_features=features,
            n_tokens=n_tokens,
            kind=kind,
            basis=basis,
            moments=moments,
            checkpoint=run / "checkpoint.safetensors",
            progress=progress,
            **options,
        )
        trained.save(run / "dictionary.safetensors")
        evaluation = evaluate_dictionary(
            model,
            judged,
            trained,
            bases={"pca": pca(moments)},
            max_tokens=text.max_tokens,
            **options,
        )
        frame = evaluation.to_pandas().rename_axis("code").reset_index()
        show(table(frame.set_index("code").T.rename_axis("score").reset_index()))
        frame.to_csv(run / "evaluation.csv", index=False)
        plot_biases(trained).savefig(run / "biases.png")
