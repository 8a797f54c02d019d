"""Options that say which model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from tl_weighted_pca.cli import processes

if TYPE_CHECKING:
    from tl_weighted_pca.moments.second_moment import Provenance
    from tl_weighted_pca.runs.run_folder import RunFolder

EMBEDDED_MODELS = {"embedded": "gpt2-stories", "embedded-slips": "gpt2-slips"}
"""Their names on the command line, and their own."""


_NAMES = "'embedded', 'embedded-slips', a name that TransformerLens knows, or a local Hugging Face folder."
_Class = Annotated[
    Literal["HookedTransformer", "TransformerBridge"] | None,
    typer.Option(
        help="By default HookedTransformer, where TransformerLens has it and it knows the model."
    ),
]
_Device = Annotated[
    str | None,
    typer.Option(help="Device, such as cpu, cuda:1 or mps; by default a GPU if there is one."),
]
_Dtype = Literal["float32", "float64", "float16", "bfloat16"]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where."""

    PANEL: ClassVar = "Model"

    model: Annotated[str, typer.Option(help=_NAMES)] = "embedded"
    model_class: _Class = None
    device: _Device = None
    dtype: Annotated[_Dtype, typer.Option(help="Precision of the weights.")] = "float32"

    @property
    def embedded(self) -> bool:
        return self.model in EMBEDDED_MODELS

    @property
    def slips(self) -> bool:
        """Whether it is the embedded model of noisy stories."""
        return self.model == "embedded-slips"

    def _check_made(self, model: Any, made: Iterable[Provenance], unless: str) -> None:
        """Refuse what was made with another model than the one that was loaded."""
        from tl_weighted_pca.models.fingerprint import model_name

        mine = model_name(model)
        for theirs in (each.model for each in made):
            if mine and theirs and mine != theirs:
                how = "".join(f" (--model {k})" for k, v in EMBEDDED_MODELS.items() if v == theirs)
                raise ValueError(
                    f"What was passed was made with {theirs}, and --model {self.model} is {mine}: name the "
                    f"model that it was made with{how}{f', or add {unless}' if unless else ''}."
                )

    def load(
        self, folder: RunFolder | None, made: Iterable[Provenance] = (), unless: str = ""
    ) -> Any:
        """The model, which the folder's manifest then knows.

        Raises:
            ValueError: if what is passed was `made` with another one, `unless` an option allows that.
        """
        import torch

        from tl_weighted_pca.models.fingerprint import fingerprint, model_name
        from tl_weighted_pca.models.pretrained import load_pretrained

        if self.device == "meta":
            raise ValueError(
                "On the device meta there are no weights: it goes with collect --plan."
            )
        if self.embedded:
            # It is so small that two threads only wait for each other.
            torch.set_num_threads(1)
        dtype = getattr(torch, self.dtype)
        device = processes.device(self.device)
        model = load_pretrained(self.model, self.model_class, device, dtype)
        if folder is not None:
            folder.manifest["model"] = {
                "name": model_name(model),
                "class": type(model).__name__,
                "fingerprint": fingerprint(model),
            }
        self._check_made(model, made, unless)
        return model


@dataclass(frozen=True)
class SameModelOptions:
    """Which model, where the input was made with one."""

    PANEL: ClassVar = "Model"

    model: Annotated[
        str | None, typer.Option(help=f"{_NAMES} By default what the input's folder was made with.")
    ] = None
    model_class: _Class = None
    device: _Device = None
    dtype: Annotated[
        _Dtype | None,
        typer.Option(
            help="Precision of the weights; by default that of the input, if that is of the same model."
        ),
    ] = None

    def of(self, run: RunFolder) -> ModelOptions:
        """What is given, or what the folders of the files that the run has read were made with.

        The run's own manifest says it from then on, for the next.

        Raises:
            ValueError: if they name several models.
        """
        found = _made_with(map(Path, run.manifest["inputs"]))
        if self.model:
            same = [each for name, each in found.items() if _place(name) == _place(self.model)]
            found = {self.model: replace(same[0] if same else ModelOptions(), model=self.model)}
        if len(found) > 1:
            raise ValueError(
                f"The input was made with {' and '.join(found)}: pass one with --model."
            )
        (options,) = found.values() or [ModelOptions()]
        run.check_apart(options.model)
        options = replace(
            options,
            model_class=self.model_class or options.model_class,
            device=self.device,
            dtype=self.dtype or options.dtype,
        )
        run.manifest["settings"] |= {
            name: getattr(options, name) for name in ("model", "model_class", "dtype")
        }
        return options


def _place(model: str) -> str:
    """What a folder's names have in common; the same for the same name of anything else."""
    return os.path.realpath(os.path.expanduser(model))


def _made_with(files: Iterable[Path]) -> dict[str, ModelOptions]:
    """By --model, what the folders of the files were made with, as far as they say it."""
    from tl_weighted_pca.runs.manifest import read_manifest

    found = {}
    for folder in dict.fromkeys(file.parent for file in files):
        with contextlib.suppress(OSError, ValueError):  # of no run of ours, which need not be
            manifest = read_manifest(folder)
            settings = manifest["settings"]
            if "slips" in settings:  # of `demo`
                settings["model"] = "embedded-slips" if settings["slips"] else "embedded"
            if name := settings.get("model"):
                # A folder was named from where that command ran.
                there = Path(manifest["folder"], Path(name).expanduser())
                name = str(there) if there.is_dir() else name
                made = {k: settings[k] for k in ("model_class", "dtype") if settings.get(k)}
                found[name] = ModelOptions(name, **made)
    return found
