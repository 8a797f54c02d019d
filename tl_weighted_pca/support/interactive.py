"""The same pictures by plotly, to zoom and to point at. It is imported when one is drawn."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tl_weighted_pca.support.figure import SEQUENCE
from tl_weighted_pca.support.files import write_text_atomically
from tl_weighted_pca.support.panel import Grid, Line, Panel

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross",
    "X": "x", "x": "x-thin-open", "<": "triangle-left",
}  # fmt: skip
_WRITTEN = 14
"""Cells a side up to which their numbers are written into them."""

_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}


def check_plotly() -> None:
    """Raise ImportError if plotly is not installed."""
    if importlib.util.find_spec("plotly") is None:
        raise ImportError(
            "Interactive pictures need plotly, which is not installed: pip install "
            "'tl-weighted-pca[interactive]', or leave out interactive."
        )


def explorable(panels: Sequence[Panel], *, title: str = "", columns: int = 0) -> Figure:
    """A plotly figure of panels, side by side or in so many columns.

    Raises:
        ImportError: if plotly is not installed.
    """
    check_plotly()
    subplots = importlib.import_module("plotly.subplots")
    columns = min(columns or len(panels), len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = subplots.make_subplots(
        rows, columns, subplot_titles=[panel.title for panel in panels],
        horizontal_spacing=0.2 / columns, vertical_spacing=0.3 / rows,
    )  # fmt: skip
    named = set[str]()
    for i, panel in enumerate(panels):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        if panel.grid is not None:
            last = not any(later.grid for later in panels[i + 1 :])
            figure.add_trace(_heat(panel.grid, panel, bar=last), **at)
            kinds = [_axis_of(names) for names in (panel.grid.columns, panel.grid.rows)]
            figure.update_xaxes(type=kinds[0], **at)
            figure.update_yaxes(type=kinds[1], autorange="reversed", **at)
            for y, x in enumerate(panel.grid.contour):
                figure.add_shape(
                    type="line", x0=x, x1=x, y0=y - 0.5, y1=y + 0.5, line={"color": "#ff5d00", "width": 3},
                    name=panel.grid.contour_name, legendgroup=panel.grid.contour_name,
                    showlegend=i == y == 0, **at,
                )  # fmt: skip
        for line in panel.lines:
            figure.add_traces(_traces(line, panel, first=line.name not in named), **_each(line, at))
            named.add(line.name)
        figure.update_xaxes(title_text=panel.x, **at)
        if panel.ticks is not None:
            figure.update_xaxes(tickvals=list(panel.ticks), ticktext=panel.names, **at)
        figure.update_yaxes(title_text=panel.y, **at)
        if panel.log:
            figure.update_yaxes(type="log", exponentformat="power", **at)
        if panel.lines and panel.ends is not None:
            ends = [math.log10(y) for y in panel.ends] if panel.log else list(panel.ends)
            figure.update_yaxes(range=ends, **at)
    tallest = max(330, *(20 * len(panel.grid.rows) for panel in panels if panel.grid), 0)
    figure.update_layout(
        template="plotly_white", title_text=title, height=140 + tallest * rows, hovermode="closest",
        margin={"l": 60, "r": 20, "t": 80 if title else 40, "b": 60},
        legend={"orientation": "h", "yanchor": "top", "y": -0.16 / rows, "x": 0},
    )  # fmt: skip
    return figure


def save_page(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a page that needs nothing from outside itself: plotly's own script is in it.

    Raises:
        OSError: if it cannot be written, naming the path.
    """
    from markupsafe import Markup

    from tl_weighted_pca.support.web_page import rendered, templates

    title = figure.layout.title.text or os.path.splitext(os.path.basename(path))[0]
    across = [axis for axis in figure.select_xaxes() if axis.anchor]
    columns = len({axis.domain for axis in across})
    # The page's heading says what the figure's title does.
    drawn, digests = inlined(type(figure)(figure).update_layout(title_text="", margin_t=40))
    text = rendered(
        templates("tl_weighted_pca.support"), "picture.html", digests=digests, title=title,
        picture=Markup(drawn), columns=columns,
    )  # fmt: skip
    write_text_atomically(path, text)


