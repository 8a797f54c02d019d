"""The pictures of docs/plots.md, on the embedded model.

python benchmarks/pictures.py                    # writes docs/images/*.png, under a minute
python benchmarks/pictures.py --out some/folder
python benchmarks/pictures.py --only overlap-layers
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

from matplotlib.figure import Figure

import tl_weighted_pca as wpca
from tl_weighted_pca import plots

STREAM = "blocks.2.hook_resid_post"
HEADS = "blocks.0.attn.hook_z"


@cache
def model():
    return wpca.embedded.load_model()


@cache
def stats(*hook_points: str, per_head: bool = False) -> wpca.Collection:
    stories = wpca.embedded.stories("train", 300)
    return wpca.collect(
        model(), stories, hook_points, per_head=per_head, batch_size=64, progress=False
    )


def methods() -> dict[str, wpca.Basis]:
    m = stats(STREAM)[STREAM]
    return {
        "PCA": wpca.pca(m),
        "weighted PCA": wpca.weighted_pca(m),
        "gradient PCA": wpca.gradient_pca(m),
        "metric PCA": wpca.metric_pca(m),
    }


def layers() -> dict[str, wpca.Basis]:
    names = [f"blocks.{i}.hook_resid_post" for i in range(model().cfg.n_layers)]
    names = ["blocks.0.hook_resid_pre", *names]
    return {name: wpca.pca(m) for name, m in stats(*names).items()}


def ablation(bases: dict[str, wpca.Basis], hook_point: str) -> wpca.AblationCurves:
    stories = wpca.embedded.stories("heldout", 100)
    return wpca.ablation_curves(model(), stories, bases, hook_point, batch_size=100, progress=False)


def heads() -> dict[str, wpca.Basis]:
    m = stats(HEADS, per_head=True)[HEADS]
    return {"PCA by head": wpca.pca(m), "random by head": wpca.random_basis(m)}


PICTURES: dict[str, Callable[[], Figure]] = {
    "eigenvalues": lambda: plots.eigenvalue_spectra(methods()),
    "eigenvalues-layers": lambda: plots.eigenvalue_spectra(layers()),
    "overlap-pair": lambda: plots.basis_overlap(methods()["PCA"], methods()["metric PCA"]),
    "overlap-layers": lambda: plots.basis_overlap(layers()),
    "singular-values": lambda: plots.singular_value_spectra(
        wpca.FactoredMatrix(model().OV), columns=2, title="OV circuits of the embedded model"
    ),
    "ablation": lambda: ablation(methods(), STREAM).plot(),
    "ablation-heads": lambda: ablation(heads(), HEADS).plot(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=Path, default=here / "docs" / "images")
    parser.add_argument("--only", choices=PICTURES)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        if arguments.only in (None, name):
            draw().savefig(arguments.out / f"{name}.png", dpi=100)


if __name__ == "__main__":
    main()
