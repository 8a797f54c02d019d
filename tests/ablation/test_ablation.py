"""Node ablation on the embedded model: the seed check of the method, ranks, masks, intervals."""

import dataclasses
import math
import warnings

import pytest
import torch
from conftest import KINDS
from formulas import divergences, next_token_losses, reconstructed

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.models.downstream import Downstream

HOOK = "blocks.2.hook_resid_post"
RANKS = [0, 8, 24, 48, 64]


@pytest.fixture(scope="module")
def moments(best_model, heldout):
    return wpca.collect(best_model, heldout, HOOK, progress=False)[HOOK]


@pytest.fixture(scope="module")
def loss(best_model, tokens):
    """The unablated loss per predicted token."""
    return float(next_token_losses(best_model(tokens).detach(), tokens).mean())


def by_hand(model, tokens, basis, k, hook_point=HOOK, positions=slice(None)):
    """The ablated loss with a hook of TransformerLens's own, the formula written out."""

    def hook(f, hook):
        edited = f.clone()
        edited[:, positions] = reconstructed(f, basis, k).float()[:, positions]
        return edited

    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_point, hook)])
    return float(next_token_losses(logits, tokens).mean())


@pytest.mark.parametrize("center", [True, False])
def test_identity_metrics_give_the_curve_of_pca(best_model, heldout, tokens, moments, center):
    """The seed check: weighted PCA with M = I is unweighted PCA, by name and by the general path."""

    def identity(F, g):
        return torch.eye(F.shape[1]).expand(len(F), -1, -1)

    bases = {"pca": wpca.pca(moments, center=center)}
    for name, metric in {"named": "identity", "called": identity}.items():
        stats = wpca.collect(best_model, heldout, HOOK, row_metric=metric, progress=False)
        bases[name] = wpca.weighted_pca(stats[HOOK], center=center)
    curves = wpca.ablation_curves(best_model, tokens, bases, HOOK, ranks=RANKS, progress=False)
    for name in ("named", "called"):
        assert curves.scores[name] == pytest.approx(curves.scores["pca"], rel=2e-5)


@pytest.mark.parametrize("center", [True, False, "row_metric"])
def test_full_rank_is_unablated_and_rank_zero_the_centre(best_model, tokens, moments, loss, center):
    makers = [wpca.pca, wpca.weighted_pca, wpca.gradient_pca, wpca.metric_pca, wpca.random_basis]
    bases = {make.__name__: make(moments, center=center) for make in makers}
    curves = wpca.ablation_curves(best_model, tokens, bases, HOOK, ranks=[0, 64], progress=False)
    assert curves.baseline == pytest.approx(loss, abs=1e-5)
    for name, (empty, full) in curves.scores.items():
        assert full == pytest.approx(loss, abs=1e-5), name
        assert empty == pytest.approx(by_hand(best_model, tokens, bases[name], 0), abs=1e-5)


@pytest.mark.parametrize(
    "hook_point",
    [HOOK, "blocks.1.hook_resid_pre", "blocks.3.hook_resid_post", "blocks.1.hook_mlp_out",
     "blocks.1.hook_attn_out", "blocks.0.mlp.hook_post", "ln_final.hook_normalized", "hook_embed"],
)  # fmt: skip
def test_scores_are_those_of_the_whole_model(model, tokens, hook_point):
    """Starting at a layer and running the whole model agree, at every kind of hook point."""
    stats = wpca.collect(model, tokens, hook_point, progress=False)[hook_point]
    basis = wpca.pca(stats)
    curves = wpca.ablation_curves(
        model, tokens, {"pca": basis}, hook_point, ranks=[0, 16, 40], batch_size=4, progress=False
    )
    for k, score in zip(curves.ranks, curves.scores["pca"], strict=True):
        assert score == pytest.approx(by_hand(model, tokens, basis, k, hook_point), abs=2e-5)


def test_only_what_lies_downstream_runs_again(tokens, moments):
    if "HookedTransformer" not in KINDS:
        pytest.skip("which bridges can start at a layer is their own affair")
    model = embedded.load_model("HookedTransformer")
    first, last = [], []
    # Not at hook points: with hooks there, the whole model runs (tests/test_user_hooks.py).
    model.blocks[0].mlp.register_forward_hook(lambda *_: first.append(1))
    model.blocks[3].mlp.register_forward_hook(lambda *_: last.append(1))
    wpca.ablation_curves(
        model, tokens, {"pca": wpca.pca(moments)}, HOOK, ranks=RANKS, progress=False
    )
    # One plain pass, two that ask whether the hook point feeds the model; then each rank downstream.
    assert len(first) == 3
    assert len(last) == 3 + 1 + len(RANKS)