def inlined(figure: Figure) -> tuple[str, list[str]]:
    """A figure as part of a page, with plotly's script, and the digests of the scripts in it."""
    from tl_weighted_pca.support.web_page import script_digest

    config = {"responsive": True, "displaylogo": False}
    html = figure.to_html(
        full_html=False, include_plotlyjs=True, include_mathjax=False, config=config
    )
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
    return html, [script_digest(script) for script in scripts]


def _each(line: Line, at: dict[str, int]) -> dict[str, Any]:
    """The place of each of a line's traces."""
    count = 2 if line.low else 1
    return {"rows": [at["row"]] * count, "cols": [at["col"]] * count}


def _traces(line: Line, panel: Panel, *, first: bool) -> list[Any]:
    """The band, and the line on it."""
    graph = importlib.import_module("plotly.graph_objects")
    look = line.look
    color, dash = look.get("color", "#666666"), look.get("linestyle", "-")
    marker, of = look.get("marker"), panel.y.partition("<br>")[0]
    mode = "markers" if dash == "" else "lines+markers" if marker else "lines"
    values = "%{customdata}" if line.hover else f"{panel.x}: %{{x}}<br>{of}: %{{y:.4g}}"
    band = ""
    data: Any = list(line.hover) if line.hover else None
    if line.low:
        data = list(zip(_plain(line.low), _plain(line.high), strict=True))
        band = " [%{customdata[0]:.4g}, %{customdata[1]:.4g}]"
    trace = graph.Scatter(
        x=_plain(line.x), y=_plain(line.y), name=line.name, mode=mode, legendgroup=line.name,
        showlegend=bool(line.name) and first, customdata=data,
        line={
            "color": color if isinstance(color, str) else None,
            "dash": _DASHES.get(dash), "width": look.get("linewidth", 1.5),
            "shape": "hvh" if look.get("drawstyle") == "steps-mid" else "linear",
        },
        marker={"color": color, "symbol": _SYMBOLS.get(marker or ""), "size": _size(look), "opacity": 1},
        opacity=look.get("alpha"),
        hoverinfo="skip" if line.quiet else None,
        hovertemplate=None if line.quiet else f"{values}{band}<extra>{line.name}</extra>",
    )  # fmt: skip
    if not line.low:
        return [trace]
    edges = [(x, low, high) for x, y, low, high in zip(line.x, line.y, line.low, line.high, strict=True)
             if not math.isnan(y)]  # fmt: skip
    around = graph.Scatter(
        x=[x for x, *_ in edges] + [x for x, *_ in reversed(edges)],
        y=[high for *_, high in edges] + [low for _, low, _ in reversed(edges)],
        fill="toself", fillcolor=color, opacity=0.15, mode="none", legendgroup=line.name,
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    return [around, trace]


def _heat(grid: Grid, panel: Panel, *, bar: bool) -> Any:
    graph = importlib.import_module("plotly.graph_objects")
    values = grid.values.clamp(min=grid.low)
    shown, low, high, ticks = values, grid.low, grid.high, {}
    if grid.log:
        shown, low, high = values.log10(), math.log10(low), math.log10(high)
        powers = range(math.ceil(low), math.floor(high) + 1)
        ticks = {"tickvals": [*powers], "ticktext": [f"{10.0**p:g}" for p in powers]}
    where = f"{panel.y}: %{{y}}<br>{panel.x}: %{{x}}<br>"
    return graph.Heatmap(
        z=shown.tolist(), x=list(grid.columns), y=list(grid.rows), customdata=grid.values.tolist(),
        zmin=low, zmax=high, colorscale=SEQUENCE, reversescale=grid.reverse, showscale=bar,
        colorbar={"title": {"text": grid.name, "side": "right"}, **ticks},
        texttemplate="%{z:.2f}" if max(values.shape) <= _WRITTEN and not grid.log else None,
        hovertemplate=f"{where}{grid.name}: %{{customdata:.4g}}<extra>{panel.title}</extra>",
    )  # fmt: skip


def _size(look: Any) -> Any:
    """In pixels, where matplotlib counts points."""
    size = look.get("markersize", 4)
    return size if isinstance(size, list) else 1.4 * size


def _axis_of(names: Sequence[Any]) -> str:
    return "category" if isinstance(names[0], str) else "linear"


def _plain(values: Sequence[Any]) -> list[Any]:
    """As JSON has them: none for what is not a number."""
    return [v if isinstance(v, str) else float(v) if math.isfinite(v) else None for v in values]
