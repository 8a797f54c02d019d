"""The map as one HTML page that needs nothing from outside itself."""

from __future__ import annotations

import base64
import io
import math
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from tl_weighted_pca.ablation.bootstrap import Estimate
from tl_weighted_pca.bases.names import display_name
from tl_weighted_pca.model_map.dimensions import DimensionMap
from tl_weighted_pca.support.interactive import inlined
from tl_weighted_pca.support.web_page import rendered, templates


def page(dimensions: DimensionMap, title: str, *, interactive: bool = False) -> str:
    """HTML with the picture, plotly's if it is to be interactive, and the table of smallest ranks."""
    drawn, digests = inlined(dimensions.plot(interactive=True)) if interactive else ("", [])
    picture = io.BytesIO()
    if not interactive:
        dimensions.plot().savefig(picture, format="png")
    ranks = {name: dimensions.smallest_ranks(name) for name in dimensions.names}
    rows = [
        {
            "hook_point": place,
            "width": curves.width,
            "ranks": [_shown(ranks[name][place]) for name in dimensions.names],
        }
        for place, curves in dimensions.items()
    ]
    some = next(iter(dimensions.values()))
    return rendered(
        _environment(), "map.html", map=dimensions, title=title, rows=rows, n_sequences=len(some.counts),
        names=[display_name(name) for name in dimensions.names],
        picture=base64.b64encode(picture.getvalue()).decode(),
        drawn=Markup(drawn), digests=digests,
    )  # fmt: skip


@cache
def _environment() -> jinja2.Environment:
    return templates("tl_weighted_pca.model_map")


def _shown(rank: Estimate) -> dict[str, Any]:
    return {"text": whole(rank), "interval": f"[{whole(rank.low)}, {whole(rank.high)}]"}


def whole(rank: float) -> str:
    """A rank in figures; a dash where none is enough."""
    return f"{rank:.0f}" if math.isfinite(rank) else "–"
