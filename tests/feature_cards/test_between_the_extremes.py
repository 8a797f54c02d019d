"""Contexts by quantile, neighbours and the view by prompt: each against all tokens at once, by hand."""

import json
import math
from statistics import median

import pytest
import torch
from fancy_einsum import einsum
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.feature_cards.direct_logits import direct_logits
from tl_weighted_pca.feature_cards.histogram import HistogramSums
from tl_weighted_pca.feature_cards.neighbours import CrossSums
from tl_weighted_pca.feature_cards.token_sample import AROUND, TokenSample
from tl_weighted_pca.support.randomness import uniform

HOOK = "blocks.2.hook_resid_post"
OTHER = "blocks.1.hook_resid_post"
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def moments(best_model, heldout):
    return wpca.collect(best_model, heldout, [HOOK, OTHER], batch_size=32, **QUIET)


@pytest.fixture(scope="module")
def made(best_model, heldout, moments):
    """Cards of an oblique basis, compared with PCA of the layer before."""
    return wpca.cards(
        best_model, heldout, wpca.metric_pca(moments[HOOK]), 5, compare=wpca.pca(moments[OTHER]),
        prompts=[heldout[0]["text"]], contexts=2, positions=slice(1, -1), batch_size=32,
        ablation_tokens=500, **QUIET,
    )  # fmt: skip


def all_coordinates(model, rows, basis, hook_point):
    """z of each row at all components, in float64, by TransformerLens alone."""
    found = []
    for row in rows:
        _, cache = model.run_with_cache(torch.tensor([row]))
        found.append((cache[hook_point][0].detach().double() - basis.center) @ basis.encoder)
    return found


@pytest.fixture(scope="module")
def zs(best_model, heldout, moments):
    return all_coordinates(best_model, heldout["input_ids"], wpca.metric_pca(moments[HOOK]), HOOK)


def test_quantile_contexts_are_those_of_all_tokens_at_once(best_model, heldout, made, zs):
    """Every counted token, its random number, the 2,048 lowest; of these, the first five of a group."""
    rows = heldout["input_ids"]
    places = [(s, p) for s, row in enumerate(rows) for p in range(1, len(row) - 1)]
    at = torch.tensor(places)
    order = uniform(0, at[:, 0], at[:, 1]).argsort(stable=True)[:2048].tolist()
    sample = [places[t] for t in order]
    for i, card in enumerate(made):
        every = torch.tensor([float(zs[s][p, i]) for s, p in places], dtype=torch.float64)
        bin_width = float(card.histogram.edges[1] - card.histogram.edges[0])
        assert len(card.quantiles) == 10
        assert sum(group.share for group in card.quantiles) == pytest.approx(1)
        for g, group in enumerate(card.quantiles):  # the highest tenth first
            # Between the order statistics around the quantile, down to the edge of a bin.
            for bound, q in ((group.low, (9 - g) / 10), (group.high, (10 - g) / 10)):
                below = every.quantile(q, interpolation="lower") - bin_width
                above = every.quantile(q, interpolation="higher")
                assert float(below) - 1e-4 <= bound <= float(above) + 1e-4
            inside = (every >= group.low) & (every < group.high)
            assert group.share == pytest.approx(float(inside.double().mean()), abs=2e-3)
            last = group.high if g else math.inf
            chosen = [(s, p) for s, p in sample if group.low - (g == 9) <= zs[s][p, i] < last][:5]
            chosen.sort(key=lambda at, i=i: -float(zs[at[0]][at[1], i]))
            assert [(c.sequence, c.position) for c in group.contexts] == chosen
            for context in group.contexts:
                row = rows[context.sequence]
                start = max(0, context.position - AROUND)
                stop = min(len(row), context.position + AROUND + 1)
                shown = best_model.tokenizer.batch_decode([[t] for t in row[start:stop]])
                assert context.tokens == shown
                assert context.token == shown[context.position - start]
                expected = [
                    float(zs[context.sequence][p, i]) if 1 <= p < len(row) - 1 else math.nan
                    for p in range(start, stop)
                ]
                assert context.coordinates == pytest.approx(
                    expected, rel=1e-3, abs=1e-3, nan_ok=True
                )


