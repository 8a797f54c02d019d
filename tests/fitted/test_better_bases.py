"""Joint basis and path metric: exact where they can be, better where they claim it."""

import dataclasses

import pytest
import torch
from fancy_einsum import einsum
from formulas import next_token_losses
from masked_logits import never_saying

import tl_weighted_pca as wpca
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.fitted.joint import _Coordinates

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def stories():
    return wpca.embedded.stories("train", 64)


@pytest.fixture(scope="module")
def moments(best_model, stories):
    objective = wpca.sampled_token_loss()
    return wpca.collect(best_model, stories, HOOK, objective=objective, progress=False)[HOOK]


def dependent_pairs(n=4000, seed=0):
    """Two kinds of token, in the halves of six directions. The gradient looks where the activation is in
    one direction of each half alone, and is large where the activation is not: a constant metric
    takes those for important."""
    generator = torch.Generator().manual_seed(seed)
    kind = (torch.rand(n, 1, generator=generator) < 0.5).float()
    half = torch.tensor([1.0, 1, 1, 0, 0, 0])
    own = kind * half + (1 - kind) * (1 - half)
    f = torch.randn(n, 6, generator=generator) * own
    looks = torch.tensor([1.0, 0, 0, 1, 0, 0])
    g = torch.randn(n, 6, generator=generator) * (own * looks + 3 * (1 - own) * (1 - looks))
    return f, g


def as_pairs(f, g):
    return wpca.Pairs(f[None], g[None, None], None, torch.zeros(1, dtype=torch.long))


def joint_loss(basis, k, f, g):
    """E[(g·(f − f̂))²], written out."""
    return float(((f - basis.project(f, k)) * g).sum(1).square().mean())


class TestJoint:
    @pytest.fixture(scope="class")
    def data(self):
        f, g = dependent_pairs()
        return wpca.MomentAccumulator().update(f[None], g[None]).result(), f, g

    def test_it_finds_what_a_constant_metric_averages_away(self, data):
        m, f, g = data
        start, joint = wpca.metric_pca(m), wpca.joint_pca(m, [as_pairs(f, g)], shrinkage=0.1)
        fresh = dependent_pairs(seed=1)
        whole = joint_loss(start, 0, *fresh)
        assert joint_loss(start, 2, *fresh) > 0.9 * whole
        assert joint_loss(joint, 2, *fresh) < 0.05 * whole
        assert joint.method == "joint_pca"

    def test_full_rank_is_the_identity_and_every_rank_a_projector(self, data):
        m, f, g = data
        joint = wpca.joint_pca(m, [as_pairs(f, g)], shrinkage=0.1)
        assert torch.allclose(joint.project(f), f, atol=1e-4)
        for k in range(7):
            once = joint.project(f.double(), k)
            assert torch.allclose(joint.project(once, k), once, atol=1e-6)
        assert torch.allclose(
            joint.eigenvalues.sum().float(),
            ((f - joint.center.float()) * g).sum(1).square().mean(),
            rtol=1e-2,
        )

    def test_shrunk_all_the_way_it_is_the_fisher_basis(self, data):
        m, f, g = data
        with pytest.warns(
            UserWarning, match="4,000 pairs were too few, or there is nothing to gain"
        ):
            joint = wpca.joint_pca(m, [as_pairs(f, g)], shrinkage=1.0)
        assert joint.method == "metric_pca"  # of an objective unknown here

    def test_what_it_is_shrunk_toward_is_the_fisher_objective_of_every_rank(self, data):
        """F_k = E‖Q^½(f − f̂_k)‖², written out with Q and C, up to one factor for all ranks."""
        m, f, g = data
        start = wpca.metric_pca(m)
        problem = _Coordinates(start, f, g)
        noise = torch.randn(problem.used, problem.used, generator=torch.Generator().manual_seed(0))
        inner = torch.eye(problem.used) + 0.2 * noise
        basis = problem.basis(inner)
        Q = m.gradient.second / m.gradient.weight
        C = m.activation.about(m.activation.mean) / m.activation.weight
        slow = []
        for k in range(problem.used):
            lost = torch.eye(basis.width).double() - basis.encoder[:, :k] @ basis.decoder[:k]
            slow.append(einsum("f r, g s, f g, r s ->", lost, lost, C, Q))
        ratio = problem.fisher(inner).double() / torch.stack(slow)
        assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-3)

    def test_it_trains_in_inference_mode_too(self, data):
        m, f, g = data
        outside = wpca.joint_pca(m, [as_pairs(f, g)], steps=5, shrinkage=0.1)
        with torch.inference_mode():
            inside = wpca.joint_pca(m, [as_pairs(f.clone(), g.clone())], steps=5, shrinkage=0.1)
        assert torch.equal(inside.encoder, outside.encoder)

    def test_the_sample_and_the_fit_are_reproducible(self, data):
        m, f, g = data
        parts = [as_pairs(a, b) for a, b in zip(f.split(500), g.split(500), strict=True)]
        one, two = (wpca.joint_pca(m, parts, max_pairs=1000, steps=20) for _ in range(2))
        assert torch.equal(one.encoder, two.encoder)

    def test_n_components_cuts_it(self, data):
        m, f, g = data
        whole, two = (
            wpca.joint_pca(m, [as_pairs(f, g)], steps=20, shrinkage=0.1, n_components=k)
            for k in (None, 2)
        )
        assert whole.method == two.method == "joint_pca" and len(two) == 2 < len(whole)
        assert two.encoder.equal(whole.encoder[:, :2]) and two.decoder.equal(whole.decoder[:2])
        with pytest.warns(UserWarning, match="there is nothing to gain"):
            start = wpca.joint_pca(m, [as_pairs(f, g)], steps=5, shrinkage=1.0, n_components=2)
        assert len(start) == 2

    def test_wrong_input(self, data):
        m, f, g = data
        with pytest.raises(ValueError, match="expected numbers between 0 and 1"):
            wpca.joint_pca(m, [as_pairs(f, g)], shrinkage=1.5)
        with pytest.raises(ValueError, match="There are no pairs"):
            wpca.joint_pca(m, [])
        with pytest.raises(ValueError, match="There is one pair"):
            wpca.joint_pca(m, [as_pairs(f[:1], g[:1])])

    def test_on_the_model(self, best_model, stories, moments):
        objective = wpca.sampled_token_loss()
        stream = wpca.stream_pairs(best_model, stories, HOOK, objective=objective)
        joint = wpca.joint_pca(moments, (p[HOOK] for p in stream), steps=30, shrinkage=0.5)
        assert joint.provenance == moments.provenance
        eye = joint.encoder @ joint.decoder
        assert torch.allclose(eye, torch.eye(64).double(), atol=1e-4)


