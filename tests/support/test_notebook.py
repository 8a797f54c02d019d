"""What notebooks show: the numbers are those of the result, and nothing in it can break out."""

import re

import pytest
import torch

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


def test_factored_matrices_and_their_svd_show_the_spectrum():
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(2, *shape, generator=generator) for shape in ((7, 3), (3, 5)))
    M = wpca.FactoredMatrix(A, B)
    S = torch.linalg.svdvals(A @ B)[:, :3].double()
    ratio = (S.square().sum(1) ** 2 / S.pow(4).sum(1)).mean()
    for shown in (M._repr_html_(), M.svd()._repr_html_()):
        assert f"{float(S[:, 0].mean()):.4g}" in shown and f"{float(S[:, 2].mean()):.4g}" in shown
        assert f">{float(ratio):.1f}<" in shown and "2 × 7 × 5" in shown
        (points,) = re.findall('points="([^"]*)"', shown)
        assert len(points.split()) == 3
    assert repr(M.svd()) == "SVD(U=[2, 7, 3], S=[2, 3], V_T=[2, 3, 5])"
    assert "<svg" not in wpca.FactoredMatrix(A[:, :0], B)._repr_html_()


def test_n_components_cuts_each_basis(stats):
    m = stats[HOOK]
    makers = (wpca.pca, wpca.weighted_pca, wpca.gradient_pca, wpca.metric_pca, wpca.random_basis)
    for make in makers:
        whole, cut = make(m), make(m, n_components=5)
        assert len(whole) == 64 and len(cut) == 5
        assert cut.encoder.equal(whole.truncate(5).encoder) and cut.total.equal(whole.total)
    with pytest.raises(ValueError, match=r"Rank 65 is outside 0\.\.64"):
        wpca.pca(m, 65)


def test_everything_prints_in_one_line(best_model, tokens, stats):
    m = stats[HOOK]
    basis = wpca.pca(m)
    pairs = next(iter(wpca.stream_pairs(best_model, tokens, HOOK)))[HOOK]
    curves = wpca.ablation_curves(best_model, tokens, basis, ranks=[64], progress=False)
    things = [stats, m, m.activation, basis, curves, pairs, wpca.fisher_metric(m), m.provenance]
    things += [wpca.svd(best_model.OV), wpca.FactoredMatrix(best_model.OV)]
    for thing in things:
        assert "\n" not in repr(thing) and len(repr(thing)) < 300
    assert repr(m.activation) == f"SecondMoment(of vectors [64], weight {m.n_tokens})"