def test_positions_outside_are_left_alone(model, tokens, moments):
    basis = wpca.pca(moments)
    options = {"anywhere": True, "progress": False, "ranks": [8]}
    curves = wpca.ablation_curves(
        model, tokens, {"pca": basis}, HOOK, positions=slice(2, 9), **options
    )
    expected = by_hand(model, tokens, basis, 8, positions=slice(2, 9))
    assert curves.scores["pca"][0] == pytest.approx(expected, abs=1e-5)


def test_batches_and_padding_change_nothing(model, heldout, moments):
    bases = {"pca": wpca.pca(moments), "weighted": wpca.weighted_pca(moments)}
    options = {"ranks": [8, 32], "anywhere": True, "progress": False, "positions": slice(1, None)}
    alone = [torch.tensor([row]) for row in heldout["input_ids"]]
    one = wpca.ablation_curves(model, alone, bases, HOOK, **options)
    many = wpca.ablation_curves(model, heldout, bases, HOOK, batch_size=7, **options)
    assert torch.equal(one.counts, many.counts)
    for name in bases:
        assert torch.allclose(one.per_sequence[name], many.per_sequence[name], rtol=1e-4, atol=1e-3)


def test_kl_is_the_divergence_written_out(best_model, tokens, moments):
    basis = wpca.pca(moments)
    curves = wpca.ablation_curves(
        best_model, tokens, {"pca": basis}, HOOK, ranks=[0, 16, 64], score="kl", progress=False
    )
    with torch.no_grad():
        p = best_model(tokens)
        q = best_model.run_with_hooks(tokens, fwd_hooks=[(HOOK, basis.hook(16))])
    assert curves.baseline == pytest.approx(0.0, abs=1e-6)
    assert curves.scores["pca"][1] == pytest.approx(float(divergences(p, q).mean()), rel=1e-4)
    assert curves.scores["pca"][2] == pytest.approx(0.0, abs=1e-5)


def test_a_score_of_ones_own(best_model, tokens, moments):
    def agreement(run):
        return (run.output.argmax(-1) == run.reference.argmax(-1)).double().mean(1)

    curves = wpca.ablation_curves(
        best_model,
        tokens,
        {"pca": wpca.pca(moments)},
        HOOK,
        ranks=[64],
        score=agreement,
        progress=False,
    )
    assert curves.scores["pca"] == [1.0]
    assert curves.unit == "agreement"


def test_heads_keep_k_each(model, tokens):
    name = "blocks.1.attn.hook_z"
    heads = wpca.collect(model, tokens, name, per_head=True, progress=False)[name]
    basis = wpca.pca(heads)
    curves = wpca.ablation_curves(
        model, tokens, {"heads": basis}, name, ranks=[0, 5, 16], progress=False
    )
    assert curves.width == 16

    def hook(z, hook):
        return torch.stack(
            [
                basis.center[h].float()
                + (z[:, :, h] - basis.center[h].float())
                @ (basis.encoder[h, :, :5] @ basis.decoder[h, :5]).float()
                for h in range(4)
            ],
            dim=2,
        )

    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    assert curves.scores["heads"][1] == pytest.approx(float(expected), abs=1e-5)
    assert curves.scores["heads"][2] == pytest.approx(curves.baseline, abs=1e-5)


def test_the_bridges_middle_is_refused_by_name(tokens):
    bridge = embedded.load_model("TransformerBridge")
    name = "blocks.1.hook_resid_mid"
    basis = wpca.pca(wpca.collect(bridge, tokens, name, progress=False)[name])
    with pytest.raises(
        ValueError, match=r"skip path.*Ablate at blocks\.1\.hook_resid_pre or blocks"
    ):
        wpca.ablation_curves(bridge, tokens, {"pca": basis}, name, progress=False)


