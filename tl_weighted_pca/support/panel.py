"""What a picture shows, as data: matplotlib draws it for paper, plotly to explore."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor


@dataclass(frozen=True)
class Line:
    """y by x, with a band about it or without."""

    x: Sequence[Any]
    y: Sequence[Any]
    """Numbers, or names of a heat map's rows and columns; NaN where the line breaks."""
    name: str = ""
    """In the legend; none for ""."""
    look: Mapping[str, Any] = field(default_factory=dict)
    """As matplotlib's `plot` takes it: color, marker, linestyle, linewidth, markersize, …"""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """The band's edges, at each x."""
    hover: Sequence[str] = ()
    """What pointing at each x says, in place of x and y."""
    quiet: bool = False
    """Whether pointing at it says nothing."""

    def draw(self, ax: Axes) -> None:
        """Into axes of matplotlib."""
        ax.plot(self.x, self.y, label=self.name or "_", **self.look)
        if self.low:
            shown = [not math.isnan(y) for y in self.y]
            ax.fill_between(
                self.x, self.low, self.high, where=shown, color=self.look["color"], alpha=0.15,
                linewidth=0,
            )  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A heat map: values by row and column."""

    values: Float[Tensor, "row column"]
    rows: Sequence[Any]
    columns: Sequence[Any]
    name: str
    """Of the value."""
    low: float
    high: float
    """The values that the colours' ends stand for."""
    log: bool = False
    reverse: bool = False
    """Dark for the highest."""
    contour: Sequence[float] = ()
    """Where it crosses each row, in columns from the middle of the first."""
    contour_name: str = ""


@dataclass(frozen=True)
class Panel:
    """Lines, points or a heat map under one title."""

    x: str
    y: str
    lines: Sequence[Line] = ()
    grid: Grid | None = None
    title: str = ""
    log: bool = False
    """Whether y has a logarithmic axis."""
    ends: tuple[float, float] | None = None
    """Of y; by default as the lines have it."""
    ticks: Sequence[float] | None = None
    names: Sequence[str] | None = None
    """Of the ticks of x."""
