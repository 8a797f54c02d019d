"""Feature cards: each number on a card against the plain formula it stands for."""

import math
import re

import pytest
import torch
from datasets import Dataset
from formulas import next_token_losses
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.feature_cards.components import Components
from tl_weighted_pca.feature_cards.contexts import Extremes
from tl_weighted_pca.feature_cards.direct_logits import direct_logits
from tl_weighted_pca.feature_cards.facts import FactSums
from tl_weighted_pca.feature_cards.histogram import HistogramSums

HOOK = "blocks.2.hook_resid_post"
QUIET = {"progress": False}


def pca_at(model, data, hook_point, **options):
    stats = wpca.collect(model, data, hook_point, statistics=["activation"], **QUIET, **options)
    return wpca.pca(stats[hook_point])


@pytest.fixture(scope="module")
def basis(best_model, heldout):
    return pca_at(best_model, heldout, HOOK)


def coordinates(model, rows, basis, n, hook_point=HOOK):
    """z of each row, sequence by sequence, in float64, by TransformerLens alone."""
    found = []
    for row in rows:
        _, cache = model.run_with_cache(torch.tensor([row]))
        f = cache[hook_point][0].detach().double()
        found.append((f - basis.center) @ basis.encoder[:, :n])
    return found


def strongest(zs, rows, i, k, sign, first=0):
    """The k strongest (sequence, position): a full sort, each sequence once, no text twice."""
    best = []
    for number, z in enumerate(zs):
        at = int((sign * z[first:, i]).argmax()) + first
        best.append((float(z[at, i]), number, at))
    best.sort(key=lambda each: (-sign * round(each[0], 4), each[1]))
    seen, kept = set(), []
    for value, number, at in best:
        text = tuple(rows[number][: at + 1])
        if text not in seen:
            seen.add(text)
            kept.append((value, number, at))
    return kept[:k]


@pytest.mark.parametrize(("first", "window"), [(0, (24, 8)), (1, (24, 8)), (1, (0, 8))])
def test_contexts_are_those_of_a_full_sort(model, heldout, basis, first, window):
    rows, (before, after) = heldout["input_ids"], window
    made = wpca.cards(
        model, heldout, basis, 4, contexts=5, window=window, score=None, anywhere=True,
        positions=slice(first, None), **QUIET,
    )  # fmt: skip
    zs = coordinates(model, rows, basis, 4)
    for i, card in enumerate(made):
        for sign, contexts in ((1, card.highest), (-1, card.lowest)):
            expected = strongest(zs, rows, i, 5, sign, first)
            assert [c.coordinate for c in contexts] == pytest.approx(
                [value for value, _, _ in expected], rel=1e-4, abs=1e-3
            )
            assert [(c.sequence, c.position) for c in contexts] == [(s, p) for _, s, p in expected]
            for context in contexts:
                start = context.position - context.focus
                stop = start + len(context.tokens)
                assert start == max(0, context.position - before)
                assert stop == min(len(rows[context.sequence]), context.position + after + 1)
                shown = model.tokenizer.batch_decode(
                    [[token] for token in rows[context.sequence][start:stop]]
                )
                assert context.tokens == shown
                counted = [math.nan] * (first - start) if start < first else []
                z = counted + zs[context.sequence][max(start, first) : stop, i].tolist()
                assert context.coordinates == pytest.approx(z, rel=1e-4, abs=1e-3, nan_ok=True)


def test_moments_and_eigenvalues_are_those_of_the_basis(best_model, heldout, basis):
    """On the data that the basis is of, z has mean zero and variance λ, and λ's shares add up."""
    made = wpca.cards(best_model, heldout, basis, 64, contexts=1, score=None, **QUIET)
    for card in made[:20]:
        assert card.histogram.mean == pytest.approx(0, abs=1e-3 * card.histogram.std)
        assert card.histogram.std == pytest.approx(math.sqrt(card.eigenvalue), rel=1e-4)
    assert sum(card.explained_ratio for card in made) == pytest.approx(1)
    assert [b for b in basis.blocks() for _ in b] == [card.block for card in made]
    n_tokens = sum(map(len, heldout["input_ids"]))
    assert made.n_tokens == n_tokens
    assert made.n_sequences == len(heldout)
    assert all(int(card.histogram.counts.sum()) == n_tokens for card in made)