def test_a_dead_end_is_refused(mlp):
    x = torch.randn(8, 5, dtype=torch.float64)
    stats = wpca.collect(mlp, x, "hook_dead_end", objective=None, progress=False)
    with pytest.raises(ValueError, match="'hook_dead_end' does not feed the rest of the model"):
        wpca.ablation_curves(
            mlp, x, {"pca": wpca.pca(stats["hook_dead_end"])}, "hook_dead_end",
            score=lambda run: run.output.sum(1), progress=False,
        )  # fmt: skip


def test_the_callers_data_and_the_weights_are_never_written(mlp, best_model, tokens):
    x = torch.randn(8, 5, dtype=torch.float64)
    before, weights = x.clone(), [p.clone() for p in best_model.parameters()]
    basis = wpca.pca(wpca.collect(mlp, x, "hook_in", objective=None, progress=False)["hook_in"])
    options = {"score": lambda run: run.output.sum(1), "ranks": [2], "progress": False}
    wpca.ablation_curves(mlp, x, {"pca": basis}, "hook_in", **options)
    assert torch.equal(x, before)
    stats = wpca.collect(best_model, tokens, "hook_pos_embed", objective=None, progress=False)
    basis = wpca.pca(stats["hook_pos_embed"])
    wpca.ablation_curves(
        best_model, tokens, {"pca": basis}, "hook_pos_embed", ranks=[4], progress=False
    )
    assert all(torch.equal(p, w) for p, w in zip(best_model.parameters(), weights, strict=True))


def test_a_glob_is_of_one_hook_point(best_model, tokens, moments):
    basis, options = wpca.pca(moments), {"ranks": [8], "progress": False}
    with pytest.raises(ValueError, match="matches 4 hook points, and one is expected"):
        wpca.ablation_curves(best_model, tokens, basis, "blocks.*.hook_resid_post", **options)
    found = wpca.ablation_curves(best_model, tokens, basis, "*.2.hook_resid_post", **options)
    assert found.hook_point == HOOK


def test_the_model_is_left_as_it_was(model, tokens, moments):
    model.train()
    hooks = sum(len(h._forward_hooks) for h in model.hook_dict.values())

    def score(run):
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            wpca.ablation_curves(
                model,
                tokens,
                {"p": wpca.pca(moments)},
                HOOK,
                score=score,
                anywhere=True,
                progress=False,
            )
        assert model.training
        assert hooks == sum(len(h._forward_hooks) for h in model.hook_dict.values())
        assert all(p.requires_grad for p in model.parameters())
        assert torch.is_grad_enabled()
    finally:
        model.eval()


def test_restarts_are_right_with_left_padding(model, tokens, moments):
    lengths, data = [20, 12, 9], torch.zeros(3, 20, dtype=torch.long)
    mask = torch.zeros(3, 20, dtype=torch.long)
    for i, n in enumerate(lengths):
        data[i, 20 - n :], mask[i, 20 - n :] = tokens[i, :n], 1
    bases, options = (
        {"p": wpca.pca(moments)},
        {"ranks": [8, 32], "anywhere": True, "progress": False},
    )
    padded = wpca.ablation_curves(
        model, [{"tokens": data, "attention_mask": mask}], bases, HOOK, **options
    )
    alone = wpca.ablation_curves(
        model, [tokens[i : i + 1, :n] for i, n in enumerate(lengths)], bases, HOOK, **options
    )
    assert padded.scores["p"] == pytest.approx(alone.scores["p"], abs=1e-4)


