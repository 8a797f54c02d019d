"""What the files of a run's folder hold, as a page shows it."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from tl_weighted_pca.bases.names import display_name, display_names
from tl_weighted_pca.runs.manifest import sha256
from tl_weighted_pca.support.notebook import sparkline

if TYPE_CHECKING:
    import pandas as pd

_MOST_ROWS = 100
"""Of a table that a page shows."""

_TOLD_BY_OTHERS = ("cards.csv", "cards.json", "facts.csv", "map.csv", "map.html")
"""Files whose numbers are on the page already."""


@dataclass(frozen=True)
class Part:
    """A table, a picture or a page under a heading."""

    title: str
    note: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    """Each row's cells; a `Cell` for more than text."""
    picture: str = ""
    """A PNG in base64."""
    page: str = ""
    """HTML with its own script, to show in a frame."""
    folded: bool = False


@dataclass(frozen=True)
class Cell:
    """A number with its interval, or a small drawing."""

    text: str = ""
    small: str = ""
    best: bool = False
    svg: str = field(default="", repr=False)


def unlike(folder: Path, outputs: Mapping[str, str]) -> list[str]:
    """The files that are no longer there, or no longer as the run wrote them."""
    return [
        name
        for name, digest in outputs.items()
        if not (folder / name).is_file() or sha256(folder / name) != digest
    ]


def parts_of(folder: Path, names: Sequence[str]) -> Iterator[Part]:
    """What there is to see of some of a run's files: numbers, then pictures, then whole pages."""
    own = sorted(name for name in names if "/" not in name)
    told = _TOLD_BY_OTHERS if {"cards.html", "map.safetensors"} & set(own) else ()
    yield from _of_tensors(folder, [name for name in own if name.endswith(".safetensors")])
    if "ablation.csv" in own:
        yield from _curves(folder / "ablation.csv")
    for name in own:
        if name.endswith(".png"):
            picture = base64.b64encode((folder / name).read_bytes()).decode()
            yield Part(name.removesuffix(".png"), picture=picture)
    if "cards.html" in own:
        yield _cards(folder, names)
    for name in own:
        if name.endswith(".csv") and name not in (*told, "ablation.csv"):
            yield _table(folder / name)