def test_batches_and_padding_change_nothing(model, heldout, basis):
    """One sequence at a time, batches of seven padded right, and padded left: the same cards."""
    rows = heldout["input_ids"][:14]
    longest = max(map(len, rows))
    left = {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        ),
    }
    data = [
        ([torch.tensor([row]) for row in rows], 1),
        (heldout.select(range(14)), 7),
        ([left], 14),
    ]
    many = [
        wpca.cards(
            model, each, basis, 5, contexts=4, batch_size=size, anywhere=True,
            positions=slice(1, -1), **QUIET,
        )
        for each, size in data
    ]  # fmt: skip
    for other in many[1:]:
        assert other.n_tokens == many[0].n_tokens == sum(len(row) - 2 for row in rows)
        for a, b in zip(many[0], other, strict=True):
            assert b.histogram.mean == pytest.approx(a.histogram.mean, abs=1e-3)
            assert b.histogram.std == pytest.approx(a.histogram.std, rel=1e-4)
            for ours, theirs in zip(a.highest + a.lowest, b.highest + b.lowest, strict=True):
                assert (theirs.sequence, theirs.position) == (ours.sequence, ours.position)
                assert theirs.tokens == ours.tokens
                assert theirs.coordinate == pytest.approx(ours.coordinate, rel=1e-3)
            assert b.promoted == a.promoted
            assert float(b.cost) == pytest.approx(float(a.cost), abs=2e-5)


@pytest.mark.parametrize(
    ("hook_point", "per_head"),
    [(HOOK, False), ("blocks.1.mlp.hook_post", False), ("blocks.1.attn.hook_z", False),
     ("blocks.1.attn.hook_z", True)],
)  # fmt: skip
def test_cost_is_that_of_ablating_by_hand(model, tokens, hook_point, per_head):
    """By a hook of TransformerLens's own, the one component subtracted, and nothing else."""
    basis = pca_at(model, tokens, hook_point, per_head=per_head)
    made = wpca.cards(model, tokens, basis, 3, contexts=1, positions=slice(2, None), **QUIET)

    def loss(hooks):
        with torch.no_grad():
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        return float(next_token_losses(logits, tokens).mean())

    for card in made:

        def remove(f, hook, card=card):
            f = f.clone()
            flat = f[:, 2:].flatten(2)
            if per_head:
                flat = f[:, 2:, card.head]
            where = (card.head, ...) if per_head else ...
            e, d = basis.encoder[where][:, card.component], basis.decoder[where][card.component]
            z = (flat - basis.center[where].float()) @ e.float()
            less = flat - z[..., None] * d.float()
            if per_head:
                f[:, 2:, card.head] = less
            else:
                f[:, 2:] = less.reshape(f[:, 2:].shape)
            return f

        rise = loss([(hook_point, remove)]) - loss([])
        assert card.cost == pytest.approx(rise, abs=1e-5)
        assert card.cost.low <= card.cost <= card.cost.high
    assert made.ablations.baseline == pytest.approx(loss([]), abs=1e-5)


def test_ablating_one_is_keeping_all_others(best_model, heldout, basis):
    """The same as rank d − 1 of the basis with that component put last."""
    made = wpca.cards(best_model, heldout, basis, 2, contexts=1, score="kl", **QUIET)
    order = [0, *range(2, 64), 1]
    last = wpca.Basis(
        basis.encoder[:, order], basis.decoder[order], basis.center, basis.eigenvalues, basis.total
    )
    curves = wpca.ablation_curves(
        best_model, heldout, {"last": last}, HOOK, ranks=[63], score="kl", **QUIET
    )
    (expected,) = curves.excess("last")
    assert made[1].cost == pytest.approx(expected, rel=1e-3)
    assert (made[1].cost.low, made[1].cost.high) == pytest.approx(
        (expected.low, expected.high), rel=1e-3
    )


