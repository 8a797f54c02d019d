"""What was left out, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tl_weighted_pca.cli.console import show

if TYPE_CHECKING:
    from tl_weighted_pca.runs.run_folder import RunFolder


def report_left_out(left_out: Mapping[str, Mapping[str, int]], run: RunFolder) -> None:
    """Say how many positions were left out, and where most often; enter all in the manifest."""
    if left_out:
        run.manifest["left_out"] = {name: dict(counts) for name, counts in left_out.items()}
        for name, counts in left_out.items():
            show(f"Left out at {name}: {in_words(counts)}.", highlight=False, markup=False)


def in_words(counts: Mapping[str, int]) -> str:
    """So many positions, and the three at which most of them are."""
    if not counts:
        return "no position"
    most = sorted(counts.items(), key=lambda item: -item[1])[:3]
    where = ", ".join(f"{place} ({count:,})" for place, count in most)
    return f"{sum(counts.values()):,} of outlying norm, most often at position {where}"
