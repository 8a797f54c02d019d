"""What the documents claim of the bases, on the embedded model of stories with slips, in small."""

from statistics import fmean

import pytest

import tl_weighted_pca as wpca

RESIDUAL = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def relative():
    """The excess loss relative to PCA's over d/8 to 7d/8, by basis, at each residual hook point."""
    model = wpca.embedded.load_model(slips=True, device="cpu")
    train = wpca.embedded.stories("train", 300, slips=True)
    heldout = wpca.embedded.stories("heldout", 150, slips=True)
    options = {"batch_size": 32, "progress": False}
    labels = wpca.sampled_token_loss(2)
    stats = wpca.collect(model, train, RESIDUAL, objective=labels, **options)
    found: dict[str, list[float]] = {}
    for hook_point in RESIDUAL:
        m = stats[hook_point]
        stream = wpca.stream_pairs(model, train, hook_point, objective=labels, batch_size=32)
        bases = {
            "pca": wpca.pca(m),
            "fisher": wpca.metric_pca(m),
            "joint": wpca.joint_pca(m, (p[hook_point] for p in stream), shrinkage=0.5, steps=200),
        }
        ranks = range(8, 57, 8)
        curves = wpca.ablation_curves(model, heldout, bases, hook_point, ranks=ranks, **options)
        for name in bases:
            found.setdefault(name, []).append(float(curves.relative_excess(name)))
    return found


def test_the_fisher_metric_beats_pca_where_no_token_is_certain(relative):
    assert fmean(relative["fisher"]) <= 0.83
    assert max(relative["fisher"]) <= 0.9


def test_the_joint_basis_beats_both(relative):
    assert fmean(relative["joint"]) <= 0.65
    assert max(relative["joint"]) <= 0.9
    assert all(a < b for a, b in zip(relative["joint"], relative["fisher"], strict=True))