def final_norm(model, x):
    """LN without its bias, written out."""
    weight = model.ln_final.w if hasattr(model.ln_final, "w") else model.ln_final.weight
    x = x - x.mean(-1, keepdim=True)
    return x / x.square().mean(-1, keepdim=True).sqrt() * weight


@pytest.mark.parametrize("hook_point", [HOOK, "blocks.3.hook_mlp_out", "hook_embed"])
def test_promoted_tokens_are_those_of_the_einsum(model, tokens, hook_point):
    basis = pca_at(model, tokens, hook_point)
    made = wpca.cards(model, tokens, basis, 3, contexts=1, n_promoted=6, score=None, **QUIET)
    x = final_norm(model, basis.decoder[:3].float())
    logits = torch.einsum("nd,dv->nv", x, model.W_U).detach()
    logits -= logits.mean(1, keepdim=True)
    for card, row in zip(made, logits, strict=True):
        for sign, shown in ((1, card.promoted), (-1, card.suppressed)):
            order = (sign * row).argsort(descending=True)[:6]
            assert [token for token, _ in shown] == model.tokenizer.batch_decode(order[:, None])
            assert [logit for _, logit in shown] == pytest.approx(row[order].tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("hook_point", "written"),
    [("blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"),
     ("blocks.1.attn.hook_z", "blocks.1.hook_attn_out")],
)  # fmt: skip
def test_neurons_and_heads_are_mapped_to_the_stream(model, tokens, hook_point, written):
    """What a direction writes is asked of the model: add it there, see what changes in the stream."""
    basis = pca_at(model, tokens, hook_point)
    direction = basis.decoder[0].float()

    def add(f, hook):
        return f + direction.reshape(f.shape[2:])

    _, plain = model.run_with_cache(tokens[:1])
    with model.hooks(fwd_hooks=[(hook_point, add)]):
        _, moved = model.run_with_cache(tokens[:1])
    change = (moved[written] - plain[written])[0, 3].detach()
    logits = final_norm(model, change[None]) @ model.W_U
    expected = (logits - logits.mean()).detach().double()
    got = direct_logits(model, hook_point, basis.decoder[:1])
    assert torch.allclose(got, expected, atol=1e-3 * float(expected.abs().max()))


def test_without_a_map_to_the_stream_tokens_are_left_out_and_it_is_said(best_model, tokens):
    basis = pca_at(best_model, tokens, "blocks.1.mlp.hook_pre")
    made = wpca.cards(best_model, tokens, basis, 2, contexts=1, score=None, **QUIET)
    assert made[0].promoted == made[0].suppressed == []
    assert made[0].highest
    assert "No linear map leads from 'blocks.1.mlp.hook_pre'" in made.notes[0]
    assert made.notes[0] in made.to_html().replace("&#39;", "'")


