"""What all pictures share: a figure that notebooks show, colours, markers and plain axes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""A second sign beside the colour."""

DASHES = ("-", "--", ":", "-.")
"""A third, once the colours are used up."""

SEQUENCE = "viridis"
"""A colour map that grows lighter throughout, also in grey."""


class Picture(Figure):
    """A figure that a notebook shows by itself, whether or not pyplot was ever imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def styles(names: Sequence[str], *, ordered: bool = False) -> dict[str, dict[str, Any]]:
    """A colour, a marker and a dash for each name, the same whatever else is drawn.

    More names than the palette has go round again, dashed; if `ordered`, as layers are, they are coloured
    from dark to light instead.
    """
    n, size = len(names), len(PALETTE)
    if ordered and n > size:  # not up to the last yellow, which white paper swallows
        colors = [to_hex(colormaps[SEQUENCE](0.9 * i / (n - 1))) for i in range(n)]
        dashes = ["-"] * n
    else:
        colors = [PALETTE[i % size] for i in range(n)]
        dashes = [DASHES[i // size % len(DASHES)] for i in range(n)]
    return {
        name: {"color": colors[i], "marker": MARKERS[i % len(MARKERS)], "linestyle": dashes[i]}
        for i, name in enumerate(names)
    }


def plain(ax: Axes) -> Axes:
    """The axes with a light grid and no box."""
    ax.grid(True, color="0.9", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def canvas(ax: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """The given axes and their figure, or new ones."""
    if ax is not None:
        return figure_of(ax), ax
    figure = new_figure(size)
    return figure, plain(figure.subplots())


def figure_of(ax: Axes) -> Figure:
    """The whole figure that axes are in, also from within a subfigure."""
    figure = ax.figure.figure
    assert isinstance(figure, Figure)
    return figure


def new_figure(size: tuple[float, float]) -> Picture:
    """An empty figure of that size in inches."""
    # Without pyplot: no global state, no figure kept alive behind the user's back.
    return Picture(figsize=size, dpi=150, layout="constrained")
