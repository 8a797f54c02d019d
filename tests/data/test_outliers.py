"""Positions of outlying norm: found where they were planted, and left out of every step alike."""

import re
import warnings

import pytest
import torch
from conftest import KINDS
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_weighted_pca as wpca
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.data.positions import outlying
from tl_weighted_pca.fitted.trained import _split

HOOK = "blocks.1.hook_resid_post"
SINKS = [(0, 7), (2, 11), (2, 12), (5, 3)]
QUIET = {"progress": False}


@pytest.fixture
def sunken(model, tokens):
    """The model, with the stream grown a hundredfold at some tokens in the middle of sequences."""

    _, cache = model.run_with_cache(tokens)
    plain = cache[HOOK].detach()

    def grow(f, hook):
        factor = torch.ones(*f.shape[:2], 1)
        for i, row in enumerate(f.detach()):  # told by what it is: a batch may hold any of them
            for s, p in SINKS:
                if torch.allclose(row, plain[s], atol=1e-2):
                    factor[i, p] = 100
        return f * factor

    with model.hooks(fwd_hooks=[(HOOK, grow)]):
        yield model


def by_hand(model, tokens):
    """Activations of all but the sinks, by TransformerLens's own cache."""
    _, cache = model.run_with_cache(tokens)
    f = cache[HOOK].detach()
    kept = torch.ones(f.shape[:2], dtype=torch.bool)
    for s, p in SINKS:
        kept[s, p] = False
    return f, kept


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_moments_are_of_the_other_positions(sunken, tokens, batch_size):
    stats = wpca.collect(sunken, tokens, HOOK, outliers=30, batch_size=batch_size, **QUIET)
    f, kept = by_hand(sunken, tokens)
    assert f[0, 7].norm() > 20 * f[0, 8].norm()
    x = f[kept].double()
    m = stats[HOOK]
    assert m.n_tokens == len(x) == tokens.numel() - len(SINKS)
    assert torch.allclose(m.activation.second, x.T @ x, rtol=1e-4, atol=1e-2)
    expected = {str(p): sum(q == p for _, q in SINKS) for _, p in SINKS}
    assert stats.settings["left_out"] == {HOOK: expected}


def test_gradients_are_of_the_same_positions(sunken, tokens):
    stats = wpca.collect(sunken, tokens, HOOK, outliers=30, **QUIET)
    total = torch.zeros(64, 64, dtype=torch.float64)
    for s, row in enumerate(tokens):
        found = []

        def keep(f, hook, found=found):
            f.requires_grad_().retain_grad()
            found.append(f)
            return f.view_as(f)

        with sunken.hooks(fwd_hooks=[(HOOK, keep)]), torch.enable_grad():
            logits = sunken(row[None])
            torch.nn.functional.cross_entropy(logits[0, :-1], row[1:], reduction="sum").backward()
        g = found[0].grad[0].double()
        kept = [p for p in range(len(row)) if (s, p) not in SINKS]
        total += g[kept].T @ g[kept]
    for parameter in sunken.parameters():
        parameter.grad = None
    assert torch.allclose(stats[HOOK].gradient.second, total, rtol=1e-3, atol=1e-3 * total.max())


def test_ablation_leaves_them_as_they_are(sunken, tokens):
    """Rank 0 by a hook of one's own, the sinks kept."""
    basis = wpca.pca(wpca.collect(sunken, tokens, HOOK, outliers=30, **QUIET)[HOOK])
    curves = wpca.ablation_curves(sunken, tokens, {"pca": basis}, ranks=[0], outliers=30, **QUIET)
    kept = by_hand(sunken, tokens)[1]

    def ablate(f, hook):
        return torch.where(kept[..., None], basis.center.float().expand_as(f), f)

    with torch.no_grad():
        logits = sunken.run_with_hooks(tokens, fwd_hooks=[(HOOK, ablate)])
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert curves["pca"] == [pytest.approx(float(loss), abs=1e-4)]
    assert sum(curves.left_out[HOOK].values()) == len(SINKS)
    without = wpca.ablation_curves(sunken, tokens, {"pca": basis}, ranks=[0], **QUIET)
    assert without["pca"] != pytest.approx(curves["pca"], abs=1e-4)
    assert without.left_out == {}


def test_cards_leave_them_out(sunken, tokens):
    basis = wpca.pca(wpca.collect(sunken, tokens, HOOK, outliers=30, **QUIET)[HOOK])
    options = {"score": None, "contexts": 10, **QUIET}
    plain = wpca.cards(sunken, tokens, basis, 2, **options)
    made = wpca.cards(sunken, tokens, basis, 2, outliers=30, **options)
    assert made.n_tokens == plain.n_tokens - len(SINKS)

    def places(cards):
        return {(c.sequence, c.position) for card in cards for c in card.highest + card.lowest}

    assert places(plain) & set(SINKS)
    assert not places(made) & set(SINKS)
    assert any(note.startswith(f"Outliers: {len(SINKS)} tokens") for note in made.notes)
    curves = wpca.cards(sunken, tokens, basis, 1, outliers=30, contexts=1, **QUIET).ablations
    assert sum(curves.left_out[HOOK].values()) == len(SINKS)


