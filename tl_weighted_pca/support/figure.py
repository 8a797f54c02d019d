"""What all pictures share: a figure that notebooks show, colours, markers and plain axes."""

from __future__ import annotations

import io
import re
from collections import Counter
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


METHODS = {
    "trained": ("#D55E00", "P", "-"),
    "optimize": ("#D55E00", "P", "-"),
    "random": ("#8c8c8c", "x", "--"),
    "joint": ("#56B4E9", "X", "-"),
    "path": ("#009E73", "v", "-"),
    "weighted": ("#E69F00", "s", "-"),
    "gradient": ("#CC79A7", "D", "-"),
    "interaction": ("#6A3D9A", "<", "-"),
    "lib": ("#6A3D9A", "<", "-"),
    "metric": ("#0072B2", "^", "-"),
    "fisher": ("#0072B2", "^", "-"),
    "pca": ("#000000", "o", "-"),
}
"""Colour, marker and dash of a method, by the first of these words that its name has.

What a name may also say, such as whose gradients a method is of ("weighted fisher"), comes later.
"""


class Picture(Figure):
    """A figure that a notebook shows by itself, whether or not pyplot was ever imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def styles(names: Sequence[str], *, ordered: bool = False) -> dict[str, dict[str, Any]]:
    """A colour, a marker and a dash for each name: PCA's first, random ones last.

    A method has its own in every picture (`METHODS`); up to four of one method are told apart by dash and
    marker. Other names, and methods of more, get the colours that are left; more than there are go round
    again, dashed. If `ordered`, as layers are, these are coloured from dark to light instead.
    """
    methods = {name: method_of(name) for name in names}
    crowded = {word for word, count in Counter(methods.values()).items() if count > len(DASHES)}
    methods = {name: "" if word in crowded else word for name, word in methods.items()}
    looks = {name: METHODS[word] for name, word in methods.items() if word}
    others = [name for name in names if name not in looks]
    colors, markers = (
        [x for x in every if x not in {look[i] for look in looks.values()}] or every
        for i, every in enumerate((PALETTE, MARKERS))
    )
    shaded = ordered and len(others) > len(PALETTE)
    for i, name in enumerate(others):
        # Not up to the last yellow, which white paper swallows.
        shade = to_hex(colormaps[SEQUENCE](0.9 * i / max(1, len(others) - 1)))
        color = shade if shaded else colors[i % len(colors)]
        dash = "-" if shaded else DASHES[i // len(colors) % len(DASHES)]
        looks[name] = color, markers[i % len(markers)], dash
    used: list[tuple[str, str, str]] = []
    styles = {}
    for name in sorted(names, key=lambda n: {"pca": 0, "random": 2}.get(methods[n], 1)):
        color, marker, dash = look = looks[name]
        if methods[name] and (again := used.count(look)):
            at = MARKERS.index(marker) if marker in MARKERS else 0
            marker = MARKERS[(at + again) % len(MARKERS)]
            dash = DASHES[(DASHES.index(dash) + again) % len(DASHES)]
        used.append(look)
        styles[name] = {"color": color, "marker": marker, "linestyle": dash}
    return styles


def method_of(name: str) -> str:
    """The word of `METHODS` that says which method a name is of; none where it says nothing of it."""
    words = re.findall("[a-z]+", name.lower())
    return next((word for word in METHODS if word in words), "")


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
