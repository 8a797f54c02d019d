"""Tables for the terminal."""

from __future__ import annotations

import math
import textwrap
import warnings
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from tl_weighted_pca.ablation.curves import AblationCurves, Estimate


_NONE = "n/a"


def table(frame: pd.DataFrame, title: str | None = None, *, digits: int = 4) -> Table:
    """A data frame, its numbers on the right and to so many significant digits."""
    shown = Table(title=title)
    for i, name in enumerate(frame.columns):
        justify: Literal["left", "right"] = "right" if frame[name].dtype.kind in "iuf" else "left"
        # What a line is about stays in one piece.
        shown.add_column(escape(str(name)), justify=justify, overflow="fold", no_wrap=i == 0)
    for row in frame.itertuples(index=False):
        shown.add_row(*(_cell(value, digits) for value in row))
    if frame.isna().to_numpy().any():
        shown.caption = f"{_NONE}: not defined, such as a share of nothing."
    return shown


def _cell(value: Any, digits: int) -> str:
    if not isinstance(value, float):
        return escape(str(value))
    if math.isnan(value):
        return _NONE
    # A count is a float too, where others in its column are.
    whole = value.is_integer() and abs(value) < 2**53
    return f"{value:.0f}" if whole else f"{value:.{digits}g}"


def ablation_table(curves: AblationCurves, *, to: str | None) -> Group:
    """Scores by rank and basis, the lowest in bold, then two summaries; the second one relative to `to`."""
    from tl_weighted_pca.bases.names import display_name, display_names

    relative = (
        f" ratio: the excess over that of {display_name(to or '')}, geometric mean over ranks d/8 to "
        "d/2, ± half its 95% interval."
    )
    shown = Table(
        # Eight bases fit into eighty columns.
        box=box.HORIZONTALS,
        collapse_padding=True,
        pad_edge=False,
    )
    names = display_names(curves.per_sequence)
    shown.add_column("kept", justify="right", no_wrap=True, min_width=len("ratio"))
    for label in names.values():
        shown.add_column(escape(_narrow(label)), justify="right", overflow="fold")
    for i, rank in enumerate(curves.ranks):
        scores = [curves.scores[name][i] for name in names]
        lowest = f"{min(scores):.3f}"
        cells = [f"[bold]{x:.3f}[/]" if f"{x:.3f}" == lowest else f"{x:.3f}" for x in scores]
        shown.add_row(str(rank), *cells, end_section=i == len(curves.ranks) - 1)
    if len(curves.ranks) > 1:
        shown.add_row("area", *(f"{float(curves.area(name)):.3f}" for name in names))
    middle = [k for k in curves.ranks if curves.width / 8 <= k <= curves.width / 2]
    if to and middle:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told below, once
            ratios = [curves.relative_excess(name, to=to, ranks=middle) for name in names]
        shown.add_row("ratio", *map(_ratio, ratios))
        if any(map(math.isnan, ratios)):
            relative += f" {_NONE}: an excess there is nowhere above zero, and has no ratio."
    unit = curves.unit[:1].upper() + curves.unit[1:]
    # Not as the table's own title and caption, which would be no wider than few columns are.
    return Group(
        Text(f"{unit} by components kept at {curves.hook_point}", style="italic"),
        shown,
        Text(
            "area: the mean excess over the unablated model." + (relative if to else ""),
            style="dim",
        ),
    )


def _ratio(ratio: Estimate) -> str:
    if math.isnan(ratio):
        return _NONE
    half = (ratio.high - ratio.low) / 2
    return f"{ratio:.2f}\n±{half:.2f}" if math.isfinite(half) else f"{ratio:.2f}"


def _narrow(name: str) -> str:
    """A name in lines no longer than its longest word, or than the numbers below it."""
    longest = max((len(word) for word in name.replace("-", "- ").split()), default=0)
    return "\n".join(textwrap.wrap(name, max(longest, len("10.000"))))
