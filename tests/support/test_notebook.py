"""What notebooks show: the numbers are those of the result, and nothing in it can break out."""

import re

import pytest

import tl_weighted_pca as wpca
from tl_weighted_pca.support.notebook import sparkline, summary

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def stats(best_model, tokens):
    return wpca.collect(best_model, tokens, HOOK, progress=False)


def test_results_show_their_numbers(best_model, tokens, stats):
    m = stats[HOOK]
    basis = wpca.pca(m)
    curves = wpca.ablation_curves(
        best_model, tokens, {"pca": basis}, ranks=[0, 8, 32], progress=False
    )
    ratio = float(basis.eigenvalues.sum() ** 2 / basis.eigenvalues.square().sum())
    for shown in (basis._repr_html_(), m._repr_html_()):
        assert f"{ratio:.1f}" in shown
        assert shown.count("<polyline") == 1
    assert f"{m.n_tokens} in {m.n_sequences} sequences" in m._repr_html_()
    assert HOOK in stats._repr_html_()
    assert "mean excess of PCA" in curves._repr_html_()
    assert str(curves.area("pca")) in curves._repr_html_()
    assert f"{curves.baseline:.4f}" in curves._repr_html_()


def test_text_is_escaped_and_gaps_are_left_out():
    shown = summary("<b>", {"a<b": "<script>"}, sparkline({"<i>": [1.0, 0.0, -2.0, 100.0]}, '"x"'))
    assert not re.search("<script|<b>|<i>", shown)
    (points,) = re.findall('points="([^"]*)"', shown)
    assert len(points.split()) == 2
    assert sparkline({"nothing": [0.0]}, "") == ""


def test_a_basis_is_cut_as_a_list_is(stats):
    basis = wpca.pca(stats[HOOK])
    assert len(basis) == basis.n_components == 64
    assert len(basis[:16]) == 16
    assert basis[:16].decoder.equal(basis.truncate(16).decoder)
    assert len(basis[:-60]) == 4 and len(basis[:100]) == 64
    assert not len(basis[:0]) and basis[:0]
    for wrong in (3, slice(2, 4), slice(None, None, 2)):
        with pytest.raises(TypeError, match=r"cut as basis\[:k\]"):
            basis[wrong]
    with pytest.raises(TypeError):
        iter(basis)


def test_curves_are_found_by_name(best_model, tokens, stats):
    curves = wpca.ablation_curves(
        best_model, tokens, {"pca": wpca.pca(stats[HOOK])}, ranks=[0, 64], progress=False
    )
    assert curves["pca"] == curves.scores["pca"]
    with pytest.raises(KeyError, match="no curve 'lib'; these curves are of pca"):
        curves["lib"]