@pytest.mark.parametrize("turned", [False, True])
def test_pads_that_the_model_finds_itself_are_found_in_ablated_passes_too(
    model, tokens, moments, monkeypatch, turned
):
    """HookedTransformer masks pads on the left, but not in a pass that starts half-way."""
    monkeypatch.setattr(model.tokenizer, "padding_side", "left")
    padded = tokens[:2].clone()
    padded[0, :5] = model.tokenizer.pad_token_id
    data = torch.cat([padded, tokens[2:4]] if turned else [tokens[2:4], padded])
    bases, options = {"p": wpca.pca(moments)}, {"ranks": [64], "batch_size": 2, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pads without a mask, which the model knows of
        curves = wpca.ablation_curves(model, data, bases, HOOK, anywhere=True, **options)
    difference = curves.per_sequence["p"][0] - curves.baseline_per_sequence
    assert float(difference.abs().max()) < 1e-3  # rank d is the identity


class TestCurves:
    @staticmethod
    def curves(n=200, seed=0, gap=0.5):
        """Two bases, one with `gap` times the excess of the other at every rank, with noise."""
        generator = torch.Generator().manual_seed(seed)
        excess = torch.tensor([[3.0], [1.0], [0.5], [0.25], [0.0]], dtype=torch.float64)
        noise = 0.05 * torch.randn(2, 5, n, generator=generator, dtype=torch.float64)
        base = 1 + torch.rand(n, generator=generator, dtype=torch.float64)
        return AblationCurves(
            ranks=[0, 2, 4, 6, 8],
            width=8,
            per_sequence={"pca": base + excess + noise[0], "other": base + gap * excess + noise[1]},
            baseline_per_sequence=base,
            counts=torch.ones(n, dtype=torch.float64),
        )

    def test_relative_excess_finds_the_factor(self):
        estimate = self.curves().relative_excess("other")
        assert estimate == pytest.approx(0.5, abs=0.02)
        assert estimate.low < 0.5 < estimate.high
        assert self.curves().relative_excess("pca") == 1.0

    def test_of_one_sequence_nothing_is_known_but_its_score(self):
        two = torch.tensor([[3.0, 0.0], [1.5, 0.0]]).double()
        flat = torch.tensor([1.0, 0.0]).double()
        curves = AblationCurves([8, 32], 64, {"pca": two, "b": two * 2}, flat, flat)
        assert curves.excess("pca")[0] == 2.0
        for estimate in (*curves.excess("pca"), curves.area("pca"), *curves.difference("b")):
            assert (estimate.low, estimate.high) == (-math.inf, math.inf)
        assert curves.relative_excess("b") == pytest.approx((5 / 2 * 2 / 0.5) ** 0.5)

    def test_sequences_without_terms_change_no_interval_into_nothing(self):
        counts = torch.tensor([5.0, 4.0, 0.0, 0.0, 0.0, 0.0]).double()
        scores = torch.tensor([[9.0, 6.0, 0.0, 0.0, 0.0, 0.0]]).double()
        excess = AblationCurves([8], 64, {"pca": scores}, counts, counts).excess("pca")[0]
        assert excess == pytest.approx(6 / 9)
        assert 0.5 <= excess.low < excess.high <= 0.8

    def test_intervals_cover_as_often_as_they_say(self):
        hits = sum(
            c.low <= 0.5 <= c.high
            for c in (self.curves(n=60, seed=s).relative_excess("other") for s in range(60))
        )
        assert hits >= 50

    def test_area_is_the_trapezoid(self):
        curves = self.curves(n=20_000)
        # (3+1)/2 + (1+.5)/2 + (.5+.25)/2 + (.25+0)/2, over four steps
        assert curves.area("pca") == pytest.approx(3.25 / 4, abs=0.01)

    def test_what_sequences_share_cancels(self):
        difference = self.curves().difference("other")[2]
        assert difference == pytest.approx(-0.25, abs=0.02)
        assert difference.high - difference.low < 0.03

    def test_an_excess_below_zero_is_floored_and_said(self):
        curves = self.curves()
        low = {**curves.per_sequence, "low": curves.per_sequence["other"].clone()}
        low["low"][1] = curves.baseline_per_sequence - 0.1  # at rank 2
        curves = dataclasses.replace(curves, per_sequence=low)
        with pytest.warns(
            UserWarning, match="low at rank 2 is .*floored at its interval's half-width"
        ):
            assert 0 < curves.relative_excess("low") < curves.relative_excess("other")

    def test_no_ratio_where_no_excess_is_positive(self):
        with pytest.warns(UserWarning, match="The excess of other is not positive at any"):
            assert math.isnan(self.curves(gap=-0.1).relative_excess("other"))

    def test_tables_and_mistakes(self):
        curves = self.curves()
        table = curves.to_pandas()
        assert list(table.columns[:5]) == ["hook_point", "basis", "rank", "score", "excess"]
        assert len(table) == 10
        with pytest.raises(ValueError, match="no curve 'lda'; these curves are of pca, other"):
            curves.area("lda")
        with pytest.raises(ValueError, match=r"Ranks \[3\] were not evaluated"):
            curves.relative_excess("other", ranks=[3])


def test_downstream_resumes_with_any_edit(best_model, tokens):
    from tl_weighted_pca.data.batches import batches
    from tl_weighted_pca.models.frozen import quiet

    with quiet(best_model, gradients=False):
        downstream = Downstream(best_model, HOOK)
        run = downstream.start(next(batches(tokens, 10)))
        assert torch.allclose(downstream.resume(lambda f: f), run.output, atol=1e-4)
        assert not torch.allclose(downstream.resume(lambda f: 0 * f), run.output, atol=1e-2)


def test_what_is_printed_is_a_line(best_model, heldout, moments):
    bases = {"pca": wpca.pca(moments), "random": wpca.random_basis(moments)}
    curves = wpca.ablation_curves(best_model, heldout, bases, HOOK, ranks=RANKS, progress=False)
    n = len(heldout)
    assert (
        repr(curves)
        == f"AblationCurves(pca, random at {HOOK!r}: 5 ranks from 0 to 64 of 64, {n} sequences)"
    )
    held = f"activation, gradient, weighted at {HOOK!r} of next_token_loss"
    assert repr(moments) == f"Moments({held}: {moments.n_tokens} tokens in {n} sequences)"
    plain = wpca.collect(best_model, heldout, HOOK, objective=None, progress=False)[HOOK]
    assert repr(plain).startswith(f"Moments(activation at {HOOK!r}: ")


def test_kl_sees_the_last_position(best_model, tokens, moments):
    """Where an answer is; the loss has no target there, and that is told."""
    last = [tokens.shape[1] - 1]
    options = {"ranks": [0, 64], "positions": last, "progress": False}
    basis = wpca.pca(moments)
    curves = wpca.ablation_curves(best_model, tokens, {"a": basis}, HOOK, score="kl", **options)

    def ablated(tensor, hook):
        return torch.cat([tensor[:, :-1], basis.project(tensor[:, -1:], 0)], 1)

    with torch.no_grad():
        p = best_model(tokens)
        q = best_model.run_with_hooks(tokens, fwd_hooks=[(HOOK, ablated)])
    expected = float(divergences(p, q).mean())
    assert expected > 0.01
    assert curves.scores["a"][0] == pytest.approx(expected, rel=1e-4)
    with pytest.warns(UserWarning, match="No ablation changed any score.*use score='kl'"):
        wpca.ablation_curves(best_model, tokens, {"a": basis}, HOOK, **options)
    # Nothing is ablated at full rank, and so nothing is wrong.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wpca.ablation_curves(
            best_model, tokens, {"a": basis}, HOOK, **options | {"ranks": [64], "score": "kl"}
        )


