"""`basis`: moments into bases."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show, tell
from tl_weighted_pca.cli.model_bases import FurtherPass, objective_of
from tl_weighted_pca.cli.model_options import SameModelOptions
from tl_weighted_pca.cli.options import CountedOptions, OutputOptions, Seed
from tl_weighted_pca.cli.pictures import PictureOptions
from tl_weighted_pca.cli.tables import table
from tl_weighted_pca.cli.text_options import DataOptions

if TYPE_CHECKING:
    from tl_weighted_pca.bases.basis import Basis
    from tl_weighted_pca.moments.collection import Collection
    from tl_weighted_pca.moments.second_moment import Moments
    from tl_weighted_pca.runs.run_folder import RunFolder


class Method(str, Enum):
    """A basis, by what the package calls it."""

    pca = "pca"
    weighted = "weighted"
    gradient = "gradient"
    metric = "metric"
    path = "path"
    joint = "joint"
    trained = "trained"
    random = "random"


_OF_GRADIENTS = (Method.weighted, Method.gradient, Method.metric, Method.joint)
_OF_A_FURTHER_PASS = (Method.path, Method.joint, Method.trained)


@command(max_tokens=20_000)
def basis(
    *,
    output: OutputOptions,
    same: SameModelOptions,
    text: DataOptions,
    moments: Annotated[
        Path, typer.Argument(help="A folder made by `collect`, or one of its files of moments.")
    ],
    method: Annotated[
        list[Method] | None,
        typer.Option(
            help="Which basis: 'pca'; 'weighted' PCA; 'gradient' PCA; 'metric' PCA in the gradients' "
            "second moment (of 'fisher' gradients, the Fisher metric); 'path' (PCA in the metric met "
            "along PCA's ablations); 'joint' (of the pairs of activation and gradient); 'trained' (through "
            "the model, from 'metric'); 'random'. May be repeated. By default all that need no model but "
            "'gradient'."
        ),
    ] = None,
    hook: Annotated[
        list[str] | None,
        typer.Option("--hook", help="Only these hook points, or globs; all by default."),
    ] = None,
    center: Annotated[
        Literal["mean", "none", "row_metric"],
        typer.Option(help="The token mean, no centre, or the row metric's own mean."),
    ] = "mean",
    damping: Annotated[
        float,
        typer.Option(
            min=0,
            help="Of 'metric' and 'path': add this share of the metric's mean eigenvalue to its diagonal.",
        ),
    ] = 0.0,
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rounds of 'path': each later one follows the basis of those before, and all count.",
        ),
    ] = 1,
    steps: Annotated[
        int, typer.Option(min=1, help="Of 'trained': batches to train on, over and over.")
    ] = 400,
    how: CountedOptions,
    pictures: PictureOptions,
    seed: Seed = 0,
) -> None:
    """Make bases of moments: a file HOOK_POINT.METHOD.safetensors for each, and
    a picture of their eigenvalues.

    METHOD of 'metric' is metric-OBJECTIVE: 'metric-fisher' is in the Fisher
    metric, 'metric-loss' in that of the data's labels. Of a folder with several
    objectives, each method that uses gradients gives a basis for each. Only
    'path', 'joint' and 'trained' need the model and the data, once more; their
    --positions and --outliers are by default those of the moments. 'trained'
    needs many tokens: raise --max-tokens.

    \b
    Examples:
      tl-weighted-pca basis run --out bases
      tl-weighted-pca basis run --method pca --method path --out bases
      tl-weighted-pca basis run --method path --rounds 2 --out path
      tl-weighted-pca basis run/moments.fisher.safetensors --method metric \\
          --method joint --out fisher
      tl-weighted-pca basis run/moments.fisher.safetensors --method trained \\
          --max-tokens 100000 --out trained
    """
    about: Any = {"mean": True, "none": False}.get(center, center)
    with output.folder() as run:
        found = _moments_of(moments, run)
        source, (text, _) = same.of(run), text.of(run)
        how = how.of(run, {each.settings.get("outliers") for each in found.values()})
        first = next(iter(found.values()))
        names = _chosen(first, hook, moments)
        asked = list(dict.fromkeys(method or _possible(first[names[0]])))
        _refuse_unused(output, asked, text)
        makers = _makers(about, damping, seed)
        if set(asked) & set(_OF_A_FURTHER_PASS):
            again = FurtherPass.of(source, text, run, first, how)
            makers |= {
                Method.path: partial(again.path, center=about, damping=damping, rounds=rounds),
                Method.joint: partial(again.joint, center=about, seed=seed),
                Method.trained: partial(again.trained, center=about, steps=steps, seed=seed),
            }
        made = {name: job() for name, job in _jobs(asked, makers, found, names).items()}
        for name, one in made.items():
            one.save(run / f"{name}.safetensors")
        for name in names:
            here = {
                n.removeprefix(f"{name}."): b for n, b in made.items() if n.startswith(f"{name}.")
            }
            pictures.draw(run / f"{name}.png", partial(_spectra, here))
        show(table(_summary(made)))


def _refuse_unused(output: OutputOptions, asked: list[Method], text: DataOptions) -> None:
    """Refuse options of methods that are not asked for."""
    passes = [*vars(text), "positions", "outliers", "batch_size", "device"]
    for options, methods in (
        (["damping"], (Method.metric, Method.path)),
        (["rounds"], (Method.path,)),
        (["steps"], (Method.trained,)),
        (passes, _OF_A_FURTHER_PASS),
    ):
        if not set(methods) & set(asked):
            *first, last = (method.value for method in methods)
            words = f"{', '.join(first)} or {last}" if first else last
            output.refuse(options, f"has no effect without --method {words}: leave it out.")


def _spectra(bases: dict[str, Basis], *, interactive: bool = False) -> Any:
    from tl_weighted_pca.plots import eigenvalue_spectra

    return eigenvalue_spectra(bases, interactive=interactive)


def _moments_of(path: Path, run: RunFolder) -> dict[str, Collection]:
    """The collections of a file or a folder, by objective; all of the same hook points."""
    from tl_weighted_pca.moments.collection import Collection

    files = moments_files(path)
    found = {name: Collection.load(file) for name, file in files.items()}
    for file in files.values():
        run.reads(file)
    for name, collection in found.items():
        if not collection:
            raise ValueError(f"{files[name]} holds no hook point: collect again.")
    if len({frozenset(each) for each in found.values()}) > 1:
        raise ValueError(
            f"The files of moments in {path} are of different hook points: pass one of the files."
        )
    return found


def moments_files(path: Path) -> dict[str, Path]:
    """Files of moments by objective: the file itself, or those of a folder made by `collect`.

    Raises:
        ValueError: if there are none.
    """
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}: pass one made by `collect`.")
    if path.is_file():
        return {"": path}
    files = sorted(path.glob("moments*.safetensors"))
    if not files:
        raise ValueError(f"The folder {path} holds no moments: pass one made by `collect`.")
    return {file.stem.removeprefix("moments").removeprefix("."): file for file in files}


def _possible(moments: Moments) -> list[Method]:
    """What moments with or without gradients are enough for; says what is left out for want of these."""
    if moments.gradient is None:
        tell(
            "The moments have no gradients, and so no weighted and no metric PCA are made: collect with "
            "an --objective for these.",
            head="Note",
        )
        return [Method.pca, Method.random]
    return [Method.pca, Method.weighted, Method.metric, Method.random]


def _chosen(collection: Any, patterns: list[str] | None, path: Path) -> list[str]:
    """The hook points of a collection that names and globs mean."""
    if not patterns:
        return list(collection)
    names = []
    for pattern in patterns:
        hits = [n for n in collection if n == pattern or fnmatch.fnmatchcase(n, pattern)]
        if not hits:
            raise ValueError(
                f"{path} has no hook point that matches {pattern!r}; it has {', '.join(collection)}."
            )
        names += hits
    return list(dict.fromkeys(names))


def _makers(center: Any, damping: float, seed: int) -> dict[Method, Callable[[Moments], Basis]]:
    """What makes a basis of moments alone."""
    from tl_weighted_pca.bases import principal_components as components

    return {
        Method.pca: partial(components.pca, center=center),
        Method.weighted: partial(components.weighted_pca, center=center),
        Method.gradient: partial(components.gradient_pca, center=center),
        Method.metric: partial(components.metric_pca, center=center, damping=damping),
        Method.random: partial(components.random_basis, center=center, seed=seed),
    }


def _jobs(
    asked: list[Method],
    makers: dict[Method, Callable[[Moments], Basis]],
    found: dict[str, Collection],
    names: list[str],
) -> dict[str, Callable[[], Basis]]:
    """What makes each basis, by its file's name."""
    jobs: dict[str, Callable[[], Basis]] = {}
    for method in asked:
        for label, collection in found.items():
            # What uses no gradients is the same under every objective. Fisher's are what to train from.
            if method == Method.trained and label != "fisher" and "fisher" in found:
                continue
            several = len(found) > 1 and method in _OF_GRADIENTS
            what = label if several else _metric_of(collection) if method == Method.metric else ""
            end = f"-{what}" if what else ""
            for name in names:
                make = partial(makers[method], collection[name])
                jobs.setdefault(f"{name}.{method.value}{end}", make)
    return jobs


def _metric_of(collection: Collection) -> str:
    """What the gradients of a metric are of, in the command line's word for it, if it has one."""
    name = objective_of(next(iter(collection.values())))
    return "" if name is None else name.value


def _summary(bases: dict[str, Basis]) -> Any:
    import pandas as pd

    rows = []
    for name, each in bases.items():
        share = (
            each.explained_ratio.flatten(0, -2).mean(0) if each.per_head else each.explained_ratio
        )
        held = share.cumsum(-1)
        rows.append(
            {
                "basis": name, "width": each.width, "heads": each.encoder.shape[0] if each.per_head else 1,
                "first": f"{float(share[0]):.1%}", "for 90%": int((held < 0.9).sum()) + 1,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