def moments_held(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a file of moments says of all its hook points, and of each; no moment is read."""
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    held = json.loads(metadata["moments"])
    if not held:
        raise LookupError("it holds no hook point")
    rows = []
    for name, entry in held.items():
        kinds = [
            k for k in ("activation", "gradient", "weighted") if f"{name}/{k}/weight" in shapes
        ]
        shape: list[int] = next((shapes[f"{name}/{k}/shift"] for k in kinds), [])
        rows.append(
            {
                "hook point": name, "shape": "×".join(map(str, shape)), "tokens": entry["n_tokens"],
                "sequences": entry["n_sequences"], "statistics": ", ".join(kinds),
            }
        )  # fmt: skip
    made = next(iter(held.values()))["provenance"]
    facts = {
        "model": made["model"],
        "objective": made["objective"] or "none",
        **json.loads(metadata["settings"]),
    }
    facts.pop("statistics", None)
    return facts, rows


def _of_tensors(folder: Path, names: Sequence[str]) -> Iterator[Part]:
    """Moments, bases, a map."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        with safe_open(folder / name, "pt") as opened:
            form = (opened.metadata() or {}).get("format", "")
        kinds.setdefault(form.removeprefix("tl_weighted_pca.").partition("/")[0], []).append(name)
    for name in kinds.get("Collection", []):
        facts, rows = moments_held(folder / name)
        note = f"Of {facts['model']}; gradients of {facts['objective']}."
        cells = [[_text(value) for value in row.values()] for row in rows]
        yield Part(f"Moments: {name}", note, list(rows[0]), cells)
    if "Basis" in kinds:
        yield _bases(folder, kinds["Basis"])
    for name in kinds.get("DimensionMap", []):
        yield _map(folder / name)


def _bases(folder: Path, names: Sequence[str]) -> Part:
    from tl_weighted_pca.bases.basis import Basis

    rows = []
    for name in names:
        basis = Basis.load(folder / name)
        share = basis.explained_ratio.reshape(-1, basis.n_components).mean(0)
        values = basis.eigenvalues.reshape(-1, basis.n_components).mean(0).tolist()
        enough = int((share.cumsum(0) < 0.9).sum()) + 1
        drawn = sparkline({"eigenvalues": values}, f"Eigenvalues of {name}, logarithmic")
        first = f"{float(share[0]):.1%}" if len(share) else "–"
        rows.append(
            [
                name.removesuffix(".safetensors"), basis.method, f"{basis.n_components} of {basis.width}",
                first, str(enough) if enough <= len(share) else "–", Cell(svg=drawn),
            ]
        )  # fmt: skip
    columns = ["Basis", "Method", "Components", "First share", "For 90%", "Eigenvalues"]
    return Part("Bases", "Eigenvalues are on a logarithmic scale.", columns, rows)


def _map(path: Path) -> Part:
    from tl_weighted_pca.model_map.dimensions import DimensionMap
    from tl_weighted_pca.model_map.page import whole

    found = DimensionMap.load(path)
    ranks = {name: found.smallest_ranks(name) for name in found.names}
    rows = [
        [place, str(curves.width)]
        + [
            Cell(whole(r), f"[{whole(r.low)}, {whole(r.high)}]")
            for r in (ranks[name][place] for name in found.names)
        ]
        for place, curves in found.items()
    ]
    note = f"The smallest rank that costs at most {found.tolerance:g} nats per token, with 95% intervals."
    columns = ["Hook point", "Width", *map(display_name, found.names)]
    return Part("Smallest ranks", note, columns, rows)


def _curves(path: Path) -> Iterator[Part]:
    """A table a hook point: the excess by rank and basis, with its interval, the lowest in bold."""
    import pandas as pd

    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    for place, here in table.groupby("hook_point", sort=False):
        names = list(here["basis"].unique())
        rows = []
        for rank, at in here.groupby("rank"):
            lowest = at["excess"].min()
            of = {row["basis"]: row for _, row in at.iterrows()}
            cells = [
                Cell(
                    _nats(row["excess"]), f"[{_nats(row['excess_low'])}, {_nats(row['excess_high'])}]",
                    best=row["excess"] == lowest,
                )
                for row in (of[name] for name in names)
            ]  # fmt: skip
            rows.append([str(rank), *cells])
        unablated = (here["score"] - here["excess"]).iloc[0]
        note = (
            f"Excess over the unablated model's {unablated:.3f} by components kept, with 95% intervals; the "
            "lowest in bold."
        )
        yield Part(
            f"Node ablation at {place}",
            note,
            ["Kept", *display_names(map(str, names)).values()],
            rows,
        )


def _nats(x: float) -> str:
    return f"{round(x, 3) + 0.0:.3f}"


def _cards(folder: Path, names: Sequence[str]) -> Part:
    whole = "cards_whole.html" in names  # where cards.html is an index of files beside it
    apart = 0 if whole else sum(name.startswith("cards_components/") for name in names)
    note = (
        f"Not on this page: the {apart} components' own pages, to which the links lead. They are in "
        f"{folder / 'cards_components'}; open cards.html beside it."
        if apart
        else ""
    )
    html = (folder / ("cards_whole.html" if whole else "cards.html")).read_text(encoding="utf-8")
    # Within a frame, links to a card would lead to the page around it.
    html = re.sub("(?i)<head>", '<head>\n<base href="about:srcdoc">', html, count=1)
    return Part("Feature cards", note, page=html)


def _table(path: Path) -> Part:
    import pandas as pd

    table: pd.DataFrame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    rows = [
        [_text(value) for value in row] for row in table.head(_MOST_ROWS).itertuples(index=False)
    ]
    note = f"The first {_MOST_ROWS} of {len(table)} rows." if len(table) > _MOST_ROWS else ""
    return Part(path.name, note, [str(name) for name in table.columns], rows, folded=True)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