def test_the_same_contexts_whatever_the_batches_and_the_padding(best_model, heldout, moments):
    rows = heldout["input_ids"][:12]
    longest = max(map(len, rows))
    left = {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        ),
    }
    basis = wpca.pca(moments[HOOK])
    many = [
        wpca.cards(best_model, data, basis, 3, score=None, batch_size=size, **QUIET)
        for data, size in (([torch.tensor([row]) for row in rows], 1), ([left], 12))
    ]
    for a, b in zip(*many, strict=True):
        for mine, theirs in zip(a.quantiles, b.quantiles, strict=True):
            assert [(c.sequence, c.position, c.tokens) for c in mine.contexts] == [
                (c.sequence, c.position, c.tokens) for c in theirs.contexts
            ]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_sample_is_the_lowest_numbers_of_all(data):
    """However the stream is cut, and whichever positions count."""
    n, length, size = (data.draw(st.integers(1, top)) for top in (8, 6, 10))
    counted = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length),
                           min_size=n, max_size=n))
    )  # fmt: skip
    z = torch.randn(n, length, 1, generator=torch.Generator().manual_seed(1))
    z = z.round()  # with ties
    tokens = torch.arange(n * length).view(n, length)
    sample, sums = TokenSample(3, size), HistogramSums(1)
    order = torch.tensor(data.draw(st.permutations(range(n))))
    for rows in order.split(data.draw(st.integers(1, 4))):
        sample.add(Batch(tokens[rows], None, rows), z[rows], counted[rows])
        sums.add(z[rows][counted[rows]])
    if not bool(counted.any()):
        return
    places = counted.nonzero()
    first = places[uniform(3, places[:, 0], places[:, 1]).argsort(stable=True)[:size]].tolist()
    groups = sample.by_quantile(0, sums.result()[0], 4, size)
    found = [(w.sequence, w.position) for *_, windows in groups for w in windows]
    assert sorted(found) == sorted(map(tuple, first))
    assert len(set(found)) == len(found)
    for low, high, _, windows in groups:
        for window in windows:
            assert low <= window.coordinate <= high
            assert window.token_ids[window.focus] == window.sequence * length + window.position


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99), st.data())
def test_correlations_are_numpys(tokens, n, m, seed, data):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, n, generator=generator, dtype=torch.float64) + 100
    others = torch.randn(tokens, m, generator=generator, dtype=torch.float64)
    others[:, 0] = 7.0  # constant
    sums = CrossSums(n, m)
    for rows in torch.arange(tokens).split(data.draw(st.integers(1, tokens))):
        sums.add(z[rows], others[rows])
    found = sums.correlations()
    assert bool((found[:, 0].abs() < 1e-3).all())
    if tokens > 2 and m > 1:
        expected = torch.corrcoef(torch.cat([z, others[:, 1:]], 1).T)[:n, n:]
        assert torch.allclose(found[:, 1:], expected.reshape(n, m - 1), atol=1e-6)


def test_neighbours_are_the_nearest_of_all(best_model, heldout, made, moments, zs):
    """Within the basis and in PCA of another layer: correlations over all tokens, cosines of decoders."""
    rows = heldout["input_ids"]
    pca = wpca.pca(moments[OTHER])
    there = all_coordinates(best_model, rows, pca, OTHER)
    mine, theirs = (torch.cat([z[1:-1] for z in each]) for each in (zs, there))
    basis = wpca.metric_pca(moments[HOOK])
    k = mine.shape[1]
    assert made.compared == f"pca at {OTHER}"
    for name, other, columns in (("", basis, mine), (made.compared, pca, theirs)):
        r = torch.corrcoef(torch.cat([mine, columns], 1).T)[:k, k:]
        cosine = einsum(
            "n d, m d -> n m",
            basis.decoder / basis.decoder.norm(dim=1, keepdim=True),
            other.decoder / other.decoder.norm(dim=1, keepdim=True),
        )
        for i, card in enumerate(made):
            found = {each.component: each for each in card.nearest if each.basis == name}
            expected: list[int] = []
            for measure in (r, cosine):
                order = measure[i].abs().argsort(descending=True).tolist()
                near = [j for j in order if name or j != i][:3]
                expected += [j for j in near if measure[i, j].abs() >= 0.005]
            assert set(found) == set(expected)
            for j, each in found.items():
                assert each.correlation == pytest.approx(float(r[i, j]), abs=1e-4)
                assert each.cosine == pytest.approx(float(cosine[i, j]), abs=1e-9)


