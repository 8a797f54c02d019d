"""Options that several commands share."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from tl_weighted_pca.cli import processes
from tl_weighted_pca.cli.console import show, tell
from tl_weighted_pca.cli.errors import ARGUMENTS
from tl_weighted_pca.cli.in_options import in_options

if TYPE_CHECKING:
    from tl_weighted_pca.data.positions import Positions
    from tl_weighted_pca.objectives.losses import Objective
    from tl_weighted_pca.runs.run_folder import RunFolder


class ObjectiveName(str, Enum):
    """What to differentiate, in a word. (typer takes lists of enumerations, but not of literals.)"""

    loss = "loss"
    fisher = "fisher"
    logits = "logits"
    none = "none"


Hooks = Annotated[
    list[str],
    typer.Option(
        "--hook",
        help="A hook point, or a glob such as 'blocks.*.hook_resid_post'; may be repeated.",
    ),
]
Samples = Annotated[
    int, typer.Option(min=1, help="Labels or probes per sequence, for 'fisher' and 'logits'.")
]
Ranks = Annotated[
    str, typer.Option(help="Components to keep, such as '0,16,32'; by default nine, none to all.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the checkpoint of an interrupted run.")
]
Seed = Annotated[int, typer.Option(help="Random seed.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Sequences per batch.")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]


@dataclass(frozen=True)
class PassOptions:
    """How to go over the text."""

    positions: Annotated[
        str,
        typer.Option(help="Which positions count, as a Python slice: '1:' leaves out the first."),
    ] = ""
    batch_size: BatchSize = 16
    progress: Progress = True

    def __post_init__(self) -> None:
        parsed_positions(self.positions)  # refused before any work

    @property
    def options(self) -> dict[str, Any]:
        """As what goes over data takes them."""
        return {
            "positions": parsed_positions(self.positions),
            "batch_size": self.batch_size,
            "progress": self.progress,
        }


@dataclass(frozen=True)
class CountedOptions(PassOptions):
    """How to go over the text, without positions of outlying norm."""

    outliers: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Leave out positions whose norm exceeds so many medians of their sequence (attention "
            "sinks), such as 10; 0 for none. By default as the input was made, or none.",
        ),
    ] = None

    def __post_init__(self) -> None:
        from tl_weighted_pca.data.positions import Outliers

        super().__post_init__()
        Outliers.checked(self.outliers or None)

    @property
    def options(self) -> dict[str, Any]:
        """As what goes over data takes them."""
        return super().options | {"outliers": self.outliers or None}

    def of(self, run: RunFolder, made: Iterable[float | None] | None = None) -> CountedOptions:
        """What is given, or what the input was made with; the manifest then says it for the next step.

        Args:
            run: which has read its input.
            made: what the input says of itself; by default what the manifests of its folders say.

        Raises:
            ValueError: if the input was made in several ways, and nothing is given.
        """
        found = set(_outliers_of(map(Path, run.manifest["inputs"])) if made is None else made)
        told = " and ".join(
            f"--outliers {each or 0:g}" for each in sorted(found, key=lambda x: x or 0)
        )
        if self.outliers is None and len(found) > 1:
            raise ValueError(f"The input was made with {told}: pass one of them.")
        chosen = self.outliers
        if chosen is None:
            (chosen,) = found or [None]
        elif found and found != {chosen or None}:
            tell(
                f"The input was made with {told}, and this step has --outliers {chosen:g}: they are not of "
                "the same positions.",
                head="Note",
            )
        run.manifest["settings"]["outliers"] = chosen
        return replace(self, outliers=chosen)


@dataclass(frozen=True)
class OutputOptions:
    """Where the results go."""

    PANEL: ClassVar = "Results"

    context: typer.Context
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the results, with a manifest that says how to make them again."
        ),
    ]
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder of an earlier run.")
    ] = False

    @contextmanager
    def folder(self, *, resume: bool = False) -> Iterator[RunFolder]:
        """The folder while it is written; says what was written, or what is left to go on from."""
        run = self._run(resume=resume)
        try:
            with warnings.catch_warnings():
                # A warning is for the user; where in the code it was is not.
                warnings.showwarning = self._noted  # type: ignore[assignment]
                with run:
                    yield run
        except BaseException:
            if run.started and run.resumable and not resume:
                where = f"What was done is kept in {run.partial}: add --resume to go on."
                tell(where, head="Note")
            raise
        names = sorted(run.manifest["outputs"])
        written = ", ".join(names) if len(names) < 5 else f"{len(names)} files"
        show(f"Written to {self.out}: {written}.", highlight=False, markup=False)

    def _noted(self, message: Any, category: Any, *place: Any) -> None:
        if issubclass(category, UserWarning):
            tell(in_options(str(message), self.context.command.params), head="Note")

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Refuse those of some options that the command line has."""
        for name in names:
            where = self.context.get_parameter_source(name)
            if where is not None and where.name == "COMMANDLINE":
                raise ValueError(f"--{name.replace('_', '-')} {reason}")

    def stop_if_done(self) -> None:
        """End well where --resume finds the same run finished: a job script can always have it."""
        from tl_weighted_pca.runs.manifest import read_manifest, sha256

        try:
            earlier = read_manifest(self.out)
        except (OSError, ValueError):
            return
        now = self._run().manifest
        # These change nothing about the results.
        but = dict.fromkeys(("out", "overwrite", "resume", "progress"))
        if (
            not self.overwrite
            and earlier.get("finished")
            and earlier["settings"] | but == now["settings"] | but
            and all(Path(f).is_file() and sha256(f) == was for f, was in earlier["inputs"].items())
            and all((self.out / name).is_file() for name in earlier["outputs"])
        ):
            if processes.rank() == 0:
                show(f"{self.out} is finished already.", highlight=False, markup=False)
            raise typer.Exit

    def _run(self, *, resume: bool = False) -> RunFolder:
        from tl_weighted_pca.runs.run_folder import RunFolder

        settings = {k: v for k, v in self.context.params.items() if k != "debug"}
        given = self.context.meta.get(ARGUMENTS, [])
        return RunFolder(
            self.out,
            given,
            settings,
            overwrite=self.overwrite,
            resume=resume,
            inputs=_inputs(self.context.params),
        )