def ablated_gradients(model, tokens, basis, k, kept):
    """Σ g gᵀ at the kept positions, where those are ablated to rank k, with autograd alone."""
    total = torch.zeros(64, 64, dtype=torch.float64)
    for row, counts in zip(tokens, kept, strict=True):
        found = []

        def ablate(f, hook, found=found, counts=counts):
            at = torch.where(counts[None, :, None], basis.project(f.detach(), k), f.detach())
            found.append(at.requires_grad_())
            return at.view_as(at)

        with model.hooks(fwd_hooks=[(HOOK, ablate)]), torch.enable_grad():
            logits = model(row[None])
            torch.nn.functional.cross_entropy(logits[0, :-1], row[1:], reduction="sum").backward()
        g = found[0].grad[0][counts].double()
        total += g.T @ g
    for parameter in model.parameters():
        parameter.grad = None
    return total


def test_the_path_metric_leaves_them_as_they_are(sunken, tokens):
    basis = wpca.pca(wpca.collect(sunken, tokens, HOOK, outliers=30, **QUIET)[HOOK])
    options = {"ranks": [0, 8], "positions": slice(1, None), **QUIET}
    metric = wpca.path_metric(sunken, tokens, HOOK, basis, outliers=30, batch_size=3, **options)
    kept = by_hand(sunken, tokens)[1]
    kept[:, 0] = False
    each = [ablated_gradients(sunken, tokens, basis, k, kept) for k in (0, 8)]
    expected = sum(one / one.trace() for one in each) / 2
    assert torch.allclose(metric.matrix, expected, rtol=1e-3, atol=1e-3 * expected.max())
    without = wpca.path_metric(sunken, tokens, HOOK, basis, **options).matrix
    assert not torch.allclose(without, expected, rtol=1e-3, atol=1e-2 * expected.max())


def test_pairs_are_of_the_other_positions(sunken, tokens):
    f, kept = by_hand(sunken, tokens)
    pairs = [each[HOOK] for each in wpca.stream_pairs(sunken, tokens, HOOK, outliers=30)]
    assert torch.equal(torch.cat([each.mask for each in pairs]), kept)
    rows = torch.cat([each.rows()[0] for each in pairs])
    assert torch.allclose(rows, f[kept], atol=1e-3)


def test_a_prediction_is_of_the_other_positions(sunken, tokens):
    """½ (Σ_s g_s·δ_s)² over the positions that the ablation moves."""
    basis = wpca.pca(wpca.collect(sunken, tokens, HOOK, outliers=30, **QUIET)[HOOK])
    options = {"ranks": [4], "score": "kl", "predicted": True, **QUIET}
    curves = wpca.ablation_curves(sunken, tokens, basis, outliers=30, **options)
    kept, expected = by_hand(sunken, tokens)[1], []
    drawn = wpca.sampled_token_loss()
    for each in wpca.stream_pairs(sunken, tokens, HOOK, objective=drawn):
        pair = each[HOOK]
        moved = pair.activations - basis.project(pair.activations, 4)
        terms = (pair.gradients[0] * moved).sum(-1)
        expected.append((terms * kept[pair.sequence_index]).sum(1).square() / 2)
    (found,) = curves.predicted_per_sequence.values()
    assert torch.allclose(found[0].float(), torch.cat(expected), rtol=1e-3, atol=1e-6)


def test_a_map_leaves_them_out_of_bases_and_ablation(sunken, tokens, tmp_path):
    options = {"shares": [0.0, 0.25], "bases": ["pca"], "positions": slice(1, None), **QUIET}
    found = wpca.dimension_map(sunken, tokens, HOOK, heldout=tokens, outliers=30, **options)
    stats = wpca.collect(
        sunken, tokens, HOOK, objective=None, outliers=30, positions=slice(1, None), **QUIET
    )
    expected = wpca.ablation_curves(
        sunken, tokens, wpca.pca(stats[HOOK]), ranks=[0, 16], outliers=30,
        positions=slice(1, None), **QUIET,
    )  # fmt: skip
    scores = next(iter(expected.scores.values()))
    assert found[HOOK]["pca"] == pytest.approx(scores, abs=1e-4)
    assert found[HOOK].left_out == expected.left_out != {}
    found.save(tmp_path / "map")
    assert wpca.DimensionMap.load(tmp_path / "map")[HOOK].left_out == expected.left_out