def test_heads_compete_for_cards_by_eigenvalue(best_model, tokens):
    """A basis per head is one of the flat space, whose components touch one head each."""
    hook_point = "blocks.1.attn.hook_z"
    basis = pca_at(best_model, tokens, hook_point, per_head=True)
    made = wpca.cards(best_model, tokens, basis, 7, contexts=1, score=None, **QUIET)
    every = basis.eigenvalues.flatten().sort(descending=True).values[:7]
    assert [card.eigenvalue for card in made] == pytest.approx(every.tolist())
    components = Components.leading(basis, 7)
    _, cache = best_model.run_with_cache(tokens)
    z = basis.encode(cache[hook_point].detach())
    for i, card in enumerate(made):
        assert card.eigenvalue == float(basis.eigenvalues[card.head, card.component])
        assert card.block in basis.blocks()[card.head] and card.component in card.block
        flat = components.coordinates(cache[hook_point].detach())[..., i]
        assert torch.allclose(flat, z[..., card.head, card.component], atol=1e-4)
    assert set(made.to_pandas()["head"]) == {card.head for card in made}


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_streaming_keeps_what_a_full_sort_would(data):
    """With ties, repeated texts, positions that do not count, and batches in any order."""
    n_sequences, length = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    k, before = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 2))
    size = n_sequences * length

    def table(of):
        drawn = data.draw(st.lists(of, min_size=size, max_size=size))
        return torch.tensor(drawn).view(n_sequences, length)

    tokens, z = table(st.integers(0, 2)), table(st.integers(-3, 3)).float()
    counted = table(st.booleans())
    for sign in (1, -1):
        best = {}
        for number in range(n_sequences):
            places = counted[number].nonzero().flatten().tolist()
            if not places:
                continue
            at = min(places, key=lambda each: (-sign * float(z[number, each]), each))
            text = tuple(tokens[number, : at + 1].tolist())
            rank = (-sign * float(z[number, at]), number, at)
            best[text] = min(best.get(text, rank), rank)
        expected = [(number, at) for _, number, at in sorted(best.values())][:k]
        ends = Extremes(1, k, (before, 1), sign)
        order = torch.tensor(data.draw(st.permutations(range(n_sequences))))
        for rows in order.split(data.draw(st.integers(1, 5))):
            ends.add(Batch(tokens[rows], None, rows), z[rows][..., None], counted[rows])
        assert [(each.sequence, each.position) for each in ends.result()[0]] == expected


@pytest.mark.parametrize("window", [(2, 1), (0, 8)])
def test_texts_that_differ_before_the_window_are_two(window):
    """What is shown of the first three is the same, but only the first two are the same text."""
    rows = [[5, 7, 7, 7, 1], [5, 7, 7, 7, 2], [6, 7, 7, 7, 1], [5, 7, 7, 8, 1]]
    left = torch.tensor([[9, *row] for row in rows])  # padded with what does not count
    z = torch.tensor([0.0, 0, 0, 0, 3, 0]).repeat(4, 1)[..., None]
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[:, 0] = False
    ends = Extremes(1, 4, window, 1)
    for row in range(4):
        ends.add(
            Batch(left[row : row + 1], mask[row : row + 1], torch.tensor([row])),
            z[row : row + 1], mask[row : row + 1],
        )  # fmt: skip
    # Without the padding, and counted in other bytes, a text is the same text.
    ends.add(Batch(torch.tensor(rows[:1]).int(), None, torch.tensor([4])), z[:1, 1:], mask[:1, 1:])
    assert [(each.sequence, each.position) for each in ends.result()[0]] == [(0, 3), (2, 3), (3, 3)]


values = st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)


@settings(deadline=None, max_examples=50)
@given(st.lists(values, min_size=1, max_size=60), st.data())
def test_histogram_depends_on_the_values_alone(numbers, data):
    """However the stream is cut, the counts are those of numpy on the same edges."""
    x = torch.tensor(numbers, dtype=torch.float64)[:, None]
    cuts = data.draw(st.lists(st.integers(0, len(numbers)), max_size=4))
    whole, parts = HistogramSums(1), HistogramSums(1)
    whole.add(x)
    for part in torch.tensor_split(x[torch.randperm(len(x))], sorted(cuts)):
        parts.add(part)
    (a,), (b,) = whole.result(), parts.result()
    assert torch.equal(a.edges, b.edges)
    assert torch.equal(a.counts, b.counts)
    index = torch.bucketize(x[:, 0], a.edges, right=True) - 1
    assert torch.equal(torch.bincount(index, minlength=len(a.counts)), a.counts)
    assert len(a.counts) <= 4096
    assert a.mean == pytest.approx(float(x.mean()), rel=1e-9, abs=1e-9)
    assert (a.minimum, a.maximum) == (float(x.min()), float(x.max()))
    shown = a.shown(bins=10)
    assert int(shown.counts.sum()) == len(numbers)
    assert len(shown.counts) <= 10


