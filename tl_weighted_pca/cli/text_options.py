"""Options that say which text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tl_weighted_pca.cli.errors import tell
from tl_weighted_pca.cli.options import ModelOptions

if TYPE_CHECKING:
    from tl_weighted_pca.run_folder import RunFolder


@dataclass(frozen=True)
class DataOptions:
    """Which text."""

    dataset: Annotated[
        str | None,
        typer.Option(
            help="A .txt, .jsonl or .parquet file, a folder saved by `datasets`, or a data set on the "
            "hub, which is streamed. By default the embedded model's stories.",
            rich_help_panel="Data",
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            help="Of a folder or the hub, 'train' by default; of the stories 'train' or 'heldout', by "
            "default what the command is for: bases are made on the one, and judged on the other.",
            rich_help_panel="Data",
        ),
    ] = None
    dataset_config: Annotated[
        str | None,
        typer.Option(
            help="The configuration (subset) of a data set on the hub.", rich_help_panel="Data"
        ),
    ] = None
    text_column: Annotated[
        str | None, typer.Option(help="'text' by default.", rich_help_panel="Data")
    ] = None
    sample_by: Annotated[
        Literal["line", "paragraph", "document"],
        typer.Option(
            help="What makes a text of a .txt file; empty lines part paragraphs.",
            rich_help_panel="Data",
        ),
    ] = "paragraph"
    context_length: Annotated[
        int,
        typer.Option(
            min=2,
            help="Tokens a sequence; longer texts are cut into several, shorter ones stay short.",
            rich_help_panel="Data",
        ),
    ] = 128
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Stop before exceeding so many tokens of data.", rich_help_panel="Data"
        ),
    ] = 100_000

    def check(self, model: ModelOptions, folder: RunFolder | None) -> None:
        """Refuse what cannot be read before the model is loaded; enter what can in the manifest."""
        from tl_weighted_pca.text import check_source

        if self.dataset is not None:
            check_source(self.dataset)
            if folder is not None and Path(self.dataset).exists():
                folder.reads(self.dataset)
        elif not model.embedded:
            raise ValueError(
                f"The stories are for the embedded model, and --model is {model.model!r}: pass a text "
                "file or a data set with --dataset."
            )

    def load(self, model: Any, split: str) -> Any:
        """The sequences for a model; `split` is which stories, unless --split says otherwise."""
        from tl_weighted_pca import embedded
        from tl_weighted_pca.text import tokenized_text, unknown_share

        if self.dataset is None:
            wanted: Any = self.split or split
            some = embedded.stories(wanted, 100)
            mean = sum(map(len, some["input_ids"])) / len(some)
            # A few more than it takes: the exact number of tokens is the reader's business.
            n = min(int(1.1 * self.max_tokens / mean) + 1, embedded.corpus.SIZES[wanted])
            return embedded.stories(wanted, max(n, len(some)))
        context = getattr(model.cfg, "n_ctx", self.context_length)
        if self.context_length > context:
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
                head="Note", style="bold yellow",
            )  # fmt: skip
        return data


@dataclass(frozen=True)
class SampleOptions(DataOptions):
    """Which text, where less of it will do."""

    max_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Stop before exceeding so many tokens of data.", rich_help_panel="Data"
        ),
    ] = 20_000
