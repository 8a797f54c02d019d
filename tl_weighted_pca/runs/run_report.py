"""A chain of run folders on one page."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_weighted_pca.runs.manifest import read_manifest
from tl_weighted_pca.support.files import write_text_atomically

if TYPE_CHECKING:
    from tl_weighted_pca.runs.contents import Part


@dataclass(frozen=True)
class ReportedRun:
    """One run's folder."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def command(self) -> str:
        """Which command it was."""
        words = self.manifest["command"].split()[1:]
        return next((word for word in words if not word.startswith("-")), "run")

    @cached_property
    def unlike(self) -> list[str]:
        """The outputs that are no longer as the run wrote them."""
        from tl_weighted_pca.runs.contents import unlike

        return unlike(self.folder, self.manifest["outputs"])

    def parts(self) -> list[Part]:
        """What there is to see, of outputs that are as they were."""
        from tl_weighted_pca.runs.contents import parts_of

        names = [name for name in self.manifest["outputs"] if name not in self.unlike]
        return list(parts_of(self.folder, names))


@dataclass(frozen=True, repr=False)
class RunReport:
    """Run folders on one page that needs nothing else: what each read and found, and its manifest."""

    runs: list[ReportedRun]
    """Each after those whose files it read."""

    def __repr__(self) -> str:
        return f"RunReport({' → '.join(f'{run.command} {run.folder.name}' for run in self.runs)})"

    def sources(self, run: ReportedRun) -> list[int]:
        """The places of the runs that wrote what a run read, told by SHA-256."""
        read = set(run.manifest["inputs"].values())
        return [
            i
            for i, other in enumerate(self.runs)
            if other is not run and read & set(other.manifest["outputs"].values())
        ]

    def to_html(self, *, framed: bool = False) -> str:
        """The page; all text is escaped.

        Args:
            framed: for an iframe's `srcdoc`.
        """
        from tl_weighted_pca.support.web_page import rendered, script_digest, templates

        parts = [run.parts() for run in self.runs]
        # A frame may run no script that the page around it may not.
        pages = "".join(part.page for some in parts for part in some)
        scripts = re.findall(r"<script>(.*?)</script>", pages, re.DOTALL)
        return rendered(
            templates("tl_weighted_pca.runs"),
            "report.html",
            digests=sorted(set(map(script_digest, scripts))),
            framed=framed,
            report=self,
            parts=parts,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page; a file in its place is replaced whole.

        Raises:
            OSError: if it cannot be written, naming the path.
        """
        write_text_atomically(path, self.to_html())

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that a notebook's style and the page's stay apart."""
        return (
            '<iframe title="Report" style="width:100%;height:44rem;border:1px solid #8884" '
            f'srcdoc="{html.escape(self.to_html(framed=True))}"></iframe>'
        )


def report(run_folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> RunReport:
    """Moments, bases, curves, maps, cards and manifests of run folders, on one page to mail.

    Runs come in the order of their chain: each after those whose files it read, told by SHA-256.

    Args:
        run_folders: folders that commands wrote; one, or several in any order.

    Returns:
        The report: `save(path)` writes one HTML file.

    Raises:
        ValueError: if there is no folder, or one that no command wrote or finished.
    """
    folders = [run_folders] if isinstance(run_folders, (str, os.PathLike)) else run_folders
    paths = list(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders))
    if not paths:
        raise ValueError("No run folder was given: pass one that a command wrote, or several.")
    runs = [ReportedRun(path, read_manifest(path)) for path in paths]
    for run in runs:
        if not run.manifest.get("finished"):
            raise ValueError(
                f"The run in {run.folder} is not finished: a report is of finished runs, so finish it, or "
                "leave it out."
            )
    return RunReport(_ordered(runs))


def _ordered(runs: list[ReportedRun]) -> list[ReportedRun]:
    """The order given, but for runs that read what a later one wrote."""
    left, ordered = list(runs), list[ReportedRun]()
    while left:
        waiting = RunReport(left)
        # Of copies of one folder each may seem to follow the other.
        ready = next((run for run in left if not waiting.sources(run)), left[0])
        left.remove(ready)
        ordered.append(ready)
    return ordered
