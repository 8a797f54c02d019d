"""The algebra of second moments, against the sums written out (float64)."""

import dataclasses

import pytest
import torch
from fancy_einsum import einsum
from formulas import outer_products, row_metric, second_moment
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_weighted_pca import (
    MomentAccumulator,
    Moments,
    Provenance,
    SecondMoment,
    gradient_pca,
    metric_pca,
    pca,
    weighted_pca,
)
from tl_weighted_pca.moments.accumulator import NonFiniteError
from tl_weighted_pca.moments.packed import Packed, symmetric_product
from tl_weighted_pca.moments.row_metric import row_metric_name


def pairs(n=6, s=5, d=4, seed=0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    F = torch.randn(n, s, d, generator=generator, dtype=torch.float64) + mean
    g = torch.randn(n, s, d, generator=generator, dtype=torch.float64)
    return F, g


def decay(F, g):
    """A callable row metric: symmetric, positive semi-definite, dense."""
    at = torch.arange(F.shape[1], dtype=F.dtype)
    kernel = torch.exp(-(at[:, None] - at).abs() / 2)
    return kernel * (1 + g.square().sum((1, 2))[:, None, None])


ROW_METRICS = ["identity", "gradient", "diagonal", decay]


def close(a, b, tolerance):
    return float((a - b).norm() / b.norm().clamp(min=1e-300)) < tolerance


@pytest.mark.parametrize("metric", ROW_METRICS)
@pytest.mark.parametrize("shape", [(6, 5, 4), (3, 9, 4), (4, 1, 3), (1, 7, 2)])
def test_sums_are_the_sums(metric, shape):
    F, g = pairs(*shape)
    M = row_metric(metric, F, g)
    moments = MomentAccumulator(metric).update(F, g).result()
    assert close(moments.weighted.second, second_moment(F, M), 1e-12)
    assert close(moments.weighted.first, einsum("batch s i, batch s t -> i", F, M), 1e-11)
    assert close(moments.weighted.weight, M.sum(), 1e-12)
    assert close(moments.activation.second, outer_products(F), 1e-12)
    assert close(moments.gradient.second, outer_products(g), 1e-12)
    assert close(moments.gradient.first, g.sum((0, 1)), 1e-12)
    assert moments.n_tokens == shape[0] * shape[1]
    assert moments.n_sequences == shape[0]


@pytest.mark.parametrize("metric", ROW_METRICS)
def test_centring_after_the_fact_is_centring_before(metric):
    F, g = pairs(mean=3.0)
    # A callable metric sees the activations as they are: its M is that of the uncentred stream.
    M = row_metric(metric, F, g)
    moments = MomentAccumulator(metric).update(F, g).result()
    for mu in (moments.activation.mean, moments.weighted.mean, torch.randn(4, dtype=torch.float64)):
        assert close(moments.weighted.about(mu), second_moment(F, M, mu), 1e-10)


def test_row_metrics_own_mean_minimises_the_trace():
    F, g = pairs(mean=1.0)
    weighted = MomentAccumulator().update(F, g).result().weighted
    best = weighted.about(weighted.mean).trace()
    for seed in range(5):
        off = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert weighted.about(weighted.mean + 0.1 * off).trace() > best


@pytest.mark.parametrize("metric", ROW_METRICS)
def test_masked_positions_are_not_there(metric):
    F, g = pairs(n=4, s=6)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[:, 4:] = False
    spoilt_F, spoilt_g = F.clone(), g.clone()
    spoilt_F[~mask], spoilt_g[~mask] = float("nan"), float("inf")
    masked = MomentAccumulator(metric).update(spoilt_F, spoilt_g, mask).result()
    short = MomentAccumulator(metric).update(F[:, :4], g[:, :4]).result()
    for kind in ("activation", "gradient", "weighted"):
        assert close(getattr(masked, kind).second, getattr(short, kind).second, 1e-12)
    assert masked.n_tokens == short.n_tokens == 16


@pytest.mark.parametrize("metric", ROW_METRICS)
def test_heads_are_spaces_of_their_own(metric):
    F, g = (x.unflatten(-1, (2, 3)) for x in pairs(d=6))
    together = MomentAccumulator(metric, per_head=True).update(F, g).result()
    assert together.weighted.second.shape == (2, 3, 3)
    for head in range(2):
        alone = MomentAccumulator(metric).update(F[:, :, head], g[:, :, head]).result()
        for kind in ("activation", "gradient", "weighted"):
            mine, theirs = getattr(together, kind), getattr(alone, kind)
            assert close(mine.second[head], theirs.second, 1e-12)
            assert close(mine.weight[head], theirs.weight, 1e-12)
    flat = MomentAccumulator(metric).update(F, g).result()
    assert flat.weighted.second.shape == (6, 6)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 7),
    s=st.integers(1, 6),
    d=st.integers(1, 5),
    cut=st.integers(0, 7),
    mean=st.floats(-1e3, 1e3),
)
def test_any_split_and_any_merge_give_the_same(n, s, d, cut, mean):
    F, g = (x.float() for x in pairs(n, s, d, mean=mean))
    cut = min(cut, n)
    whole = MomentAccumulator().update(F, g).result()
    one, two = MomentAccumulator(), MomentAccumulator()
    for accumulator, part in ((one, slice(cut)), (two, slice(cut, None))):
        for i in range(*part.indices(n)):
            accumulator.update(F[i : i + 1], g[i : i + 1])
    merged = [m for m in (one.result(), two.result()) if m.n_tokens]
    merged = merged[0] if len(merged) == 1 else merged[0] + merged[1]
    assert merged.n_tokens == whole.n_tokens
    for kind in ("activation", "gradient", "weighted"):
        assert close(getattr(merged, kind).second, getattr(whole, kind).second, 1e-6)


