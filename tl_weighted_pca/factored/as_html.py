"""What a notebook shows of a factored matrix: this room imports no other, so a few lines of its own."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


def spectrum_table(title: str, shape: Sequence[int], S: Float[Tensor, "*batch k"]) -> str:
    """A title, the numbers one looks for, and σ_i by i on a logarithmic scale; means over a batch."""
    if not S.numel():
        return f"<p>{html.escape(title)}</p>"
    values = S.detach().double().cpu().reshape(-1, S.shape[-1])
    squares = values.square()
    ratio = squares.sum(1) ** 2 / squares.square().sum(1).clamp(min=1e-300)
    rows = {
        "shape": " × ".join(map(str, shape)),
        "largest σ": f"{float(values[:, 0].mean()):.4g}",
        "smallest σ": f"{float(values[:, -1].mean()):.4g}",
        "participation ratio (Σσ²)² / Σσ⁴": f"{float(ratio.mean()):.1f}",
    }
    cells = "".join(
        f'<tr><th style="text-align:left">{name}</th><td style="text-align:left">{value}</td></tr>'
        for name, value in rows.items()
    )
    logs = [math.log10(v) for v in values.mean(0).tolist() if v > 0]
    span = max(logs[0] - logs[-1], 1e-12) if logs else 1.0
    step = 236 / max(1, len(logs) - 1)
    points = " ".join(
        f"{2 + i * step:.1f},{2 + 76 * (logs[0] - y) / span:.1f}" for i, y in enumerate(logs)
    )
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:1.5em;align-items:center"><table><caption '
        f'style="text-align:left;font-weight:600;caption-side:top">{html.escape(title)}</caption>'
        f'<tbody>{cells}</tbody></table><svg role="img" aria-label="Singular values, logarithmic" '
        f'width="240" height="80" viewBox="0 0 240 80"><polyline points="{points}" fill="none" '
        'stroke="currentColor" stroke-width="1.5"/></svg></div>'
    )
