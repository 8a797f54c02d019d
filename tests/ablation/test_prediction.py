"""Predicted beside measured: exact where the model is linear, right to second order where it is not."""

import math

import pytest
import torch
from conftest import HookedRootModule
from torch import nn
from transformer_lens.hook_points import HookPoint

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.data.batches import batches

HOOK = "blocks.1.hook_resid_post"
QUIET = {"progress": False}


class Linear(HookedRootModule):
    """x -> x W, position by position."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 3, generator=generator, dtype=torch.float64))
        self.hook_x = HookPoint()
        self.setup()

    def forward(self, x):
        return self.hook_x(x) @ self.weight


class LinearChain(Linear):
    """x -> (x W, (x W + x) V): the second hook point gets what the first has left."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.inner = nn.Parameter(torch.randn(6, 6, generator=generator, dtype=torch.float64))
        self.hook_y = HookPoint()
        self.setup()

    def forward(self, x):
        x = self.hook_x(x)
        y = self.hook_y(x @ self.inner + x)
        return torch.cat([x @ self.weight, y @ self.weight.flip(0)], -1)


def every_output(run):
    """√n y_i, one sample for each of the n outputs: the mean of squared gradients is exactly JᵀJ."""
    flat = run.output.flatten(1)
    return math.sqrt(flat.shape[1]) * flat.T


def half_square(run):
    return (run.output - run.reference).flatten(1).square().sum(1) / 2


@pytest.mark.parametrize("fill", ["mean", "zero"])
@pytest.mark.parametrize("shape", [(40, 6), (40, 5, 6)])
def test_both_forms_are_exact_on_a_linear_model(shape, fill):
    """For loss ½‖·‖², each sequence's in the first form, and their mean in the second."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) @ mixing + 1
    model, where = Linear(), None if len(shape) == 2 else slice(1, None)
    stats = wpca.collect(model, x, "hook_x", objective=every_output, positions=where, **QUIET)
    centre = fill == "mean"
    bases = {
        "pca": wpca.pca(stats["hook_x"], center=centre),
        "metric": wpca.metric_pca(stats["hook_x"], center=centre),
    }
    curves = wpca.ablation_curves(
        model, x, bases, ranks=range(7), score=half_square, predicted=every_output, fill=fill,
        positions=where, batch_size=7, **QUIET,
    )  # fmt: skip
    for name in bases:
        measured, predicted = curves.per_sequence[name], curves.predicted_per_sequence[name]
        torch.testing.assert_close(predicted, measured, rtol=1e-9, atol=1e-9)
    assert float(curves.per_sequence["metric"][0].mean()) > 0.1
    assert curves.eigenvalue_prediction["metric"] == pytest.approx(
        curves.scores["metric"], rel=1e-9, abs=1e-9
    )
    assert "pca" not in curves.eigenvalue_prediction  # variances are no losses
    assert curves.predicted("pca")[2] == pytest.approx(curves.scores["pca"][2], rel=1e-9)
    assert {"predicted", "eigenvalue_prediction"} <= set(curves.to_pandas())
    (ax,) = curves.plot().axes
    drawn = [line.get_ydata() for line in ax.lines if line.get_linewidth() == 0.8]
    assert len(drawn) == 3 + 2  # two curves and one of eigenvalues; two in the legend alone
    assert drawn[2][1] == pytest.approx(curves.eigenvalue_prediction["metric"][1])


@pytest.mark.parametrize("fill", ["mean", "zero"])
@pytest.mark.parametrize("shape", [(30, 6), (20, 5, 6)])
def test_together_it_is_exact_on_a_linear_model(shape, fill):
    """Also where a hook point gets what an earlier one has left; ½ΣΛ adds."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) @ mixing + 1
    model, options = LinearChain(), {"positions": None if len(shape) == 2 else slice(1, None)}
    options |= QUIET
    places = ["hook_y", "hook_x"]  # in any order
    stats = wpca.collect(model, x, places, objective=every_output, **options)
    bases = {
        "pca": {s: wpca.pca(stats[s]) for s in places},
        "metric": {s: wpca.metric_pca(stats[s]) for s in places},
    }
    options |= {"score": half_square, "predicted": every_output, "fill": fill, "batch_size": 7}
    ranks = [0, 3, {"hook_x": 5, "hook_y": 2}, 6]
    curves = wpca.ablation_curves(model, x, bases, ranks=ranks, **options)
    for name in bases:
        measured, predicted = curves.per_sequence[name], curves.predicted_per_sequence[name]
        torch.testing.assert_close(predicted, measured, rtol=1e-9, atol=1e-9)
        assert float(measured[1].mean()) > 0.1
    alone = [
        wpca.ablation_curves(model, x, {"metric": bases["metric"][s]}, ranks=range(7), **options)
        for s in ("hook_x", "hook_y")
    ]
    total = sum(
        one.eigenvalue_prediction["metric"][k] for one, k in zip(alone, (5, 2), strict=True)
    )
    assert curves.eigenvalue_prediction["metric"][2] == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("outliers", [None, 1.05])