def test_counts_go_on_from_a_checkpoint(sunken, tokens, tmp_path):
    options = {"objective": None, "outliers": 30, "batch_size": 2, **QUIET}
    whole = wpca.collect(sunken, tokens, HOOK, **options).settings["left_out"]
    options["checkpoint"] = tmp_path / "checkpoint"
    first = wpca.collect(sunken, tokens[:4], HOOK, **options).settings["left_out"]
    assert sum(first[HOOK].values()) == 3
    assert wpca.collect(sunken, tokens, HOOK, **options).settings["left_out"] == whole


def test_training_leaves_them_as_they_are(sunken, tokens):
    """½ Σ Λ_i is the excess at rank 0 of an ablation that leaves out the same, on what was held out."""
    stats = wpca.collect(sunken, tokens, HOOK, outliers=30, objective=None, **QUIET)
    start = wpca.random_basis(stats[HOOK])
    options = {"steps": 12, "batch_size": 1, "seed": 7, **QUIET}  # holds out two rows with sinks
    trained = wpca.optimize_basis(sunken, tokens, start, outliers=30, **options)
    assert trained.method == "optimize_basis"
    heldout, _ = _split(list(batches(tokens, 1)), 12, 7)
    curves = wpca.ablation_curves(
        sunken, torch.cat([batch.inputs for batch in heldout]), {"trained": trained}, ranks=[0],
        score="kl", outliers=30, **QUIET,
    )  # fmt: skip
    assert curves["trained"] == [pytest.approx(float(trained.eigenvalues.sum()) / 2, rel=1e-3)]
    assert curves.left_out == {HOOK: {"3": 1, "7": 1}}


@pytest.mark.parametrize("kind", KINDS)
def test_training_half_way_down_leaves_them_too(kind, tokens):
    """Sinks of the model's own, at two positions: as if the others had been asked for."""
    model = wpca.embedded.load_model(kind)
    (embedded,) = (p for name, p in model.named_parameters() if re.search(r"W_pos|wpe", name))
    with torch.no_grad():
        embedded[[7, 11]] *= 300
    stats = wpca.collect(model, tokens, HOOK, outliers=15, objective=None, **QUIET)
    assert stats.settings["left_out"][HOOK] == {"7": len(tokens), "11": len(tokens)}
    start, options = wpca.random_basis(stats[HOOK]), {"steps": 6, "batch_size": 2, **QUIET}
    left_out = wpca.optimize_basis(model, tokens, start, outliers=15, **options)
    others = [p for p in range(tokens.shape[1]) if p not in (7, 11)]
    chosen = wpca.optimize_basis(model, tokens, start, positions=others, **options)
    assert left_out.method == "optimize_basis"
    for name in ("encoder", "decoder", "center", "eigenvalues"):
        torch.testing.assert_close(getattr(left_out, name), getattr(chosen, name))


def test_the_first_batch_is_noted(sunken, tokens):
    with pytest.warns(UserWarning, match="4 positions at hook point .* pass outliers=20"):
        wpca.collect(sunken, tokens, HOOK, objective=None, batch_size=10, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wpca.collect(sunken, tokens, HOOK, objective=None, outliers=30, **QUIET)


def test_collections_of_other_outliers_do_not_add(model, tokens):
    a, b = (
        wpca.collect(model, tokens, HOOK, objective=None, outliers=times, **QUIET)
        for times in (None, 30)
    )
    with pytest.raises(ValueError, match="outliers=None and outliers=30.0"):
        a + b


@pytest.mark.parametrize("wrong", [1, 0.5, -3, "many", True, float("nan")])
def test_what_is_no_multiple_is_refused(best_model, tokens, wrong):
    with pytest.raises(ValueError, match="expected a number above 1"):
        wpca.collect(best_model, tokens, HOOK, outliers=wrong, **QUIET)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_it_is_the_median_of_the_sequence_alone(data):
    """By sorting, sequence by sequence: batch and padding change nothing."""
    rows = data.draw(
        st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=7), min_size=1, max_size=5)
    )
    longest, times = max(map(len, rows)), 3.0
    left = data.draw(st.booleans())
    x, mask = torch.full((len(rows), longest, 2), 999.0), torch.zeros(len(rows), longest).bool()
    for i, row in enumerate(rows):
        at = slice(longest - len(row), None) if left else slice(0, len(row))
        x[i, at] = torch.tensor(row).float()[:, None] * torch.tensor([0.6, 0.8])
        mask[i, at] = True
    found = outlying(x, mask, times) & mask
    for i, row in enumerate(rows):
        median = sorted(row)[(len(row) - 1) // 2]
        expected = [value > times * median * (1 + 1e-6) for value in row]
        close = [abs(value - times * median) < 1e-3 for value in row]
        for mine, theirs, near in zip(found[i][mask[i]].tolist(), expected, close, strict=True):
            assert near or mine == theirs