def test_an_outlier_leaves_the_rest_in_sight():
    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[7] = 900.0
    sums = HistogramSums(1)
    sums.add(x)
    shown = sums.result()[0].shown()
    assert float(shown.edges[-1]) < 5
    assert int((shown.counts > 100).sum()) > 15
    assert shown.counts.sum() == 20_000
    assert sums.result()[0].quantile(0.5) == pytest.approx(0, abs=0.3)


def test_memory_is_flat_in_tokens():
    """A stream twenty times as long leaves as many numbers behind, and so do longer sequences."""

    def held(n_batches, length=50):
        generator = torch.Generator().manual_seed(0)
        sums, ends = HistogramSums(3), Extremes(3, 4, (5, 2), 1)
        for number in range(n_batches):
            z = torch.randn(2, length, 3, generator=generator)
            tokens = torch.randint(100, (2, length), generator=generator)
            index = torch.tensor([2 * number, 2 * number + 1])
            sums.add(z.flatten(0, 1))
            ends.add(Batch(tokens, None, index), z, torch.ones(2, length, dtype=torch.bool))
        kept = [window for windows in ends._kept for window in windows.values()]
        tensors = [value for value in vars(sums).values() if isinstance(value, torch.Tensor)]
        return (
            sum(tensor.numel() for tensor in tensors),
            len(kept),
            max(len(window.token_ids) + len(window.coordinates) for window in kept),
            {len(read) for windows in ends._kept for read in windows},
        )

    assert held(200) == held(10) == held(10, length=400)


def eta_squared(z, labels):
    """Σ_v n_v (z̄_v − z̄)² / Σ (z − z̄)², written out."""
    mean = sum(z) / len(z)
    between = 0.0
    for label in set(labels):
        of = [x for x, other in zip(z, labels, strict=True) if other == label]
        between += len(of) * (sum(of) / len(of) - mean) ** 2
    return between / sum((x - mean) ** 2 for x in z)


def test_facts_that_are_known_are_found():
    """Component 0 is the fact, 1 is the number, 2 is noise; the fact "other" is told by none."""
    generator = torch.Generator().manual_seed(1)
    n = 120
    fact = [("red", "green", "blue")[i % 3] for i in range(n)]
    other = torch.randint(4, (n,), generator=generator).tolist()
    number = torch.randn(n, generator=generator).tolist()
    data = Dataset.from_dict(
        {"fact": fact, "other": [f"o{each}" for each in other], "number": number,
         "flag": [None if i == 5 else i % 2 == 0 for i in range(n)]}
    )  # fmt: skip
    sums = FactSums(data, ["fact", "other", "number", "flag"])
    z = torch.randn(n, 6, 3, generator=generator)
    z[..., 0] *= 0.1
    z[..., 0] += torch.tensor([{"red": -1.0, "green": 0.0, "blue": 1.0}[each] for each in fact])[
        :, None
    ]
    z[..., 1] = torch.tensor(number)[:, None] * 2 - 1
    counted = torch.rand(n, 6, generator=generator) < 0.7
    counted[:, 0] = True
    for start in range(0, n, 50):
        rows = slice(start, start + 50)
        sums.add(torch.arange(n)[rows], z[rows], counted[rows])
    scores = sums.result()
    means = [[float(z[i, counted[i], c].double().mean()) for i in range(n)] for c in range(3)]
    for c, mine in enumerate(scores):
        by_fact = {score.fact: score for score in mine}
        assert set(by_fact) == {"fact", "other", "number", "flag"}
        for name, labels in (("fact", fact), ("other", other)):
            eta, m = eta_squared(means[c], labels), len(set(labels))
            assert by_fact[name].eta_squared == pytest.approx(eta, rel=1e-6)
            expected = (m - 1) / (n - 1)
            beyond = (eta - expected) / (1 - expected)
            assert by_fact[name].beyond_chance == pytest.approx(beyond, rel=1e-6)
            assert expected < by_fact[name].chance < 6 * expected
        assert by_fact["flag"].n_sequences == n - 1
        x, y = torch.tensor(number).double(), torch.tensor(means[c])
        r = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
        assert by_fact["number"].eta_squared == pytest.approx(r * r, rel=1e-5, abs=1e-9)
    assert (scores[0][0].fact, scores[1][0].fact) == ("fact", "number")
    assert scores[1][0].eta_squared == pytest.approx(1)
    assert scores[0][0].p_value == scores[1][0].p_value == pytest.approx(1 / 201)
    assert min(score.p_value for score in scores[2]) > 0.05


