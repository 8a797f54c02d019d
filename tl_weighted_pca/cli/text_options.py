"""Options that say which text."""

from __future__ import annotations

import contextlib
import os
from dataclasses import Field, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from tl_weighted_pca.cli.console import tell
from tl_weighted_pca.cli.model_options import EMBEDDED_MODELS, ModelOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tl_weighted_pca.moments.second_moment import Provenance
    from tl_weighted_pca.runs.run_folder import RunFolder


_FOR = {
    "split": "a folder of several splits, a data set on the hub or the stories",
    "dataset_config": "a data set on the hub",
    "text_column": "text of yours",
    "sample_by": "a .txt file",
    "context_length": "text of yours",
}
"""What options are for that do not fit every text."""


@dataclass(frozen=True)
class DataOptions:
    """Which text."""

    PANEL: ClassVar = "Data"

    dataset: Annotated[
        str | None,
        typer.Option(
            help="A .txt, .jsonl or .parquet file, a folder saved by `datasets`, or a data set on the "
            "hub, which is streamed. By default the text that the input was made with, or else the embedded "
            "model's stories. Every tenth text of yours is held out, for `ablate` and `cards`."
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            help="Of a folder or the hub, 'train' by default; of the stories 'train' or 'heldout', by "
            "default what the command is for: bases are made on the one, and judged on the other."
        ),
    ] = None
    dataset_config: Annotated[
        str | None, typer.Option(help="The configuration (subset) of a data set on the hub.")
    ] = None
    text_column: Annotated[str | None, typer.Option(help="'text' by default.")] = None
    sample_by: Annotated[
        Literal["line", "paragraph", "document"],
        typer.Option(help="What one text of a .txt file is; empty lines separate paragraphs."),
    ] = "paragraph"
    context_length: Annotated[
        int,
        typer.Option(
            min=2,
            help="Tokens per sequence; longer texts are cut into several, shorter ones stay short.",
        ),
    ] = 128
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Stop before exceeding so many tokens of data.")
    ] = 100_000

    def check(self, model: ModelOptions, folder: RunFolder | None, *others: str) -> None:
        """Refuse what cannot be read before the model is loaded; enter what can in the manifest.

        `others` are further texts that the options are for.
        """
        from tl_weighted_pca.data.text import check_source

        if self.dataset is None and not model.embedded:
            meant = get_close_matches(model.model, EMBEDDED_MODELS, 1)
            raise ValueError(
                f"The stories are for the embedded models, and --model is {model.model!r}: "
                + (f"did you mean {meant[0]!r}? If not, " if meant else "")
                + "pass a text file or a data set with --dataset."
            )
        texts = (self.dataset, *others)
        for text in texts:
            if text is not None:
                check_source(text)
                if folder is not None and Path(text).exists():
                    folder.reads(text)
        if folder is not None and self.dataset is not None:
            folder.manifest["text"] = self._source()
        fitting = set().union(*map(_fitting, texts))
        for field in self._given():
            if field.name in {*_FOR} - fitting:
                raise ValueError(
                    f"--{field.name.replace('_', '-')} is for {_FOR[field.name]}, not for "
                    f"{self.dataset or 'the stories'}: leave it out."
                )

    def _source(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("dataset", *_FOR)}

    def _given(self) -> list[Field[Any]]:
        """The options that are not as they would be by themselves."""
        return [field for field in fields(self) if getattr(self, field.name) != field.default]

    def of(self, run: RunFolder) -> tuple[DataOptions, bool]:
        """What is given, or the text that what the run has read was made with; and whether it is that.

        Raises:
            ValueError: if several texts are meant, or options of a text are given without one.
        """
        found = _made_with(map(Path, run.manifest["inputs"]))
        if self.dataset is not None:
            return self, any(_is_same(self, each) for each in found)
        if not found:
            return self, False
        if len(found) > 1:
            names = " and ".join(str(each.dataset) for each in found)
            raise ValueError(f"The input was made with {names}: pass one with --dataset.")
        for field in self._given():
            if field.name in _FOR:
                raise ValueError(
                    f"--{field.name.replace('_', '-')} goes with --dataset, and the text is that of the "
                    f"input, {found[0].dataset}: name it, or leave the option out."
                )
        run.manifest["text"] = found[0]._source()  # for the next, whether or not it is read here
        return replace(found[0], max_tokens=self.max_tokens), True

    def read(
        self,
        source: ModelOptions,
        run: RunFolder | None,
        split: str = "train",
        *,
        made: Iterable[Provenance] = (),
        unless: str = "",
        own: bool = False,
    ) -> tuple[Any, Any]:
        """The model and the text for it: `check`, `ModelOptions.load` and `load` in their order."""
        self.check(source, run)
        model = source.load(run, made, unless)
        return model, self.load(model, split, source.slips, own=own)

    def load(self, model: Any, split: str, slips: bool = False, *, own: bool = False) -> Any:
        """The sequences for a model; `split` is which stories, unless --split says otherwise.

        Of text of the user's, `train` is all but every tenth text. `heldout` is those, where it is the
        `own` text of a run, and else all.
        """
        from tl_weighted_pca import embedded
        from tl_weighted_pca.data.text import tokenized_text, unknown_share

        if self.dataset is None:
            wanted: Any = self.split or split
            some = embedded.stories(wanted, 100, slips=slips)
            mean = sum(map(len, some["input_ids"])) / len(some)
            # A few more than it takes: the exact number of tokens is the reader's business.
            n, all_of_them = int(1.1 * self.max_tokens / mean) + 1, embedded.corpus.SIZES[wanted]
            if mean * all_of_them < self.max_tokens:
                tell(
                    f"There are {all_of_them:,} {wanted} stories, of about {mean * all_of_them:,.0f} "
                    "tokens in all, fewer than were asked for.",
                    head="Note",
                )  # fmt: skip
            return embedded.stories(wanted, min(max(n, len(some)), all_of_them), slips=slips)
        context = getattr(model.cfg, "n_ctx", None)
        if context is not None and self.context_length > context:
            raise ValueError(
                f"--context-length is {self.context_length}, but the model takes at most {context} tokens."
            )
        data = tokenized_text(
            self.dataset,
            model.tokenizer,
            self.context_length,
            column=self.text_column,
            split=self.split,
            config=self.dataset_config,
            sample_by=self.sample_by,
            prepend_bos=getattr(model.cfg, "default_prepend_bos", True) is not False,
            part="train" if split == "train" else "heldout" if own else "all",
        )
        share = unknown_share(data, model.tokenizer.unk_token_id)
        if model.tokenizer.unk_token_id == model.tokenizer.eos_token_id:
            share = 0.0  # which ends every text
        told = f"{share:.0%} of the first tokens are words that the model does not know"
        if share > 0.1:
            raise ValueError(
                f"{told}: pass text in its words, or the model that the text is for with --model."
            )
        if share > 0.01:
            tell(f"{told}.", head="Note")
        return data


