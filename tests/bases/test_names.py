"""What is shown for the keys that users type."""

import pytest

from tl_weighted_pca.bases.names import display_name, display_names


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("pca", "PCA"),
        ("weighted", "weighted PCA"),
        ("gradient", "gradient PCA"),
        ("fisher", "Fisher-metric PCA"),
        ("metric fisher", "Fisher-metric PCA"),
        ("metric loss", "metric PCA, loss"),
        ("path", "path-metric PCA"),
        ("joint", "joint PCA"),
        ("trained", "trained basis"),
        ("random", "random"),
        ("metric_pca(fisher)", "Fisher-metric PCA"),
        ("metric_pca(empirical)", "metric PCA, empirical Fisher"),
        ("optimize_basis", "trained basis"),
        ("path to glory", "path to glory"),
        ("PCA, uncentred", "PCA, uncentred"),
        ("", ""),
    ],
)
def test_a_key_is_shown_as_its_method_and_all_else_as_it_is(typed, shown):
    assert display_name(typed) == shown


def test_keys_that_would_read_alike_stay_as_they_are():
    assert display_names(["pca", "fisher", "metric fisher"]) == {
        "pca": "PCA", "fisher": "fisher", "metric fisher": "metric fisher"
    }  # fmt: skip
    assert display_names(["fisher", "path"]) == {
        "fisher": "Fisher-metric PCA", "path": "path-metric PCA"
    }  # fmt: skip


def test_metrics_are_told_apart():
    kinds = ("metric_pca", "metric_pca(fisher)", "metric_pca(empirical)", "metric_pca(path)")
    assert len({display_name(kind) for kind in kinds}) == 4