def test_a_fact_of_a_single_value_is_not_told():
    """Its η² is rounding, whose deals give a p-value all the same."""
    n = 40
    data = Dataset.from_dict(
        {"same": ["x"] * n, "number": [0.1] * n, "flag": [True] * n, "real": ["a", "b"] * (n // 2)}
    )
    z = torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(0))
    counted = torch.ones(n, 3, dtype=torch.bool)

    def told(names):
        sums = FactSums(data, names)
        sums.add(torch.arange(n), z, counted)
        return sums.result()

    assert [{score.fact for score in card} for card in told(data.column_names)] == [{"real"}] * 2
    assert told(data.column_names) == told(["real"])
    assert told(["same", "number", "flag"]) == [[], []]


def test_chance_is_chance():
    """Where nothing is told, ε² averages zero and p is spread evenly: with 12 facts to choose from."""
    generator = torch.Generator().manual_seed(3)
    n, components = 60, 200
    facts = {f"f{i}": [f"{x}" for x in torch.randint(2 + i, (n,), generator=generator).tolist()]
             for i in range(12)}  # fmt: skip
    sums = FactSums(Dataset.from_dict(facts), list(facts))
    z = torch.randn(n, 1, components, generator=generator)
    sums.add(torch.arange(n), z, torch.ones(n, 1, dtype=torch.bool))
    scores = sums.result()
    every = torch.tensor([score.beyond_chance for card in scores for score in card])
    assert abs(float(every.mean())) < 0.005
    told = sum(min(score.p_value for score in card) <= 0.05 for card in scores) / components
    assert 0.01 < told < 0.11


def test_facts_of_stories_are_told_where_they_are_recalled(best_model, basis):
    """η² at recall by hand, from z at the token before each that follows from the fact."""
    stories = embedded.stories("heldout", 80)
    made = wpca.cards(
        best_model, stories, basis, 3, facts=embedded.FACTS, contexts=1, score=None, anywhere=True,
        **QUIET,
    )  # fmt: skip
    table = made.facts_to_pandas()
    assert set(table["where"]) == {"mean", "recall"}
    zs = coordinates(best_model, stories["input_ids"], basis, 3)
    for i, card in enumerate(made):
        recalled = {score.fact: score for score in card.facts if score.where == "recall"}
        for fact in embedded.FACTS:
            means, labels = [], []
            for z, row in zip(zs, stories, strict=True):
                places = zip(row["fact_positions"], row["fact_kinds"], strict=True)
                at = [position - 1 for position, kind in places if kind == fact]
                if at:
                    means.append(float(z[at, i].mean()))
                    labels.append(row[fact])
            if len(means) < max(8, 2 * len(set(labels))):
                assert fact not in recalled
                continue
            assert recalled[fact].n_sequences == len(means)
            assert recalled[fact].eta_squared == pytest.approx(eta_squared(means, labels), rel=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_moves_no_place_of_recall(best_model, basis, side):
    stories = embedded.stories("heldout", 40)

    def padded(row):
        ids, pads = row["input_ids"], [9] * 3
        ones, zeros = [1] * len(ids), [0] * 3
        left = side == "left"
        return {
            "input_ids": pads + ids if left else ids + pads,
            "attention_mask": zeros + ones if left else ones + zeros,
        }

    options = {"facts": ["who", "place", "object"], "contexts": 1, "score": None, "anywhere": True}
    plain, found = (
        wpca.cards(best_model, data, basis, 2, **options, **QUIET).facts_to_pandas()
        for data in (stories, stories.map(padded))
    )
    columns = ["fact", "where", "n_sequences"]
    assert plain[columns].equals(found[columns]) and set(plain["where"]) == {"mean", "recall"}
    assert list(found["eta_squared"]) == pytest.approx(list(plain["eta_squared"]), rel=1e-3)


@pytest.mark.parametrize("format", ["torch", "numpy"])
def test_facts_are_the_same_in_whatever_format_a_dataset_gives_them(format):
    """Tensors without dimensions and numpy's scalars are the numbers, words and flags they hold."""
    n = 24
    data = Dataset.from_dict(
        {"word": ["a", "b", None] * 8, "whole": list(range(n)), "real": [i**2 / 8 for i in range(n)],
         "flag": [i % 2 == 0 for i in range(n)], "fact_positions": [[1, 2 + i % 2] for i in range(n)],
         "fact_kinds": [["word", "flag"]] * n}
    )  # fmt: skip
    z = torch.randn(n, 4, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for each in (data, data.with_format(format)):
        sums = FactSums(each, ["word", "whole", "real", "flag"])
        sums.add(torch.arange(n), z, torch.ones(n, 4, dtype=torch.bool))
        found.append(sums.result())
    assert found[1] == found[0]
    assert {(score.fact, score.where) for score in found[0][0]} == {
        ("word", "mean"), ("whole", "mean"), ("real", "mean"), ("flag", "mean"),
        ("word", "recall"), ("flag", "recall"),
    }  # fmt: skip


def test_too_few_sequences_tell_nothing_and_it_is_said(best_model, heldout, basis):
    few = heldout.select(range(5))
    made = wpca.cards(best_model, few, basis, 2, facts=["who"], contexts=1, score=None, **QUIET)
    assert made[0].facts == made[0].told == []
    assert "too few sequences" in made.notes[0]


def test_tables_of_facts_have_their_columns_also_where_nothing_is_told(best_model, heldout, basis):
    """The documented query finds its column; "head" is there where heads are."""
    few, options = heldout.select(range(5)), {"contexts": 1, "score": None, **QUIET}
    data = heldout.add_column("even", [i % 2 == 0 for i in range(len(heldout))])
    none = wpca.cards(best_model, few, basis, 2, **options).facts_to_pandas()
    some = wpca.cards(best_model, data, basis, 2, facts=["even"], **options).facts_to_pandas()
    assert len(none.query("p_value <= 0.05")) == 0
    assert len(some) == 2
    assert list(none.columns) == list(some.columns)
    assert "head" not in some
    heads = pca_at(best_model, few, "blocks.1.attn.hook_z", per_head=True)
    table = wpca.cards(best_model, data, heads, 2, facts=["even"], **options).facts_to_pandas()
    assert list(table.columns) == ["component", "head", *some.columns[1:]]


@pytest.mark.parametrize("make", ["weighted_pca", "gradient_pca", "metric_pca"])
def test_every_kind_of_basis_has_cards(best_model, tokens, make):
    """Oblique bases too: z is what the encoder says, and the removal is along the decoder."""
    moments = wpca.collect(best_model, tokens, HOOK, **QUIET)[HOOK]
    basis = getattr(wpca, make)(moments)
    made = wpca.cards(best_model, tokens, basis, 2, contexts=2, **QUIET)
    zs = coordinates(best_model, tokens.tolist(), basis, 2)
    for i, card in enumerate(made):
        every = torch.cat(zs)[:, i]
        assert card.histogram.maximum == pytest.approx(float(every.max()), rel=1e-3)
        assert card.histogram.std == pytest.approx(float(every.std(correction=0)), rel=1e-3)
    table = made.to_pandas()
    assert len(table) == 2
    assert table["eigenvalue"].tolist() == pytest.approx(basis.eigenvalues[:2].tolist())
    assert "head" not in table
    assert "best_fact" not in table


def test_the_model_is_left_as_it_was(model, tokens, heldout):
    basis = pca_at(model, heldout, HOOK)
    model.train()
    try:
        wpca.cards(model, tokens, basis, 2, contexts=1, anywhere=True, **QUIET)
        assert model.training
    finally:
        model.eval()
    assert all(not point.fwd_hooks for point in model.hook_dict.values())
    assert torch.is_grad_enabled()
    assert next(iter(model.parameters())).requires_grad


def test_inference_mode_changes_nothing(best_model, heldout, basis):
    """Of the caller: what is summed up is made where it is added to, and so can be shown outside."""
    few, options = heldout.select(range(12)), {"facts": ["who"], "contexts": 2, **QUIET}
    expected = wpca.cards(best_model, few, basis, 2, **options)
    with torch.inference_mode():
        made = wpca.cards(best_model, few, basis, 2, **options)
        assert torch.is_inference_mode_enabled()
    assert made.to_html() == expected.to_html()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n is 0; expected at least one component"),
        ({"contexts": 0}, "contexts is 0; expected at least 1"),
        ({"window": (3, -1)}, "One of window is -1; expected at least 0"),
        ({"window": (2.5, 1)}, "One of window is 2.5; expected a whole number"),
        ({"window": 3}, "window is 3; expected a list of whole numbers"),
        ({"facts": ["colour"]}, "facts has 'colour'; the data's columns are text, input_ids"),
        ({"facts": ["input_ids"]}, "holds list; expected strings, booleans or numbers"),
        ({"positions": slice(500, None)}, "selects no token of the data"),
        ({"hook_point": "blocks.1.hook_resid_post"}, "would be used at 'blocks.1.hook_resid_post'"),
        ({"hook_point": "blocks.9.hook_resid_post"}, "has no hook point"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(best_model, heldout, basis, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        wpca.cards(best_model, heldout, basis, **change, **QUIET)


def test_a_basis_without_components_is_refused_before_the_model_runs(best_model, heldout, basis):
    def run(f, hook):
        raise AssertionError("the model ran")

    heads = pca_at(best_model, heldout.select(range(2)), "blocks.1.attn.hook_z", per_head=True)
    for empty in (basis.truncate(0), heads.truncate(0)):
        with (
            best_model.hooks(fwd_hooks=[("hook_embed", run)]),
            pytest.raises(ValueError, match="The basis has no components; expected at least one"),
        ):
            wpca.cards(best_model, heldout, empty, **QUIET)


def test_what_is_not_finite_is_named(best_model, tokens, basis):
    def spoil(f, hook):
        f = f.clone()
        f[0, 1, 2] = math.nan
        return f

    with (
        best_model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", spoil)]),
        pytest.raises(wpca.NonFiniteError, match=f"at hook point '{HOOK}' hold NaN .* batch 0"),
    ):
        wpca.cards(best_model, tokens, basis, 2, score=None, **QUIET)


def test_what_cannot_be_ablated_is_refused_at_once_and_may_go_without(tokens):
    """On the bridge a skip path goes past hook_resid_mid."""
    model = embedded.load_model("TransformerBridge")
    basis = pca_at(model, tokens, "blocks.1.hook_resid_mid")
    with pytest.raises(ValueError, match="a skip path goes past it"):
        wpca.cards(model, tokens, basis, 2, **QUIET)
    made = wpca.cards(model, tokens, basis, 2, score=None, **QUIET)
    assert made[0].cost is made.ablations is None
    assert made[0].promoted


def test_data_must_be_readable_twice_and_have_columns(best_model, tokens, basis):
    with pytest.raises(ValueError, match="can be read only once"):
        wpca.cards(best_model, iter([tokens]), basis, **QUIET)
    with pytest.raises(ValueError, match="the data is a Tensor; expected a datasets.Dataset"):
        wpca.cards(best_model, tokens, basis, facts=["who"], **QUIET)
