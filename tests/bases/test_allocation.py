"""Ranks across hook points: against brute force over all allocations, and what is refused."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tl_weighted_pca as wpca
from tl_weighted_pca.moments.second_moment import Provenance


def basis_of(eigenvalues, method="metric_pca(fisher)", total=None):
    """A basis with these eigenvalues; what it spans does not matter here."""
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    eye = torch.eye(len(values), dtype=torch.float64)
    total = values.sum() if total is None else torch.tensor(total, dtype=torch.float64)
    zero = torch.zeros(len(values), dtype=torch.float64)
    made = Provenance(objective="sampled_token_loss(n_samples=1, seed=0)")
    return wpca.Basis(eye, eye, zero, values, total, method, made)


def predicted(bases, ranks):
    """Σ_s ½ Σ_{i>k_s} Λ_si, written out."""
    return sum(0.5 * sum(bases[s].eigenvalues.tolist()[k:]) for s, k in ranks.items())


spectra = st.lists(
    st.lists(st.floats(0, 10), min_size=1, max_size=4).map(lambda x: sorted(x, reverse=True)),
    min_size=1,
    max_size=3,
)


@given(spectra, st.data())
def test_no_allocation_of_that_total_loses_less(values, data):
    bases = {f"place {i}": basis_of(one) for i, one in enumerate(values)}
    total = data.draw(st.integers(0, sum(map(len, values))))
    ranks = wpca.allocate_ranks(bases, total=total)
    assert sum(ranks.values()) == total
    every = itertools.product(*(range(len(one) + 1) for one in values))
    best = min(
        predicted(bases, dict(zip(bases, ks, strict=True))) for ks in every if sum(ks) == total
    )
    assert predicted(bases, ranks) == pytest.approx(best, rel=1e-12, abs=1e-12)


@given(spectra, st.floats(0, 40))
def test_no_smaller_total_predicts_as_little(values, limit):
    bases = {f"place {i}": basis_of(one) for i, one in enumerate(values)}
    ranks = wpca.allocate_ranks(bases, predicted=limit)
    slack = 1e-9 * (1 + sum(map(sum, values)))
    assert predicted(bases, ranks) <= limit + slack
    total = sum(ranks.values())
    if total:
        fewer = wpca.allocate_ranks(bases, total=total - 1)
        assert predicted(bases, fewer) > limit - slack


def test_what_was_truncated_away_is_lost():
    bases = {"a": basis_of([4.0, 2.0], total=8.0), "b": basis_of([3.0, 1.0])}
    assert wpca.allocate_ranks(bases, predicted=1.0) == {"a": 2, "b": 2}
    with pytest.raises(ValueError, match="with all 4 components the prediction is 1 nats"):
        wpca.allocate_ranks(bases, predicted=0.9)


def test_the_model_keeps_what_is_allocated(best_model, tokens, heldout):
    """From moments to ranks to an ablation of all hook points together."""
    places = [f"blocks.{i}.hook_mlp_out" for i in range(3)]
    stats = wpca.collect(
        best_model, heldout, places, objective=wpca.sampled_token_loss(), progress=False
    )
    bases = {place: wpca.metric_pca(stats[place]) for place in places}
    ranks = wpca.allocate_ranks(bases, total=60)
    curves = wpca.ablation_curves(
        best_model, tokens, {"fisher": bases}, ranks=[ranks], progress=False
    )
    assert curves.kept == [ranks] and curves.ranks == [60]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bases": {}}, "No bases were given"),
        ({"total": None}, "Pass either total=, a number of components, or predicted=, a loss"),
        ({"predicted": 1.0}, "Pass either total="),
        ({"total": 5}, "total is 5; expected at most 4"),
        ({"total": -1}, "total is -1; expected at least 0"),
        ({"total": 0.5}, "total is 0.5; expected a whole number"),
        ({"bases": {"a": basis_of([2.0, 1.0], "pca")}}, r"'a' \(pca\) are not in nats"),
        ({"bases": {"a": basis_of([1.0], "metric_pca(path)")}}, "are not in nats"),
        ({"bases": {"a": basis_of([1.0], "metric_pca(0.3*fisher)")}}, "are not in nats"),
        ({"bases": {"a": basis_of([1.0], "metric_pca(fisher, weighted)")}}, "are not in nats"),
        ({"bases": {"a": basis_of([1.0], "metric_pca(fisher, damping=0.1)")}}, "are not in nats"),
    ],
)
def test_what_is_refused(change, message):
    options = {"bases": {"a": basis_of([2.0, 1.0]), "b": basis_of([3.0, 0.0])}, "total": 2} | change
    with pytest.raises(ValueError, match=message):
        wpca.allocate_ranks(**options)


def test_no_dict_and_heads_are_refused(best_model, tokens):
    with pytest.raises(TypeError, match="expected a dict from hook points to Basis"):
        wpca.allocate_ranks([basis_of([1.0])], total=1)
    place = "blocks.1.attn.hook_z"
    heads = wpca.collect(
        best_model, tokens, place, objective=wpca.sampled_token_loss(), per_head=True,
        progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="is per head and keeps as many components in every head"):
        wpca.allocate_ranks({place: wpca.metric_pca(heads[place])}, total=4)
