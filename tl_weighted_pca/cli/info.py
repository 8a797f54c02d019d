"""`info`: what a file of ours is, without any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show
from tl_weighted_pca.cli.left_out import in_words
from tl_weighted_pca.cli.options import existing
from tl_weighted_pca.cli.tables import table


@command()
def info(
    file: Annotated[
        Path, typer.Argument(help="The folder of a run, or one of its safetensors files.")
    ],
) -> None:
    """Say what a file is: moments, a basis, a dimension map, a dictionary, a
    checkpoint, or the folder of a run.

    \b
    Examples:
      tl-weighted-pca info run
      tl-weighted-pca info bases/blocks.2.hook_resid_post.pca.safetensors
    """
    from tl_weighted_pca.runs.manifest import MANIFEST

    path = existing(file)
    if path.is_dir():
        show(_run(path))
    elif path.name == MANIFEST:
        show(_run(path.parent))
    else:
        show(*_tensors(path))


def _tensors(path: Path) -> list[RenderableType]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no readable safetensors file ({error}): pass the folder of a run, or one of "
            "its safetensors files."
        ) from error
    kind = metadata.get("format", "").removeprefix("tl_weighted_pca.")
    tell = _KINDS.get(kind)
    if tell is None:
        raise ValueError(
            f"{path} is a safetensors file of {len(shapes)} tensors, but none that this version writes (its "
            f"format mark is {metadata.get('format')!r}): pass the folder of a run, or one of its files."
        )
    try:
        return tell(path, metadata, shapes)
    except (LookupError, TypeError, AttributeError, StopIteration, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} says that it is a {kind.partition('/')[0]}, but is damaged ({error!r}): make it again."
        ) from error


def _moments(path: Path, metadata: dict[str, str], shapes: dict[str, Any]) -> list[RenderableType]:
    import pandas as pd

    from tl_weighted_pca.runs.contents import moments_held

    facts, rows = moments_held(path)
    if left_out := facts.get("left_out"):
        facts["left_out"] = {name: in_words(counts) for name, counts in left_out.items()}
    return [_facts(f"{path}: moments", facts), table(pd.DataFrame(rows))]


def _basis(path: Path, metadata: dict[str, str], shapes: dict[str, Any]) -> list[RenderableType]:
    import pandas as pd

    from tl_weighted_pca.bases.basis import Basis

    basis = Basis.load(path)
    heads = {"heads": basis.encoder.shape[0]} if basis.per_head else {}
    facts = {
        "method": basis.method,
        **vars(basis.provenance),
        "width": basis.width,
        "components": basis.n_components,
        **heads,
        "centred": bool(basis.center.any()),
        "total": f"{float(basis.total.sum()):.4g}",
    }
    values, share = basis.eigenvalues, basis.explained_ratio
    if basis.per_head:
        values, share = values.sum(0), (values.sum(0) / basis.total.sum())
    steps = sorted({k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if k <= len(values)})
    rows = pd.DataFrame(
        {
            "component": steps,
            "eigenvalue": [float(values[k - 1]) for k in steps],
            "explained by so many": [f"{float(share[:k].sum()):.1%}" for k in steps],
        }
    )
    return [_facts(f"{path}: a basis", facts), table(rows)]


def _checkpoint(
    path: Path, metadata: dict[str, str], shapes: dict[str, Any]
) -> list[RenderableType]:
    settings, position = (json.loads(metadata[key]) for key in ("settings", "position"))
    n_tokens, n_sequences = next(iter(json.loads(metadata["counts"]).values()))
    facts = {
        **settings,
        "package": metadata["package_version"],
        "batches done": position["n_batches"],
        "tokens": n_tokens,
        "sequences": n_sequences,
    }
    command = "map" if "score" in settings else "collect"
    return [_facts(f"{path}: a checkpoint of `{command}`", facts)]


def _training(path: Path, metadata: dict[str, str], shapes: dict[str, Any]) -> list[RenderableType]:
    facts = json.loads(metadata["settings"])
    facts |= {"steps done": json.loads(metadata["progress"])["step"]}
    return [_facts(f"{path}: a checkpoint of `optimize_basis`", facts)]


def _map(path: Path, metadata: dict[str, str], shapes: dict[str, Any]) -> list[RenderableType]:
    from tl_weighted_pca.cli.map import ranks_table
    from tl_weighted_pca.model_map.dimensions import DimensionMap

    found = DimensionMap.load(path)
    some = next(iter(found.values()))
    facts = {
        "bases": found.names,
        "tolerance": found.tolerance,
        "shares": ", ".join(f"{share:g}" for share in found.shares),
        "unit": some.unit,
        "sequences": len(some.counts),
    }
    return [_facts(f"{path}: a dimension map", facts), ranks_table(found)]


def _dictionary(
    path: Path, metadata: dict[str, str], shapes: dict[str, Any]
) -> list[RenderableType]:
    unfinished = "run" in metadata
    facts = json.loads(metadata["run" if unfinished else "dictionary"])
    facts |= facts.pop("provenance")
    facts |= {"place": json.loads(metadata["place"])} if unfinished else {}
    return [
        _facts(f"{path}: a {'checkpoint of `dictionary`' if unfinished else 'dictionary'}", facts)
    ]


_KINDS = {
    "Collection/1": _moments,
    "Basis/1": _basis,
    "Checkpoint/1": _checkpoint,
    "Training/3": _training,
    "DimensionMap/1": _map,
    "SparseAutoencoder/1": _dictionary,
    "DictionaryCheckpoint/1": _dictionary,
}
"""What tells of a file, by its format mark."""


def _run(folder: Path) -> RenderableType:
    from tl_weighted_pca.runs.manifest import read_manifest

    manifest = read_manifest(folder)
    facts = {
        "command": manifest["command"],
        "in": manifest["folder"],
        "processes": manifest.get("processes"),
        "seed": manifest.get("seed"),
        "model": manifest.get("model"),
        "left out": {name: in_words(c) for name, c in manifest.get("left_out", {}).items()},
        "versions": manifest["versions"],
        "started": manifest.get("started"),
        "finished": manifest.get("finished") or "no: it is still going on, or was cut short",
        "read": list(manifest["inputs"]),
        "wrote": list(manifest["outputs"]),
    }
    return _facts(f"{folder}: a run", facts)


def _facts(title: str, facts: dict[str, Any]) -> Group:
    """Names and what they are, without those that are not."""
    shown = Table(show_header=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in (None, "", [], {}):
            shown.add_row(name.replace("_", " "), _words(value))
    return Group(Text(title, style="bold"), shown)


def _words(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, dict):
        value = [f"{k} {v}" for k, v in value.items()]
    if isinstance(value, list):
        return escape("\n".join(map(str, value)))
    return escape(str(value))