def test_merging_is_associative_and_commutative():
    a, b, c = (MomentAccumulator().update(*pairs(seed=i, mean=i * 10.0)).result() for i in range(3))
    left, right, swapped = (a + b) + c, a + (b + c), (c + b) + a
    for other in (right, swapped):
        assert close(left.weighted.second, other.weighted.second, 1e-12)
        assert close(left.activation.first, other.activation.first, 1e-12)


def test_a_far_mean_costs_no_digits():
    generator = torch.Generator().manual_seed(0)
    F = torch.randn(50, 20, 8, generator=generator) + 1e4
    moments = MomentAccumulator(statistics=["activation"])
    for i in range(0, 50, 7):
        moments.update(F[i : i + 7])
    activation = moments.result().activation
    covariance = activation.about(activation.mean) / 1000
    centred = F.double().flatten(0, 1) - F.double().mean((0, 1))
    assert close(covariance, centred.T @ centred / 1000, 1e-5)


def test_products_are_float32_s_though_torch_is_set_to_those_of_bfloat16():
    F, g = (x.float() for x in pairs(8, 64, 96))

    def sums():
        return MomentAccumulator().update(F, g).result().activation.second

    exact = sums()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(sums(), exact)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_batch_with_nan_is_left_out_whole():
    F, g = pairs()
    accumulator = MomentAccumulator().update(F, g)
    before = accumulator.result()
    for spoilt in ((F.clone().fill_(float("nan")), g), (F, g.clone().fill_(float("inf")))):
        with pytest.raises(NonFiniteError, match="NaN or infinity"):
            accumulator.update(*spoilt)
    after = accumulator.result()
    assert torch.equal(before.weighted.second, after.weighted.second)
    assert before.n_tokens == after.n_tokens


@pytest.mark.parametrize("metric", ROW_METRICS)
@pytest.mark.parametrize("garbage", [1e3, float("nan")])
def test_a_batch_in_which_no_position_counts_adds_nothing(metric, garbage):
    F, g = pairs()
    alone = MomentAccumulator(metric).update(F, g).update(F + 1, g).result()
    accumulator = MomentAccumulator(metric)
    for x in (F.clone().fill_(garbage), F, F.clone().fill_(garbage), F + 1):
        counts = torch.full(x.shape[:2], bool(x[0, 0, 0].abs() < 100))
        accumulator.update(x, g, counts)
    for kind in ("activation", "gradient", "weighted"):
        assert torch.equal(getattr(accumulator.result(), kind).second, getattr(alone, kind).second)
    assert accumulator.n_tokens == alone.n_tokens and accumulator.n_sequences == 4 * len(F)


def test_shapes_of_activations_and_gradients_are_checked():
    F, g = pairs()
    for activations, gradients in ((F, g[:1]), (F, g[0]), (F[0], g[0]), (F, g[..., :3])):
        with pytest.raises(ValueError, match=r"expected both \[batch, pos, d\]"):
            MomentAccumulator().update(activations, gradients)


def test_a_first_batch_with_nan_leaves_nothing_behind():
    F, g = (x.float() for x in pairs(mean=1e4))
    accumulator = MomentAccumulator()
    with pytest.raises(NonFiniteError):
        accumulator.update(F.clone().fill_(float("nan")), g)
    after, clean = accumulator.update(F, g).result(), MomentAccumulator().update(F, g).result()
    # To the bit: about a shift of the sound batch, and not about zero, where digits are lost.
    assert torch.equal(after.activation.shifted_second, clean.activation.shifted_second)