class TestPathMetric:
    def test_it_is_the_gradients_of_the_ablated_model(self, mlp):
        x = torch.randn(40, 5, dtype=torch.float64)

        def objective(run):
            return run.output.square().sum(1)

        m = wpca.collect(mlp, x, "hook_hidden", objective=objective, progress=False)["hook_hidden"]
        basis = wpca.pca(m)
        got = wpca.path_metric(
            mlp, x, "hook_hidden", basis, ranks=[0, 3], objective=objective, progress=False
        )
        hidden = mlp.first(x).tanh().detach()
        expected = 0
        for k in (0, 3):
            g = 2 * (mlp.second(basis.project(hidden, k)) @ mlp.second.weight).detach()
            expected = expected + g.T @ g / g.square().sum() / 2
        assert torch.allclose(got.matrix, expected, atol=1e-9)
        assert (got.name, got.provenance.hook_point) == ("path", "hook_hidden")
        assert float(got.matrix.trace()) == pytest.approx(1.0)

    def test_it_beats_pca_where_the_curve_is_steep(self, best_model, stories, moments):
        """On the embedded model, over ranks d/8 to d/2, on stories that it did not see."""
        pca = wpca.pca(moments)
        metric = wpca.path_metric(best_model, stories, HOOK, pca, batch_size=32, progress=False)
        bases = {"pca": pca, "path": wpca.metric_pca(moments, metric)}
        curves = wpca.ablation_curves(
            best_model, wpca.embedded.stories("heldout", 60), bases, HOOK, ranks=[8, 16, 24, 32],
            progress=False,
        )  # fmt: skip
        assert curves.relative_excess("path").high < 1.0

    def test_wrong_input(self, best_model, stories, moments):
        with pytest.raises(ValueError, match="make one there\\."):
            wpca.path_metric(best_model, stories, "blocks.2.hook_resid_post", wpca.pca(moments))
        with pytest.raises(ValueError, match=r"Rank 65 is outside 0\.\.64"):
            wpca.path_metric(best_model, stories, wpca.pca(moments), ranks=[65])
        with pytest.raises(TypeError, match="basis is None; expected a Basis whose ablations"):
            wpca.path_metric(best_model, stories, HOOK)
        with pytest.raises(ValueError, match="can be read only once, but every rank takes a pass"):
            wpca.path_metric(best_model, iter([stories]), HOOK, wpca.pca(moments))
        with pytest.raises(TypeError, match="takes one objective, not a dict"):
            wpca.path_metric(
                best_model, stories, HOOK, wpca.pca(moments), objective={"a": wpca.next_token_loss}
            )
        with pytest.raises(ValueError, match="One of ranks is 2.7; expected a whole number"):
            wpca.path_metric(best_model, stories, HOOK, wpca.pca(moments), ranks=[2.7])
        share = wpca.shard(iter([stories]), rank=0, world_size=2)
        with pytest.raises(ValueError, match="a list_iterator, which can be read only once"):
            wpca.path_metric(best_model, share, HOOK, wpca.pca(moments))

    @pytest.mark.parametrize("padded", [False, True])
    def test_only_the_positions_asked_for_are_ablated(self, best_model, moments, padded):
        tokens = torch.tensor(wpca.embedded.stories("heldout", 100)["input_ids"][3][:24]).repeat(
            3, 1
        )
        mask = torch.ones_like(tokens)
        if padded:
            mask[0, 17:] = mask[1, 20:] = 0
        basis, positions = wpca.pca(moments), slice(2, -1)
        got = wpca.path_metric(
            best_model, [{"input_ids": tokens, "attention_mask": mask}], HOOK, basis, ranks=[5],
            positions=positions, progress=False,
        )  # fmt: skip
        chosen = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, length in enumerate(mask.sum(1).tolist()):
            chosen[row, 2 : length - 1] = True
        seen = []

        def ablate(tensor, hook):
            kept = torch.where(chosen[..., None], basis.project(tensor, 5), tensor).detach()
            seen.append(kept.requires_grad_())
            return kept

        with best_model.hooks(fwd_hooks=[(HOOK, ablate)]):
            logits = best_model(tokens, attention_mask=mask)
        losses = next_token_losses(logits, tokens)
        (losses * (mask[:, 1:] & mask[:, :-1])).sum().backward()
        g = seen[0].grad[chosen].double()
        expected = g.T @ g / g.square().sum()
        assert torch.allclose(got.matrix, expected, atol=1e-5 * float(expected.abs().max()))


