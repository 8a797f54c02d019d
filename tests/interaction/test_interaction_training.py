"""What training brings about: the claims of both papers on networks small enough to train here."""

import math

import pytest
import torch

from tl_weighted_pca import ablation_curves, collect, logit_probe, pca
from tl_weighted_pca.ansatz import feature_ansatz
from tl_weighted_pca.interaction import (
    edge_ablation_curves,
    interaction_edges,
    local_interaction_basis,
)
from tl_weighted_pca.objectives import classification_loss
from tl_weighted_pca.toy import HookedMLP, low_rank_regression, modular_addition, train

pytestmark = pytest.mark.usefixtures("one_thread")


def smallest(steps, scores, most):
    return next(k for i, k in enumerate(steps) if all(s <= most for s in scores[i:]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_on_modular_addition_lib_keeps_the_loss_with_no_more_features_and_fewer_edges(seed):
    inputs, labels = modular_addition(31)
    network = HookedMLP([62, 48, 96, 31], seed=seed)
    loss = train(network, inputs, labels, steps=1000, weight_decay=0.5, seed=seed)
    assert loss < 0.02 < math.log(31)
    names = ["layers.1.hook_in", "layers.2.hook_in", "layers.2.hook_pre"]
    options = {"batch_size": 961}
    lib = local_interaction_basis(network, inputs, names, progress=False, **options)
    stats = collect(network, inputs, names, objective=None, progress=False, **options)
    principal = {name: pca(stats[name]) for name in names}
    score, fewer = classification_loss(labels), []
    for name in names:
        ranks = range(lib[name].width + 1)
        curves = ablation_curves(
            network, inputs, {"LIB": lib[name], "PCA": principal[name]}, name,
            ranks=ranks, score=score, progress=False, **options,
        )  # fmt: skip
        ours, theirs = (smallest(ranks, curves.scores[b], 1.01 * loss) for b in ("LIB", "PCA"))
        assert ours <= theirs
        fewer.append(ours < theirs)
    assert fewer[1]
    graphs = {
        "LIB": interaction_edges(network, inputs, lib, threshold=1e-9, **options),
        "PCA": interaction_edges(network, inputs, principal, threshold=1e-9, **options),
    }
    for pair in graphs["LIB"].edges:
        most = max(graph.edges[pair].numel() for graph in graphs.values())
        counts = sorted({round(most ** (i / 20)) for i in range(21)})
        curves = edge_ablation_curves(
            network, inputs, graphs, pair, n_edges=counts, score=score, **options
        )
        ours, theirs = (smallest(counts, curves.scores[b], 1.01 * loss) for b in ("LIB", "PCA"))
        assert ours < 0.6 * theirs
        assert graphs["LIB"].n_edges(0.95)[pair] < graphs["PCA"].n_edges(0.95)[pair]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_training_makes_the_ansatz_appear_though_not_the_tight_frame(seed):
    x, y = low_rank_regression(seed=seed)
    fresh = torch.randn(1000, 32, generator=torch.Generator().manual_seed(seed + 100))
    network, tables = HookedMLP([32, 128, 128, 1], scale=0.5, seed=seed), []

    def measure(step):
        found = feature_ansatz(
            network, fresh, objective=logit_probe(), batch_size=1000, progress=False
        )
        tables.append(found.to_pandas().set_index("name"))

    loss = train(
        network, x, y, steps=500, batch_size=200, learning_rate=3e-3, weight_decay=0.1,
        seed=seed, at=[0, 500], then=measure,
    )  # fmt: skip
    assert loss < 0.02
    start, end = tables
    for name in ("layers.0.W", "layers.1.W"):
        before, after = start.loc[name], end.loc[name]
        assert after.cosine > before.cosine + 0.15
        assert after.cosine > 1.5 * max(after.identity, after.rotated)
        assert before.cosine < 1.6 * before.identity
        assert after.cosine > after.replaced
        assert after.tight_before < 0.1