def test_wide_spaces_take_the_blocked_product():
    F, g = pairs(n=3, s=4, d=530)
    moments = MomentAccumulator().update(F, g).result()
    assert close(moments.weighted.second, second_moment(F, row_metric("gradient", F, g)), 1e-12)
    assert torch.equal(moments.activation.second, moments.activation.second.T)


def test_wrong_input_is_told_in_a_sentence():
    F, g = pairs()
    with pytest.raises(ValueError, match="row_metric is 'cosine'; expected one of identity"):
        MomentAccumulator("cosine")
    with pytest.raises(ValueError, match=r"gave \(6, 4\); expected a tensor of shape \(6, 5, 5\)"):
        MomentAccumulator(lambda F, g: g[:, 0]).update(F, g)
    with pytest.raises(ValueError, match="not symmetric"):
        MomentAccumulator(lambda F, g: F @ g.mT).update(F, g)
    with pytest.raises(ValueError, match="earlier ones had width 4"):
        MomentAccumulator().update(F, g).update(F[..., :3], g[..., :3])
    moment = MomentAccumulator().update(F, g).result().activation
    with pytest.raises(ValueError, match="pass a vector of that width"):
        moment.about(torch.zeros(3))
    with pytest.raises(ValueError, match="must come from the same hook point"):
        moment + MomentAccumulator().update(F[..., :3], g[..., :3]).result().activation
    zero = SecondMoment.about_zero(torch.tensor(0.0), torch.zeros(3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="weight 1ᵀM1 is zero"):
        _ = zero.mean
    with pytest.raises(ValueError, match="no gradient statistics"):
        Moments(moment, None, None, 30, 6).require("gradient")


def about_their_mean(F, g):
    """A row metric that reads all rows of a sequence at once: what pads them would change it."""
    own = g - g.mean(1, keepdim=True)
    return own @ own.mT + g @ g.mT


@pytest.mark.parametrize("heads", [(), (2,)])
def test_a_callable_sees_the_rows_that_count_and_no_others(heads):
    lengths = [4, 2, 0, 4, 3]
    F, g = pairs(len(lengths), 6, 3)
    if heads:
        F, g = (torch.stack([x, x.flip(0)], 2) for x in (F, g))
    for offset in (0, 2):
        at = torch.arange(6)
        mask = torch.stack([(at >= offset) & (at < offset + n) for n in lengths])
        padded = MomentAccumulator(about_their_mean, per_head=bool(heads)).update(F, g, mask)
        single = MomentAccumulator(about_their_mean, per_head=bool(heads))
        for x, y, n in zip(F, g, lengths, strict=True):
            here = slice(offset, offset + n)
            if n:
                single.update(x[None, here], y[None, here])
        found, expected = padded.result().weighted, single.result().weighted
        for part in ("weight", "first", "second"):
            assert close(getattr(found, part), getattr(expected, part), 1e-10)


def test_activations_alone_have_no_gradient_moments():
    F, g = pairs()
    alone = MomentAccumulator().update(F).update(F)
    found = alone.result()
    assert found.activation is not None and found.gradient is None and found.weighted is None
    assert MomentAccumulator("identity").update(F).result().weighted is not None
    with pytest.raises(ValueError, match="came with gradients and some without"):
        alone.update(F, g)
    with pytest.raises(ValueError, match="came with gradients and some without"):
        MomentAccumulator().update(F, g).update(F)


def test_a_mask_must_fit():
    F, g = pairs()
    for mask in (torch.ones(1, 5, dtype=torch.bool), torch.ones(6, 5, dtype=torch.long)):
        accumulator = MomentAccumulator()
        with pytest.raises(ValueError, match=r"expected torch.bool of shape \(6, 5\)"):
            accumulator.update(F, g, mask)
        assert accumulator.n_tokens == 0


def test_statistics_have_names():
    F, _ = pairs()
    assert MomentAccumulator(statistics="activation").update(F).result().n_tokens == 30
    for wrong in (["foo"], "foo", []):
        with pytest.raises(ValueError, match="expected some of 'activation'"):
            MomentAccumulator(statistics=wrong)


def test_samples_take_the_memory_of_one():
    """However many, one product of each kind waits for the batch to end; and their mean is the mean."""
    F, g = pairs()
    many = torch.randn(5, *g.shape, generator=torch.Generator().manual_seed(1)).double()
    accumulator = MomentAccumulator()
    accumulator.begin(F, gradients_to_come=5)
    for each in many:
        accumulator.gradient(each, scale=1 / 5)
    assert all(sums._pending is not None for sums in accumulator._sums.values())
    assert all(len(sums._pending) == 3 for sums in accumulator._sums.values())
    assert len(accumulator.check()) == 2 * 3
    accumulator.commit()
    found = accumulator.result()
    torch.testing.assert_close(
        found.gradient.second, einsum("n b s i, n b s j -> i j", many, many) / 5
    )


def test_a_callable_is_not_taken_for_ours_by_its_name():
    F, g = pairs()

    def diagonal(F, g):
        return -torch.eye(F.shape[1], dtype=F.dtype).expand(len(F), -1, -1)

    wrong = MomentAccumulator(diagonal).update(F, g)
    assert wrong.row_metric is diagonal and row_metric_name(diagonal) == "diagonal()"
    moments = dataclasses.replace(
        wrong.result(), provenance=Provenance(row_metric=row_metric_name(diagonal))
    )
    with pytest.raises(ValueError, match="is not positive semi-definite"):
        weighted_pca(moments)


def test_gradients_that_are_all_zero_make_no_basis():
    F, g = pairs()
    moments = MomentAccumulator().update(F, torch.zeros_like(g)).result()
    for make in (weighted_pca, gradient_pca, metric_pca):
        with pytest.raises(ValueError, match="are all zero: the objective does not depend on"):
            make(moments)
    assert pca(moments).width == metric_pca(moments, torch.eye(4)).width == 4
    # Of two heads one may be unused.
    heads = torch.stack([F, F], 2)
    one_dead = torch.stack([g, torch.zeros_like(g)], 2)
    assert weighted_pca(MomentAccumulator(per_head=True).update(heads, one_dead).result()).per_head


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(range(6)),
    far=st.sampled_from([0.0, 30.0, 1e3]),
    masked=st.booleans(),
    metric=st.sampled_from(ROW_METRICS),
)
def test_no_batch_is_special(order, far, masked, metric):
    """One batch a thousand spreads from the others, wherever it comes, costs no eigenvalue its digits."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, 6)
    F, g = torch.randn(2, 6, 4, 20, 6, generator=generator)
    F = F * scale
    F[0] += far
    lengths = torch.arange(4)[:, None] + 15
    mask = (torch.arange(20) < lengths).expand(4, 20) if masked else None
    accumulator = MomentAccumulator(metric)
    for i in order:
        accumulator.update(F[i], g[i], mask)
    found = accumulator.result()
    kept = slice(None) if mask is None else mask
    expected = {"activation": 0.0, "weighted": 0.0}
    rest = F[1:].double()
    # About the mean of the batches that are alike: what PCA of these alone would see, and the far one beside.
    mu = torch.stack([x[kept].mean(0) if masked else x.mean((0, 1)) for x in rest]).mean(0)
    for x, y in zip(F.double(), g.double(), strict=True):
        for one, grad, n in zip(x, y, lengths[:, 0].tolist() if masked else [20] * 4, strict=True):
            M = row_metric(metric, one[None, :n], grad[None, :n])
            expected["weighted"] = expected["weighted"] + second_moment(one[None, :n], M, mu)
            expected["activation"] = expected["activation"] + (one[:n] - mu).T @ (one[:n] - mu)
    directions = torch.eye(6).double() - torch.full((6, 6), 1 / 6).double()  # across the far one's
    for kind, G in expected.items():
        got = getattr(found, kind).about(mu)
        assert close(got, G, 1e-6)
        small, wanted = directions @ got @ directions, directions @ G @ directions
        assert torch.allclose(small, wanted, rtol=0, atol=1e-5 * float(wanted.diagonal().max()))


@pytest.mark.parametrize("lead", [(), (3,)])
def test_packed_sums_of_two_dtypes_add_as_whole_matrices_do(lead):
    """Wider than the pieces in which they are converted, to the bit."""
    X = torch.randn(*lead, 4, 400, generator=torch.Generator().manual_seed(0))
    product = symmetric_product(X, X)
    start = torch.full_like(product.flat, 1 / 3, dtype=torch.float64)
    expected = Packed(start + product.flat.double(), 400).full()
    added = Packed(start.clone(), 400).add_(product)
    assert torch.equal(added.full(), expected)
    torch.testing.assert_close(expected - 1 / 3, (X.mT @ X).double(), rtol=1e-5, atol=1e-5)