def test_together_it_is_the_plain_formula(model, heldout, outliers):
    """Σ_h Σ_s g·δ written out, δ what plain hooks take away; with padding, positions and heads."""
    heads, stream = "blocks.1.attn.hook_z", "blocks.2.hook_resid_post"
    objective, data = wpca.sampled_token_loss(2), heldout.select(range(6))
    options = {"positions": slice(1, 9), "batch_size": 3, **QUIET}
    stats = wpca.collect(
        model, data, [stream, heads], objective=None, **options, per_head={heads: True, stream: False}
    )  # fmt: skip
    bases = {place: wpca.pca(stats[place]) for place in (stream, heads)}
    kept = {stream: 9, heads: 5}
    curves = wpca.ablation_curves(
        model, data, {"a": bases}, ranks=[kept], score="kl", predicted=objective,
        outliers=outliers, **options,
    )  # fmt: skip
    expected = torch.zeros(6, dtype=torch.float64)
    pairs = wpca.stream_pairs(
        model, data, [stream, heads], objective=objective, positions=slice(1, 9), batch_size=3,
        outliers=outliers,
    )  # fmt: skip
    for batch, here in zip(batches(data, 3), pairs, strict=True):
        taken = {}

        def hook_of(place, taken=taken, here=here):
            where = here[place].mask

            def hook(f, hook):
                new = bases[place].project(f, kept[place])
                taken[place] = (f - new).double().flatten(2)
                return torch.where(where.view(*where.shape, *[1] * (f.ndim - 2)), new, f)

            return hook

        options = {} if batch.mask is None else {"attention_mask": batch.mask.long()}
        hooks = [(place, hook_of(place)) for place in bases]
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            model(batch.inputs, **options)
        moved = 0
        for place in bases:
            g = here[place].gradients.double() * here[place].mask[..., None]
            moved = moved + (g * taken[place]).sum((-1, -2))
        expected[batch.sequence_index] = moved.square().mean(0) / 2
    torch.testing.assert_close(
        curves.predicted_per_sequence["a"][0], expected, rtol=1e-4, atol=1e-7
    )
    assert "a" not in curves.eigenvalue_prediction


@pytest.fixture(scope="module")
def slips():
    model = embedded.load_model(slips=True, device="cpu")
    train = embedded.stories("train", 150, slips=True)
    stats = wpca.collect(
        model, train, HOOK, objective=wpca.sampled_token_loss(),
        statistics=["activation", "gradient"], **QUIET,
    )  # fmt: skip
    return model, embedded.stories("heldout", 160, slips=True), stats[HOOK]


def expected_squares(model, data, cuts, step=0.02):
    """½ Σ_t Var_p(J_t δ) by cut and sequence: E over labels of (Σ g·δ)², by central differences."""
    found, order = [], []
    for batch in batches(data, 20):
        mask = torch.ones(batch.inputs.shape).bool() if batch.mask is None else batch.mask

        def logits(at, basis, k, batch=batch, mask=mask):
            def hook(f, hook):
                return (f.double() + at * (basis.project(f.double(), k) - f.double())).to(f)

            with torch.no_grad(), model.hooks(fwd_hooks=[(HOOK, hook)]):
                return model(batch.inputs, attention_mask=mask.long()).double()

        p, rows = logits(0, *cuts[0]).softmax(-1), []
        for cut in cuts:
            change = (logits(step, *cut) - logits(-step, *cut)) / (2 * step)
            variance = (p * change.square()).sum(-1) - (p * change).sum(-1).square()
            rows.append((variance * mask).sum(1) / 2)
        found.append(torch.stack(rows))
        order.append(batch.sequence_index)
    return torch.cat(found, 1)[:, torch.cat(order).argsort()]


def test_the_first_form_is_the_kl_where_that_is_small(slips):
    """Its expectation within 15% below 0.0005 nats, with a standard error over sequences of 3% at most.

    The second form lacks the coupling of gradient and activation.
    """
    model, heldout, moments = slips
    bases, ranks = {"pca": wpca.pca(moments), "fisher": wpca.metric_pca(moments)}, [61, 62]
    options = {"score": "kl", **QUIET}
    curves = wpca.ablation_curves(model, heldout, bases, ranks=ranks, **options)
    cuts = [(basis, k) for basis in bases.values() for k in ranks]
    every_exact = expected_squares(model, heldout, cuts)
    every_kl = torch.cat([curves.per_sequence[name] for name in bases])
    for exact, kl in zip(every_exact, every_kl, strict=True):
        assert 1e-4 < float(kl.sum() / curves.counts.sum()) < 5e-4
        ratio = float(exact.sum() / kl.sum())
        error = float((exact - ratio * kl).std() * len(kl) ** 0.5 / kl.sum())
        assert abs(ratio - 1) < 0.15 and error < 0.03

    few = wpca.ablation_curves(
        model, heldout.select(range(40)), bases["fisher"], ranks=[56], predicted=True, **options
    )
    (second,) = few.eigenvalue_prediction["metric_pca(fisher)"]
    assert 1.2 * second < few.excess("metric_pca(fisher)")[0] < 2.6 * second


