"""`dictionary`: more directions than dimensions, a few of them at a time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show, tell
from tl_weighted_pca.cli.model_options import ModelOptions
from tl_weighted_pca.cli.options import (
    OutputOptions,
    PassOptions,
    Resume,
    Seed,
    existing_file,
)
from tl_weighted_pca.cli.pictures import PictureOptions
from tl_weighted_pca.cli.tables import table
from tl_weighted_pca.cli.text_options import DataOptions

if TYPE_CHECKING:
    from tl_weighted_pca.runs.run_folder import RunFolder

_TOKENS_FOR_MOMENTS = 2**15


@command(max_tokens=20_000)
def dictionary(
    *,
    output: OutputOptions,
    source: ModelOptions,
    text: DataOptions,
    hook: Annotated[str, typer.Option(help="The hook point.")] = "blocks.2.hook_resid_post",
    features: Annotated[
        int, typer.Option(min=1, help="Number of features of the dictionary.")
    ] = 512,
    n_tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on.")] = 500_000,
    heldout: Annotated[
        str | None,
        typer.Option(
            help="Text to evaluate on, as --dataset has it; by default what is held out of that.",
            rich_help_panel="Data",
        ),
    ] = None,
    kind: Annotated[
        Literal["relu", "prolu_ste", "prolu_relu"],
        typer.Option(help="Activation function, and for ProLU the rule of its gradient."),
    ] = "prolu_relu",
    sparsity: Annotated[float, typer.Option(min=0, help="λ₁: weight of the features f.")] = 0.1,
    attribution: Annotated[
        float, typer.Option(min=0, help="λ_a: weight of the attributions f (g·d).")
    ] = 0.0,
    unexplained: Annotated[
        float, typer.Option(min=0, help="λ_u: weight of the error's effect (g·(x − x̂))².")
    ] = 0.0,
    penalty: Annotated[
        Literal["l1", "sqrt", "log"],
        typer.Option(
            help="Penalty p of features and attributions: |·|, √|·| or log(1 + |·|/0.03)."
        ),
    ] = "l1",
    start: Annotated[
        Path | None, typer.Option(help="A basis to start from, made at the same hook point.")
    ] = None,
    resume: Resume = False,
    how: PassOptions,
    pictures: PictureOptions,
    seed: Seed = 0,
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
    from tl_weighted_pca.bases.names import display_name
    from tl_weighted_pca.bases.principal_components import pca
    from tl_weighted_pca.dictionary import (
        Recipe,
        evaluate_dictionary,
        plot_biases,
        train_dictionary,
    )

    recipe = Recipe(
        sparsity=sparsity, attribution=attribution, unexplained=unexplained, penalty=penalty, seed=seed
    )  # fmt: skip
    if resume:
        output.stop_if_done()
    with output.folder(resume=resume) as run:
        basis = None if start is None else Basis.load(existing_file(start))
        if start is not None:
            run.reads(start)
        hook, model, train, judged = _read(source, run, text, hook, n_tokens, heldout)
        options = {k: v for k, v in how.options.items() if k != "progress"}
        moments = _moments(model, train, hook, run / "prepared.moments.safetensors", options)
        trained = train_dictionary(
            model, train, hook, recipe, n_features=features, n_tokens=n_tokens, kind=kind, basis=basis,
            moments=moments, checkpoint=run / "checkpoint.safetensors", **how.options,
        )  # fmt: skip
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
        shown = frame.set_index("code").rename(index=display_name).T
        show(table(shown.rename_axis("score").reset_index()))
        frame.to_csv(run / "evaluation.csv", index=False)
        pictures.draw(run / "biases.png", partial(plot_biases, trained))


def _read(
    source: ModelOptions,
    run: RunFolder,
    text: DataOptions,
    hook: str,
    n_tokens: int,
    heldout: str | None,
) -> tuple[str, Any, Any, Any]:
    """The hook point, the model, the text to train on and that to evaluate on: all that may be refused,
    ahead of a training that may take hours."""
    from tl_weighted_pca.models.hook_points import resolve_one

    text.check(source, run, *([] if heldout is None else [heldout]))
    if heldout is None and text.dataset is None and text.split is not None:
        tell(
            "The scores are of text that it was trained on: pass other text with --heldout.",
            head="Note",
        )
    model = source.load(run)
    hook = resolve_one(model, hook)
    train = replace(text, max_tokens=n_tokens).load(model, "train", source.slips)
    judge = text if heldout is None else replace(text, dataset=heldout)
    own = heldout is None
    return hook, model, train, judge.load(model, "heldout", source.slips, own=own)


def _moments(model: Any, train: Any, hook: str, checkpoint: Path, options: dict[str, Any]) -> Any:
    """For the units of the recipe's terms, and for the PCA to compare with.

    Kept: collected anew by another number of threads they would differ in their last bits, and the
    training not go on.
    """
    from tl_weighted_pca.streaming.one_pass import collect

    found = collect(
        model,
        train,
        hook,
        row_metric="identity",
        statistics=("activation", "gradient"),
        max_tokens=_TOKENS_FOR_MOMENTS,
        checkpoint=checkpoint,
        progress=False,
        **options,
    )
    return found[hook]