def test_a_rank_without_a_gradient_has_no_say_on_the_path(best_model, stories, moments):
    options = {"batch_size": 16, "progress": False}
    basis, data = wpca.pca(moments), stories.select(range(16))

    def loss_of_far_ranks(run):
        """Zero, and flat, up to half more than the unablated model's loss."""
        losses = wpca.next_token_loss(run)
        return torch.relu(losses - 1.5 * unablated[run.sequence_index])

    unablated = torch.cat(
        [wpca.next_token_loss(run) for run in _runs(best_model, data, batch_size=16)]
    ).detach()
    full, few = basis.n_components, 4
    mixed = wpca.path_metric(
        best_model, data, HOOK, basis, ranks=[few, full], objective=loss_of_far_ranks, **options
    )
    alone = wpca.path_metric(
        best_model, data, HOOK, basis, ranks=[few], objective=loss_of_far_ranks, **options
    )
    torch.testing.assert_close(mixed.matrix, alone.matrix)
    with pytest.raises(ValueError, match=r"has no gradient at .* at any of the ranks \[64\]"):
        wpca.path_metric(
            best_model, data, HOOK, basis, ranks=[full], objective=loss_of_far_ranks, **options
        )


def _runs(model, data, batch_size):
    for batch in batches(data, batch_size):
        keep = {} if batch.mask is None else {"attention_mask": batch.mask.long()}
        with torch.no_grad():
            output = model(batch.inputs, **keep)
        order = batch.sequence_index.argsort()
        mask = None if batch.mask is None else batch.mask[order]
        yield wpca.Run(output[order], batch.inputs[order], mask, batch.sequence_index[order])


