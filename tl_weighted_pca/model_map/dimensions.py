"""How many components each hook point of a model needs: ablation curves by hook point."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tl_weighted_pca.ablation.bootstrap import Estimate
from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.support.files import reading, write_atomically

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "tl_weighted_pca.DimensionMap/1"

_KINDS = {
    "stream": r"hook_(resid_(pre|mid|post)|in|out)",
    "attention outputs": r"(hook_attn_out|attn\.hook_out)",
    "MLP outputs": r"(hook_mlp_out|mlp\.hook_out)",
}


@dataclass(frozen=True, eq=False, repr=False)
class DimensionMap(Mapping[str, AblationCurves]):
    """excess_b(k) at each hook point s: `map[s]` are the ablation curves there, of every basis b.

    Every hook point was ablated alone, on the same sequences. `smallest_ranks` are its dimensions.
    """

    curves: dict[str, AblationCurves]
    """By hook point, in the order in which they were asked for."""
    tolerance: float
    """The excess, in nats, up to which a rank is enough."""
    shares: list[float]
    """The shares of each width that were kept."""
    bases: dict[str, dict[str, Basis]] = field(default_factory=dict)
    """By name and hook point, to ablate together; not saved."""

    def __getitem__(self, hook_point: str) -> AblationCurves:
        try:
            return self.curves[hook_point]
        except KeyError:
            raise KeyError(f"{hook_point!r} is not in this map of {', '.join(self)}.") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.curves)

    def __len__(self) -> int:
        return len(self.curves)

    def __repr__(self) -> str:
        some = next(iter(self.values()))
        return (
            f"DimensionMap({', '.join(self.names)} at {len(self)} hook points: {len(self.shares)} shares, "
            f"{len(some.counts)} sequences, tolerance {self.tolerance:g})"
        )

    @property
    def names(self) -> list[str]:
        """The bases' names."""
        return list(next(iter(self.values())).per_sequence)

    def smallest_ranks(
        self, name: str, tolerance: float | None = None, *, level: float = 0.95, seed: int = 0
    ) -> dict[str, Estimate]:
        """min {k : excess_b(k) ≤ tolerance} at each hook point, with its interval.

        Args:
            name: of the basis.
            tolerance: in nats; the map's own by default.
            level: of the intervals.
            seed: of the bootstrap.
        """
        limit = self.tolerance if tolerance is None else tolerance
        return {
            place: curves.smallest_rank(name, limit, level=level, seed=seed)
            for place, curves in self.items()
        }

    def to_pandas(self, *, level: float = 0.95) -> pd.DataFrame:
        """A tidy table: that of every hook point's curves, with the share of the width that is kept."""
        import pandas as pd

        tables = []
        for curves in self.values():
            table = curves.to_pandas(level=level)
            table.insert(3, "share", table["rank"] / curves.width)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def plot(
        self,
        *,
        names: Sequence[str] | None = None,
        title: str | None = None,
        interactive: bool = False,
    ) -> Any:
        """A heat map of the excess, layers down and shares kept across, with the tolerance's contour.

        One panel a basis; one line each for the stream, attention outputs and MLP outputs.

        Args:
            names: of the bases; all by default.
            title: above the panels.
            interactive: a plotly figure, in place of one of matplotlib.
        """
        from tl_weighted_pca.model_map.picture import plot_dimension_map

        return plot_dimension_map(self, names=names, title=title, interactive=interactive)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `DimensionMap.load` reads; the bases are not in it."""
        some = next(iter(self.values()))
        tensors = {"baseline": some.baseline_per_sequence, "counts": some.counts}
        for i, curves in enumerate(self.values()):
            tensors |= {f"{i}/{name}": scores for name, scores in curves.per_sequence.items()}
        header = {
            "tolerance": self.tolerance, "shares": self.shares, "names": self.names, "unit": some.unit,
            "hook_points": {
                s: {"ranks": c.ranks, "width": c.width, "left_out": c.left_out}
                for s, c in self.items()
            },
        }  # fmt: skip
        write_atomically(path, tensors, {"format": _FORMAT, "map": json.dumps(header)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DimensionMap:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a map, or is damaged.
        """
        with reading(path, _FORMAT, "DimensionMap.save") as (tensors, metadata):
            header = json.loads(metadata["map"])
            curves = {
                place: AblationCurves(
                    ranks=shape["ranks"],
                    width=shape["width"],
                    per_sequence={name: tensors[f"{i}/{name}"] for name in header["names"]},
                    baseline_per_sequence=tensors["baseline"],
                    counts=tensors["counts"],
                    hook_point=place,
                    unit=header["unit"],
                    kept=[{place: k} for k in shape["ranks"]],
                    left_out=shape.get("left_out", {}),
                )
                for i, (place, shape) in enumerate(header["hook_points"].items())
            }
            return cls(curves, header["tolerance"], header["shares"])


def layer_and_kind(hook_point: str) -> tuple[str, str]:
    """A hook point's layer, or its name outside of blocks, and what it carries."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_point)
    if match is None:
        return hook_point, "other"
    kinds = (kind for kind, pattern in _KINDS.items() if re.fullmatch(pattern, match[2]))
    return match[1], next(kinds, match[2])