def _made_with(files: Iterable[Path]) -> list[DataOptions]:
    """The texts that the folders of the files were made with, as far as they say it."""
    from tl_weighted_pca.runs.manifest import read_manifest

    found: dict[DataOptions, None] = {}
    for folder in dict.fromkeys(file.parent for file in files):
        with contextlib.suppress(OSError, ValueError):  # of no run of ours, which need not be
            manifest = read_manifest(folder)
            if told := manifest.get("text"):
                # A file was named from where that command ran.
                there = Path(manifest["folder"], told["dataset"])
                name = str(there) if there.exists() else told["dataset"]
                found[DataOptions(**told | {"dataset": name})] = None
    return list(found)


def _is_same(one: DataOptions, other: DataOptions) -> bool:
    """Whether two texts are the same rows."""
    where = [os.path.realpath(each.dataset or "") for each in (one, other)]
    what = [(each.split or "train", each.dataset_config, each.sample_by) for each in (one, other)]
    return where[0] == where[1] and what[0] == what[1]


def _fitting(text: str | None) -> set[str]:
    """Which of the options that do not fit every text fit one; None is the stories."""
    if text is None:
        return {"split"}
    path, always = Path(text), {"text_column", "context_length"}
    if path.is_dir():
        return always | ({"split"} if path.joinpath("dataset_dict.json").is_file() else set())
    if path.is_file():
        return always | ({"sample_by"} if path.suffix == ".txt" else set())
    return always | {"split", "dataset_config"}