class TestPastTheHook:
    """At the bridge's hook_resid_mid an edit is not seen by the skip path: refused, not measured."""

    @pytest.fixture
    def bridge(self):
        return wpca.embedded.load_model("TransformerBridge")

    @pytest.mark.parametrize("name", ["blocks.1.hook_resid_mid", "blocks.1.ln1.hook_in"])
    def test_the_path_is_refused(self, bridge, tokens, name):
        basis = wpca.pca(wpca.collect(bridge, tokens, name, progress=False)[name])
        with pytest.raises(ValueError, match="feeds only a part of what reads that activation"):
            wpca.path_metric(bridge, tokens, name, basis, ranks=[8], progress=False)

    @pytest.mark.parametrize(
        "name", ["blocks.1.hook_resid_post", "blocks.1.attn.hook_z", "blocks.2.mlp.hook_post"]
    )
    def test_at_full_rank_the_path_s_metric_is_the_model_s_own(self, model, tokens, name):
        m = wpca.collect(model, tokens, name, progress=False)[name]
        basis = wpca.pca(m)
        got = wpca.path_metric(model, tokens, name, basis, ranks=[basis.width], progress=False)
        own = m.gradient.second / m.gradient.second.trace()
        torch.testing.assert_close(got.matrix, own, rtol=1e-4, atol=1e-6)

    def test_an_infinite_logit_does_not_blind_the_check(self, bridge, tokens):
        name = "blocks.1.hook_resid_mid"
        basis = wpca.pca(wpca.collect(bridge, tokens, name, progress=False)[name])
        with (
            never_saying(bridge, 7),
            pytest.raises(ValueError, match="a skip path goes past it"),
        ):
            wpca.ablation_curves(bridge, tokens, {"a": basis}, name, ranks=[8], progress=False)

    def test_nor_the_curves(self, model, tokens):
        """Token 7 is in none of the texts, so its probability is all that is missing."""
        assert not bool((tokens == 7).any())
        basis = wpca.pca(wpca.collect(model, tokens, HOOK, progress=False)[HOOK])
        options = {"ranks": [8, 64], "progress": False}
        with never_saying(model, 7):
            blind = wpca.ablation_curves(model, tokens, {"a": basis}, HOOK, **options)
        plain = wpca.ablation_curves(model, tokens, {"a": basis}, HOOK, **options)
        torch.testing.assert_close(blind.scores["a"], plain.scores["a"], rtol=2e-2, atol=0)

    def test_a_model_of_nan_is_said_to_be(self, tokens):
        model = wpca.embedded.load_model()
        basis = wpca.pca(wpca.collect(model, tokens, HOOK, progress=False)[HOOK])
        with torch.no_grad():
            model.blocks[3].mlp.W_out.data[0, 0] = torch.nan
        with pytest.raises(ValueError, match="score of the unablated model is NaN in batch 0"):
            wpca.ablation_curves(model, tokens, {"a": basis}, HOOK, anywhere=True, progress=False)


