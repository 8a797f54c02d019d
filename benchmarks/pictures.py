"""The pictures of docs/plots.md, and of the pages on the ansatz and on interactions.

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
from tl_weighted_pca.toy import HookedMLP, modular_addition, train

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


def ansatz() -> Figure:
    stories = wpca.embedded.stories("heldout", 100)
    found = wpca.feature_ansatz(
        model(),
        stories,
        objective={"the loss": wpca.next_token_loss},
        batch_size=50,
        progress=False,
    )
    return found.plot(columns=3)


def interactions() -> Figure:
    """The network of benchmarks/interaction.py that adds modulo 31, first seed."""
    inputs, labels = modular_addition(31)
    network = HookedMLP([62, 48, 96, 31])
    train(network, inputs, labels, steps=1500, weight_decay=0.5)
    names = ["layers.1.hook_in", "layers.2.hook_in", "layers.2.hook_pre"]
    options = {"batch_size": len(inputs), "progress": False}
    bases = wpca.local_interaction_basis(network, inputs, names, **options)
    graph = wpca.interaction_edges(network, inputs, bases, threshold=1e-9, **options)
    labels_shown = ["before layer 2", "before layer 3", "output"]
    return graph.plot(labels=labels_shown, title="addition modulo 31")


PICTURES: dict[str, Callable[[], Figure]] = {
    "eigenvalues": lambda: plots.eigenvalue_spectra(methods()),
    "eigenvalues-layers": lambda: plots.eigenvalue_spectra(layers()),
    "overlap-pair": lambda: plots.basis_overlap(methods()["PCA"], methods()["metric PCA"]),
    "overlap-layers": lambda: plots.basis_overlap(layers()),
    "singular-values": lambda: plots.singular_value_spectra(
        wpca.FactoredMatrix(model().OV), columns=2, title="OV circuits of the embedded model"
    ),
    "ablation": lambda: ablation(methods(), STREAM).plot(),
    "ablation-relative": lambda: ablation(methods(), STREAM).plot(relative_to="PCA"),
    "ablation-heads": lambda: ablation(heads(), HEADS).plot(),
    "feature-ansatz": ansatz,
    "interaction-graph": interactions,
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