def test_kl_leaves_padding_out(best_model, heldout, moments):
    basis = {"a": wpca.pca(moments)}
    options = {"ranks": [8], "score": "kl", "progress": False}
    alone = [torch.tensor([row]) for row in heldout["input_ids"]]
    one = wpca.ablation_curves(best_model, alone, basis, HOOK, **options)
    many = wpca.ablation_curves(best_model, heldout, basis, HOOK, batch_size=7, **options)
    assert torch.equal(one.counts, many.counts)
    assert one.counts.sum() == sum(map(len, heldout["input_ids"]))
    assert one.scores["a"] == pytest.approx(many.scores["a"], rel=1e-4)


def test_without_a_token_to_predict_there_is_no_loss(best_model, moments):
    data = [{"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1, 0]])}]
    with pytest.raises(ValueError, match="no token to predict"):
        wpca.ablation_curves(
            best_model, data, {"a": wpca.pca(moments)}, HOOK, ranks=[8], progress=False
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_default_dtype_rounds_no_count(best_model, moments, dtype):
    tokens = torch.randint(50, (7, 120), generator=torch.Generator().manual_seed(0))
    options = {"ranks": [8], "progress": False}
    expected = wpca.ablation_curves(best_model, tokens, {"a": wpca.pca(moments)}, HOOK, **options)
    stats = wpca.collect(best_model, tokens, HOOK, batch_size=7, progress=False)[HOOK]
    torch.set_default_dtype(dtype)
    try:
        found = wpca.ablation_curves(best_model, tokens, {"a": wpca.pca(moments)}, HOOK, **options)
        again = wpca.collect(best_model, tokens, HOOK, batch_size=7, progress=False)[HOOK]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.counts, expected.counts)
    assert found.scores["a"] == pytest.approx(expected.scores["a"], rel=1e-6)
    assert float(again.activation.weight) == 840
    torch.testing.assert_close(again.activation.second, stats.activation.second)