def _outliers_of(files: Iterable[Path]) -> set[float | None]:
    """What the folders of the files were made with, as far as they say it."""
    from tl_weighted_pca.runs.manifest import read_manifest

    found = set()
    for folder in dict.fromkeys(file.parent for file in files):
        with contextlib.suppress(OSError, ValueError):  # of no run of ours, which need not be
            found.add(read_manifest(folder)["settings"].get("outliers") or None)
    return found


def _inputs(settings: dict[str, Any]) -> list[Path]:
    """What a command reads, as its arguments and options name it: every path but that of the output."""
    found: list[Path] = []
    for name, value in settings.items():
        some = value if isinstance(value, (list, tuple)) else [value]
        if name in ("model", "dataset", "heldout"):  # a path, or the name of something else
            some = [Path(each) for each in some if isinstance(each, str)]
        if name != "out":
            found += [each for each in some if isinstance(each, Path)]
    return found


def existing(path: Path) -> Path:
    """The path, if it is there; raises ValueError if it is not."""
    if not path.exists():
        raise ValueError(f"There is no file {path}: pass one that another command wrote.")
    if not (path.is_file() or path.is_dir()):  # a pipe would be waited for without end
        raise ValueError(f"{path} is no ordinary file: pass one that another command wrote.")
    return path


def existing_file(path: Path) -> Path:
    """The path, if it is of a file; raises ValueError if it is not."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: pass one of the files in it.")
    return existing(path)


def parsed_ranks(text: str) -> list[int] | None:
    """'0,16,32' as numbers; None for an empty string."""
    try:
        return [int(part) for part in text.split(",")] if text.strip() else None
    except ValueError as error:
        raise ValueError(
            f"--ranks is {text!r}; expected whole numbers with commas between them, such as '0,16,32'."
        ) from error


def parsed_positions(text: str) -> Positions:
    """'1:', ':-1' or '::2' as a slice; None for an empty string."""
    if not text.strip():
        return None
    try:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
        if not 2 <= len(parts) <= 3 or parts[2:] == [0]:
            raise ValueError
        return slice(*parts)
    except ValueError as error:
        raise ValueError(
            f"--positions is {text!r}; expected a Python slice, such as '1:' or ':-1'."
        ) from error


def objective(name: ObjectiveName, n_samples: int, seed: int) -> Objective | None:
    """What to differentiate, by its name here."""
    from tl_weighted_pca.objectives.losses import logit_probe, next_token_loss, sampled_token_loss

    if name is ObjectiveName.loss:
        return next_token_loss
    if name is ObjectiveName.fisher:
        return sampled_token_loss(n_samples, seed)
    return logit_probe(n_samples, seed) if name is ObjectiveName.logits else None