def test_neighbours_of_a_basis_per_head_are_of_every_head(best_model, heldout):
    hook_point = "blocks.1.attn.hook_z"
    few = heldout.select(range(20))
    stats = wpca.collect(best_model, few, hook_point, per_head=True, **QUIET)
    basis = wpca.pca(stats[hook_point])
    made = wpca.cards(best_model, few, basis, 4, score=None, **QUIET)
    z = []
    for row in few["input_ids"]:
        _, cache = best_model.run_with_cache(torch.tensor([row]))
        z.append(basis.encode(cache[hook_point][0].detach().double()))
    every = torch.cat(z)
    for card in made:
        mine = every[:, card.head, card.component]
        for other in card.nearest:
            theirs = every[:, other.head, other.component]
            expected = float(torch.corrcoef(torch.stack([mine, theirs]))[0, 1])
            assert other.correlation == pytest.approx(expected, abs=1e-4)
            assert (other.head, other.component) != (card.head, card.component)
        assert any(other.head != card.head for other in card.nearest)


def test_spaces_of_other_widths_have_correlations_and_no_cosines(best_model, heldout, moments):
    few = heldout.select(range(8))
    neurons = "blocks.1.mlp.hook_post"
    stats = wpca.collect(best_model, few, neurons, statistics=["activation"], **QUIET)
    made = wpca.cards(
        best_model, few, wpca.pca(moments[HOOK]), 2, compare=wpca.pca(stats[neurons]), score=None,
        **QUIET,
    )  # fmt: skip
    across = [each for card in made for each in card.nearest if each.basis]
    assert across
    assert all(each.cosine is None for each in across)


def test_histograms_of_direct_logits_are_those_of_the_vocabulary(best_model, made):
    logits = direct_logits(best_model, HOOK, made.components.basis.decoder)
    for card, row in zip(made, logits, strict=True):
        histogram = card.direct_logits.histogram
        assert int(histogram.counts.sum()) == best_model.cfg.d_vocab
        index = torch.bucketize(row, histogram.edges, right=True) - 1
        expected = torch.bincount(index, minlength=len(histogram.counts))
        assert torch.equal(expected, histogram.counts)
        assert histogram.std == pytest.approx(float(row.std(correction=0)), rel=1e-6)


def test_memory_of_the_sample_is_flat():
    def held(n_batches):
        sample = TokenSample(0, 30)
        for number in range(n_batches):
            index = torch.tensor([2 * number, 2 * number + 1])
            z = torch.randn(2, 50, 3)
            sample.add(Batch(torch.ones(2, 50).long(), None, index), z, torch.ones(2, 50).bool())
        return [value.shape for value in vars(sample).values() if isinstance(value, torch.Tensor)]

    assert held(100) == held(3)


def centred(logits):
    return logits - logits.mean(-1, keepdim=True)


@pytest.mark.parametrize(("token", "outliers"), [(None, None), (" the", 1.35), (7, None)])
def test_a_prompt_is_that_of_hooks_by_hand(model, heldout, moments, token, outliers):
    """Coordinates from the cache, effects from a hook of TransformerLens's own."""
    basis = wpca.metric_pca(moments[HOOK])
    few = heldout.select(range(6))
    made = wpca.cards(
        model, few, basis, 3, positions=slice(1, None), outliers=outliers, score=None, anywhere=True,
        **QUIET,
    )  # fmt: skip
    text = heldout[7]["text"]
    view = made.prompt(model, text, token=token)
    tokens = model.to_tokens(text).cpu()
    logits, cache = model.run_with_cache(tokens)
    z = (cache[HOOK][0].detach().double() - basis.center) @ basis.encoder[:, :3]
    norms = cache[HOOK][0].detach().double().norm(dim=-1)
    counts = norms <= (outliers or math.inf) * norms.median()
    assert bool(counts[1:].all()) == (outliers is None)
    counts[0] = False
    assert bool(view.coordinates[~counts].isnan().all())
    assert torch.allclose(view.coordinates[counts], z[counts].cpu(), atol=1e-3)
    last = int(logits[0, -1].argmax())
    ids = [*tokens[0, 1:].tolist(), last]
    if token is not None:
        one = token if isinstance(token, int) else model.tokenizer.get_vocab()[" the"]
        ids = [one] * len(ids)
    assert view.targets == model.tokenizer.batch_decode([[each] for each in ids])
    at = torch.arange(len(ids)), torch.tensor(ids)
    plain = centred(logits[0].detach().double())[at]
    assert torch.allclose(view.logits, plain, atol=1e-3)
    for i in range(3):

        def remove(f, hook, i=i):
            part = (f - basis.center.float()) @ basis.encoder[:, i].float()
            return f - (counts * part)[..., None] * basis.decoder[i].float()

        with torch.no_grad():
            without = model.run_with_hooks(tokens, fwd_hooks=[(HOOK, remove)])
        effect = plain - centred(without[0].double())[at]
        assert torch.allclose(view.effects[:, i], effect, atol=2e-3)
    strongest = view.strongest(4, 3)
    sizes = [abs(value) / float(view.deviations[i]) for i, value in strongest]
    assert sizes == sorted(sizes, reverse=True)
    table = view.to_pandas()
    assert len(table) == 3 * len(ids)
    assert set(table["component"]) == {"0", "1", "2"}
    assert "srcdoc" in view._repr_html_()