def test_the_first_form_is_the_expected_square(slips):
    """The mean over many sampled labels, far beyond where it is the KL."""
    model, heldout, moments = slips
    tokens = torch.tensor([row[:12] for row in heldout["input_ids"][:6]])
    basis, k = wpca.metric_pca(moments), 40
    curves = wpca.ablation_curves(
        model, tokens, basis, ranks=[k], score="kl", predicted=wpca.sampled_token_loss(256), **QUIET
    )
    (exact,) = expected_squares(model, tokens, [(basis, k)])
    (found,) = curves.predicted_per_sequence.values()
    assert float(found[0].sum()) == pytest.approx(float(exact.sum()), rel=0.1)


def test_padding_and_unedited_positions_change_nothing(slips):
    model, heldout, moments = slips
    options = {"ranks": [32], "score": "kl", "predicted": True, "positions": slice(1, 9), **QUIET}
    some = heldout.select(range(12))
    alone = [torch.tensor([row]) for row in some["input_ids"]]
    one = wpca.ablation_curves(model, alone, wpca.metric_pca(moments), **options)
    many = wpca.ablation_curves(model, some, wpca.metric_pca(moments), batch_size=5, **options)
    (a,), (b,) = one.predicted_per_sequence.values(), many.predicted_per_sequence.values()
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    (name,) = one.eigenvalue_prediction
    edited = 12 * 8 / float(one.counts.sum())
    basis = wpca.metric_pca(moments)
    expected = float(basis.eigenvalues[32:].sum()) / 2 * edited
    assert one.eigenvalue_prediction[name][0] == pytest.approx(expected, rel=1e-9)


def test_heads_add_up(best_model, tokens):
    """A basis per head is a basis of the whole space, block by block."""
    place, n = "blocks.1.attn.hook_z", 2
    objective = wpca.sampled_token_loss(n)
    heads = wpca.collect(best_model, tokens, place, objective=objective, per_head=True, **QUIET)[
        place
    ]
    basis = wpca.pca(heads)
    curves = wpca.ablation_curves(
        best_model, tokens, basis, ranks=[0, 5, 16], score="kl", predicted=objective, **QUIET
    )
    total = torch.zeros(3, len(tokens), dtype=torch.float64)
    for pairs in wpca.stream_pairs(best_model, tokens, place, objective=objective):
        here = pairs[place]
        f = here.activations.double().unflatten(-1, (4, 16))
        g = here.gradients.double().unflatten(-1, (4, 16))
        for i, k in enumerate([0, 5, 16]):
            delta = f - basis.project(f, k)
            moved = (g * delta).sum((2, 3, 4))
            total[i, here.sequence_index] = moved.square().mean(0) / 2
    torch.testing.assert_close(curves.predicted_per_sequence["pca"], total, rtol=1e-3, atol=1e-7)


def test_the_second_form_is_of_any_objective_s_own_metric(best_model, tokens):
    moments = wpca.collect(best_model, tokens, HOOK, **QUIET)[HOOK]  # of the next-token loss
    bases = {"own": wpca.metric_pca(moments), "pca": wpca.pca(moments)}
    curves = wpca.ablation_curves(
        best_model, tokens, bases, ranks=[8], score="kl", predicted="loss", **QUIET
    )
    assert list(curves.eigenvalue_prediction) == ["own"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "loss"}, "predicted=True is of the KL divergence, and score is 'loss'"),
        ({"fill": "resample"}, "not of resampled sequences"),
    ],
)
def test_what_is_not_predicted(slips, change, message):
    model, heldout, moments = slips
    heldout = heldout.select(range(6))
    bases, options = wpca.pca(moments), {"score": "kl"} | change
    with pytest.raises(ValueError, match=message):
        wpca.ablation_curves(model, heldout, bases, ranks=[8], predicted=True, **options, **QUIET)
    once = iter(torch.tensor([row[:20] for row in heldout["input_ids"]]).split(2))
    with pytest.raises(ValueError, match="a prediction goes through it once more"):
        wpca.ablation_curves(
            model, once, wpca.pca(moments), ranks=[8], score="kl", predicted=True, **QUIET
        )
    assert len(list(once)) == 3  # and none has been used up
    plain = wpca.ablation_curves(model, heldout, wpca.pca(moments), ranks=[8], **QUIET)
    with pytest.raises(ValueError, match="ask for it with ablation_curves"):
        plain.predicted("pca")
