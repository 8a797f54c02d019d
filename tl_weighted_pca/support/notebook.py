"""What a notebook shows of a result: a title, a few numbers, a small inline SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence


def summary(title: str, rows: Mapping[str, object], picture: str = "") -> str:
    """A small table under a title, and a picture beside it; all text is escaped."""
    cells = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:1.5em;align-items:center"><table><caption '
        f'style="text-align:left;font-weight:600;caption-side:top">{html.escape(title)}</caption>'
        f"<tbody>{cells}</tbody></table>{picture}</div>"
    )


def sparkline(lines: Mapping[str, Sequence[float]], label: str, *, logarithmic: bool = True) -> str:
    """Curves in a box of 240 by 80, the first dark, the others lighter; what is not positive is left out.

    Args:
        lines: values by name, evenly spaced.
        label: what a screen reader says of it.
        logarithmic: the scale of the values.
    """
    scaled = {
        name: [
            math.log10(v) if logarithmic and v > 0 else (math.nan if logarithmic else v)
            for v in values
        ]
        for name, values in lines.items()
    }
    finite = [v for values in scaled.values() for v in values if math.isfinite(v)]
    if not finite:
        return ""
    low, height = min(finite), max(max(finite) - min(finite), 1e-12)
    drawn = []
    for i, (name, values) in enumerate(scaled.items()):
        step = 236 / max(1, len(values) - 1)
        points = " ".join(
            f"{2 + j * step:.1f},{78 - 76 * (v - low) / height:.1f}"
            for j, v in enumerate(values)
            if math.isfinite(v)
        )
        dash = "" if i == 0 else f' stroke-dasharray="{2 + 2 * i} 2"'
        drawn.append(
            f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5" '
            f'opacity="{max(0.35, 1 - 0.2 * i):.2f}"{dash}><title>{html.escape(name)}</title></polyline>'
        )
    return (
        f'<svg role="img" aria-label="{html.escape(label)}" width="240" height="80" '
        f'viewBox="0 0 240 80">{"".join(drawn)}</svg>'
    )