def test_what_is_no_prompt_is_refused(best_model, made):
    for text in (torch.zeros(0).long(), torch.rand(3), "", " \n"):
        with pytest.raises(ValueError, match="expected a text, or its token ids"):
            made.prompt(best_model, text)
    with pytest.raises(ValueError, match="is 2 tokens for this tokenizer; expected one"):
        made.prompt(best_model, "The", token=" the the")
    with pytest.raises(ValueError, match="the model's vocabulary is 0.."):
        made.prompt(best_model, "The", token=10**6)


def test_a_prompt_longer_than_the_context_is_not_cut(model, heldout, moments, made):
    """Nor is it found out after the passes over the data: there are none here."""
    most = model.cfg.n_ctx
    fits = " the" * (most - 1)  # and a BOS
    assert len(made.prompt(model, fits).tokens) == most
    for ask in (
        lambda text: made.prompt(model, text),
        lambda text: wpca.cards(model, [], wpca.pca(moments[HOOK]), prompts=["The", text], **QUIET),
    ):
        with pytest.raises(ValueError, match=f"{most + 1} tokens.* at most {most}: shorten it"):
            ask(fits + " the")


def test_json_holds_what_the_cards_hold(made):
    read = json.loads(made.to_json())
    assert read["schema"] == "tl_weighted_pca.FeatureCards/1"
    assert (read["hook_point"], read["compared"]) == (HOOK, made.compared)
    assert read["score"]["unablated"] == pytest.approx(made.ablations.baseline)
    assert len(read["components"]) == 5
    for card, one in zip(made, read["components"], strict=True):
        assert {"quantiles", "nearest", "direct_logits"} <= set(one)
        assert one["cost"]["value"] == pytest.approx(float(card.cost))
        assert [each["token"] for each in one["direct_logits"]["promoted"]] == [
            token for token, _ in card.promoted
        ]
        assert sum(one["direct_logits"]["histogram"]["counts"]) > 100
        for group, mine in zip(one["quantiles"], card.quantiles, strict=True):
            assert [c["tokens"] for c in group["contexts"]] == [c.tokens for c in mine.contexts]
        assert [each["correlation"] for each in one["nearest"]] == [
            each.correlation for each in card.nearest
        ]
        first = one["highest"][0]
        assert first["tokens"][first["focus"]] == card.highest[0].token
    assert len(read["prompts"][0]["effects"]) == len(read["prompts"][0]["tokens"])
    assert read["prompts"][0]["coordinates"][0] == [None] * 5  # where z does not count


def test_json_has_the_same_keys_where_there_is_nothing(best_model, heldout):
    """No map to the stream, no ablation, one sequence."""
    few = heldout.select(range(1))
    stats = wpca.collect(
        best_model, few, "blocks.1.mlp.hook_pre", statistics=["activation"], **QUIET
    )
    basis = wpca.pca(stats["blocks.1.mlp.hook_pre"])
    made = wpca.cards(best_model, few, basis, 2, score=None, **QUIET)
    one = json.loads(made.to_json())["components"][0]
    assert one["direct_logits"] is one["cost"] is None
    assert one["quantiles"]


def test_facts_stand_out_only_beside_the_others(best_model, moments):
    """By hand: p, and twice the median of the other cards."""
    made = wpca.cards(
        best_model, embedded.stories("heldout", 120), wpca.pca(moments[HOOK]), 8, contexts=1,
        facts=["who", "place", "wish"], score=None, batch_size=32, **QUIET,
    )  # fmt: skip
    n_told = n_apart = 0
    for card in made:
        apart = made.distinctive(card)
        for score in card.facts:
            others = [
                s.beyond_chance
                for other in made
                if other is not card
                for s in other.facts
                if (s.fact, s.where) == (score.fact, score.where)
            ]
            is_apart = score.p_value <= 0.05 and score.beyond_chance >= 2 * max(0, median(others))
            assert made.tells_apart(card, score) == is_apart
            assert is_apart == (score in apart) or score.fact in {s.fact for s in apart}
            n_told += score.p_value <= 0.05
            n_apart += is_apart
    assert 0 < n_apart < n_told / 2  # most of what is told is told by most components
