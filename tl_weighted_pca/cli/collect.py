"""`collect`: one pass over a model, into a folder of moments."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from tl_weighted_pca.cli import processes
from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show
from tl_weighted_pca.cli.left_out import report_left_out
from tl_weighted_pca.cli.model_options import ModelOptions
from tl_weighted_pca.cli.options import (
    CountedOptions,
    Hooks,
    ObjectiveName,
    OutputOptions,
    Resume,
    Samples,
    Seed,
    objective,
)
from tl_weighted_pca.cli.plan import show_plan
from tl_weighted_pca.cli.text_options import DataOptions

if TYPE_CHECKING:
    from tl_weighted_pca.moments.collection import Collection
    from tl_weighted_pca.runs.run_folder import RunFolder


@dataclass(frozen=True)
class SumsOptions:
    """How moments are summed."""

    PANEL: ClassVar = "Sums"

    sums_dtype: Annotated[
        Literal["float64", "float32"],
        typer.Option(help="Of the sums; float32 halves their memory, for batches of 1,024 tokens."),
    ] = "float64"
    sums_device: Annotated[
        Literal["cpu"] | None,
        typer.Option(help="'cpu' spares a GPU's memory; by default beside the activations."),
    ] = None
    precision: Annotated[
        Literal["highest", "tf32"],
        typer.Option(help="Of the products: float32, or TF32 on a GPU: three digits, faster."),
    ] = "highest"

    @property
    def options(self) -> dict[str, Any]:
        """As `wpca.collect` takes them."""
        return vars(self).copy()


@command()
def collect(
    *,
    output: OutputOptions,
    source: ModelOptions,
    text: DataOptions,
    hook: Hooks = ["blocks.*.hook_resid_post"],  # noqa: B006 (typer's, and never changed)
    objectives: Annotated[
        list[ObjectiveName],
        typer.Option(
            "--objective",
            help="What to differentiate: the next-token 'loss', 'fisher' (the loss on labels that the "
            "model draws), 'logits' (random probes of them) or 'none'; several share a pass.",
        ),
    ] = [ObjectiveName.loss],  # noqa: B006
    samples: Samples = 1,
    row_metric: Annotated[
        Literal["gradient", "diagonal", "identity"],
        typer.Option(help="Row metric of the weighted moment: g gᵀ, diag ‖g‖², or I."),
    ] = "gradient",
    per_head: Annotated[
        bool, typer.Option("--per-head", help="One moment per head, where a hook point has heads.")
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Use less memory, for one more forward pass.")
    ] = False,
    sums: SumsOptions,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Write nothing; tell the memory it will take and its speed. With --device meta, the "
            "memory by the model's configuration alone.",
        ),
    ] = False,
    checkpoint_every: Annotated[
        int, typer.Option(min=0, help="Batches between two checkpoints; 0 for none.")
    ] = 100,
    resume: Resume = False,
    how: CountedOptions,
    seed: Seed = 0,
) -> None:
    """Stream text through a model; keep second moments of activations and gradients.

    The folder then holds moments.safetensors, or moments.OBJECTIVE.safetensors
    for each of several objectives, for `basis` to make bases of. A run that is
    cut short goes on with --resume.

    \b
    Examples:
      tl-weighted-pca collect --out run
      tl-weighted-pca collect --dataset notes.txt --hook 'blocks.*.hook_mlp_out' \\
          --objective loss --objective fisher --out run
      torchrun --nproc-per-node 2 -m tl_weighted_pca collect --out run
    """
    from tl_weighted_pca.models.hook_points import resolve
    from tl_weighted_pca.runs.run_folder import partial_of
    from tl_weighted_pca.streaming.one_pass import collect as collect_moments

    names = list(dict.fromkeys(objectives))
    plain = ObjectiveName.none in names
    if plain and len(names) > 1:
        raise ValueError("--objective none collects activations alone: name no other beside it.")
    if resume and not checkpoint_every:
        raise ValueError("--resume needs checkpoints, and --checkpoint-every is 0: leave one out.")
    if resume:
        output.stop_if_done()
    statistics: dict[str, Any] = {"row_metric": row_metric, "per_head": per_head}
    chosen: Any = {name.value: objective(name, samples, seed) for name in names}
    if plan:
        show_plan(
            source, text, hook, {} if plain else chosen, how.batch_size, recompute,
            statistics, sums.options,
        )  # fmt: skip
        return
    rank = processes.rank()
    with (
        processes.joined(source.device),
        # The first process writes, the others have but checkpoints in its folder.
        output.folder(resume=resume) if rank == 0 else nullcontext() as run,
    ):
        processes.wait()
        model, data = text.read(source, run)
        points = resolve(model, hook)
        data, max_tokens = processes.share(data, text.max_tokens)
        checkpoint = f"checkpoint.{rank}.safetensors"
        found: Any = collect_moments(
            model,
            data,
            points,
            objective=None if plain else chosen,
            max_tokens=max_tokens,
            recompute=recompute,
            checkpoint=partial_of(output.out) / checkpoint if checkpoint_every else None,
            checkpoint_every=checkpoint_every or 1,
            **statistics | sums.options | how.options | {"progress": how.progress and rank == 0},
        )
        collections = found if isinstance(found, dict) else {"none": found}
        with processes.together():
            collections = {name: each.all_reduce() for name, each in collections.items()}
        if run is not None:
            _save(collections, run)


def _save(collections: dict[str, Collection], run: RunFolder) -> None:
    run.manifest["processes"] = processes.world_size()
    for name, collection in collections.items():
        end = f".{name}" if len(collections) > 1 else ""
        collection.save(run / f"moments{end}.safetensors")
    some = next(iter(collections.values()))
    moments = next(iter(some.values()))
    show(
        f"{moments.n_tokens:,} tokens in {moments.n_sequences:,} sequences at {len(some)} hook "
        f"point{'s' * (len(some) > 1)}.",
        highlight=False,
    )
    report_left_out(some.settings.get("left_out", {}), run)