def test_the_joint_basis_shows_its_steps_unless_told_otherwise(
    best_model, stories, moments, capsys, monkeypatch
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    labels = wpca.sampled_token_loss()
    pairs = [*wpca.stream_pairs(best_model, stories, HOOK, objective=labels, max_tokens=500)]
    options = {"shrinkage": (0.3, 0.5), "steps": 3}
    quiet = wpca.joint_pca(moments, pairs, **options, progress=False)
    assert not capsys.readouterr().err
    shown = wpca.joint_pca(moments, pairs, **options)
    assert "Joint basis: 100%" in (said := capsys.readouterr().err) and "6/6" in said
    assert torch.equal(quiet.encoder, shown.encoder)


class TestPairsOfElsewhere:
    def stream(self, model, stories, hook_points=HOOK, **options):
        options = {"objective": wpca.sampled_token_loss()} | options
        return wpca.stream_pairs(model, stories, hook_points, **options)

    def test_they_are_refused(self, best_model, stories, moments):
        other = "blocks.2.hook_resid_post"
        for options, said in (
            ({"hook_points": other}, f"differ: hook point {other!r} and {HOOK!r}. Stream"),
            (
                {"objective": wpca.next_token_loss},
                "objective 'next_token_loss' and 'sampled_token_loss",
            ),
            ({"hook_points": "blocks.1.mlp.hook_post"}, "width 256 and 64"),
        ):
            with pytest.raises(ValueError, match=said):
                wpca.joint_pca(moments, self.stream(best_model, stories, **options))
        several = self.stream(best_model, stories, [other, "blocks.1.hook_mlp_out"])
        with pytest.raises(ValueError, match="stream those of that hook point"):
            wpca.joint_pca(moments, several)

    def test_a_stream_is_taken_as_it_is(self, best_model, stories, moments):
        options = {"shrinkage": 0.5, "steps": 30}
        direct = wpca.joint_pca(moments, self.stream(best_model, stories), **options)
        assert direct.method == "joint_pca"  # and not the basis that it starts from
        picked = wpca.joint_pca(
            moments, (p[HOOK] for p in self.stream(best_model, stories)), **options
        )
        both = self.stream(best_model, stories, ["blocks.2.hook_resid_post", HOOK])
        drawn = wpca.sampled_token_loss(n_samples=2, seed=5)  # more of the same
        assert wpca.joint_pca(moments, self.stream(best_model, stories, objective=drawn), **options)
        for other in (picked, wpca.joint_pca(moments, both, **options)):
            torch.testing.assert_close(other.encoder, direct.encoder, rtol=1e-4, atol=1e-5)

    def test_what_cannot_be_fitted_is_said(self, best_model, stories, moments):
        (pairs, *_) = [p[HOOK] for p in self.stream(best_model, stories)]
        spoilt = dataclasses.replace(pairs, gradients=pairs.gradients * torch.nan)
        with pytest.raises(wpca.NonFiniteError, match="hold NaN or infinity in batch 1"):
            wpca.joint_pca(moments, [pairs, spoilt])
        mask = torch.ones(pairs.activations.shape[:2], dtype=torch.bool)
        mask[:, -1] = False
        padding = pairs.gradients.clone()
        padding[:, :, -1] = torch.nan
        padded = dataclasses.replace(pairs, gradients=padding, mask=mask)
        assert wpca.joint_pca(moments, [padded], shrinkage=0.5, steps=2)
        with pytest.raises(TypeError, match="The pairs hold a Tensor"):
            wpca.joint_pca(moments, [torch.zeros(3)])
        for options, message in (
            ({"batch_size": 0}, "batch_size is 0"), ({"steps": 2.5}, "steps is 2.5"),
            ({"max_pairs": 1}, "max_pairs is 1"), ({"shrinkage": "auto"}, "shrinkage is 'auto'"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                wpca.joint_pca(moments, [pairs], **options)

    def test_another_default_dtype(self, best_model, stories, moments):
        pairs = [p[HOOK] for p in self.stream(best_model, stories)]
        expected = wpca.joint_pca(moments, pairs, shrinkage=0.5, steps=30)
        assert expected.method == "joint_pca"
        torch.set_default_dtype(torch.float64)
        try:
            found = wpca.joint_pca(moments, pairs, shrinkage=0.5, steps=30)
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(found.encoder, expected.encoder)

    def test_streams_refuse_what_collect_refuses(self, best_model, stories):
        for objective, message in (
            (wpca.sampled_token_loss, "expected one of its kind"), ("lost", "expected a callable"),
            ({"a": wpca.next_token_loss}, "takes one objective, not a dict"),
        ):  # fmt: skip
            with pytest.raises(TypeError, match=message):
                next(self.stream(best_model, stories, objective=objective))
        with pytest.raises(ValueError, match="selects no token of the data"):
            list(self.stream(best_model, stories, positions=slice(500, 600)))
        with pytest.raises(ValueError, match="skip is -1; expected at least 0"):
            next(self.stream(best_model, stories, skip=-1))


def test_a_basis_of_elsewhere_is_no_probe_s_coordinates(best_model, moments):
    other = "blocks.3.hook_resid_post"
    with pytest.raises(ValueError, match=f"would be used at '{other}'.*anywhere=True"):
        wpca.hook_probe(other, wpca.pca(moments))
    assert wpca.hook_probe(other, wpca.pca(moments), anywhere=True).hook_points == (other,)


def test_autocast_is_for_the_model_alone(best_model, stories, moments):
    basis, x = wpca.pca(moments), torch.randn(7, 64)
    pairs = [*wpca.stream_pairs(best_model, stories, HOOK, objective=wpca.sampled_token_loss())]
    options = {"steps": 20, "shrinkage": 0.5}
    expected = wpca.joint_pca(moments, pairs, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert basis.encode(x).dtype == torch.float32
        torch.testing.assert_close(basis.project(x), x, rtol=1e-5, atol=1e-5)
        found = wpca.joint_pca(moments, pairs, **options)
    assert torch.equal(found.encoder, expected.encoder) and found.method == "joint_pca"
