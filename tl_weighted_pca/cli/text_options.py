"""Options that say which text."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
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
            "hub, which is streamed. By default the embedded model's stories.",
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            help="Of a folder or the hub, 'train' by default; of the stories 'train' or 'heldout', by "
            "default what the command is for: bases are made on the one, and judged on the other.",
        ),
    ] = None
    dataset_config: Annotated[
        str | None,
        typer.Option(help="The configuration (subset) of a data set on the hub."),
    ] = None
    text_column: Annotated[str | None, typer.Option(help="'text' by default.")] = None
    sample_by: Annotated[
        Literal["line", "paragraph", "document"],
        typer.Option(
            help="What one text of a .txt file is; empty lines separate paragraphs.",
        ),
    ] = "paragraph"
    context_length: Annotated[
        int,
        typer.Option(
            min=2,
            help="Tokens per sequence; longer texts are cut into several, shorter ones stay short.",
        ),
    ] = 128
    max_tokens: Annotated[
        int,
        typer.Option(min=1, help="Stop before exceeding so many tokens of data."),
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
        fitting = set().union(*map(_fitting, texts))
        for field in self._given():
            if field.name in {*_FOR} - fitting:
                raise ValueError(
                    f"--{field.name.replace('_', '-')} is for {_FOR[field.name]}, not for "
                    f"{self.dataset or 'the stories'}: leave it out."
                )

    def _given(self) -> list[Field[Any]]:
        """The options that are not as they would be by themselves."""
        return [field for field in fields(self) if getattr(self, field.name) != field.default]

    def read(
        self,
        source: ModelOptions,
        run: RunFolder | None,
        split: str = "train",
        *,
        made: Iterable[Provenance] = (),
        unless: str = "",
    ) -> tuple[Any, Any]:
        """The model and the text for it: `check`, `ModelOptions.load` and `load` in their order."""
        self.check(source, run)
        model = source.load(run, made, unless)
        return model, self.load(model, split, source.slips)

    def load(self, model: Any, split: str, slips: bool = False) -> Any:
        """The sequences for a model; `split` is which stories, unless --split says otherwise."""
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
        )
        share = unknown_share(data, model.tokenizer.unk_token_id)
        if share > 0.01 and model.tokenizer.unk_token_id != model.tokenizer.eos_token_id:
            tell(
                f"{share:.0%} of the first tokens are words that the model does not know.",
                head="Note",
            )  # fmt: skip
        return data


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
