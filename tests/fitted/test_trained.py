"""The trained basis: its bottleneck, a model whose answer is known, and real models."""

import dataclasses
import math

import pytest
import torch
from conftest import HookedRootModule
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_logits import never_saying
from torch import nn
from transformer_lens.hook_points import HookPoint

import tl_weighted_pca as wpca
from tl_weighted_pca.data.batches import Batch, batches
from tl_weighted_pca.fitted.bottleneck import NestedBottleneck, bottlenecked
from tl_weighted_pca.fitted.heldout import HeldOut, surely_lower
from tl_weighted_pca.fitted.kept_runs import KeptRuns
from tl_weighted_pca.fitted.rank_grid import drawn_ranks, eigenvalues, interpolated, measured_ranks
from tl_weighted_pca.fitted.trained import _split
from tl_weighted_pca.fitted.training import Training
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.frozen import quiet, run_model
from tl_weighted_pca.moments.second_moment import Provenance

HOOK = "blocks.1.hook_resid_post"
OPTIONS = {"steps": 30, "batch_size": 8, "progress": False}
HEAD_1_IS_DEAD = torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None]


@pytest.fixture(scope="module")
def stories():
    return wpca.embedded.stories("train", 64)


@pytest.fixture(scope="module")
def moments(best_model, stories):
    objective = wpca.sampled_token_loss()
    return wpca.collect(best_model, stories, HOOK, objective=objective, progress=False)[HOOK]


def a_basis(width=5, seed=0, dtype=torch.float64):
    """An oblique basis, complete, with a centre."""
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(width, width, generator=generator, dtype=dtype)
    center = torch.randn(width, generator=generator, dtype=dtype)
    values = torch.arange(width, 0, -1, dtype=dtype)
    return wpca.Basis(encoder, encoder.inverse(), center, values, values.sum(), "made")


def shaken(bottleneck, seed=0):
    """The bottleneck, some steps away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bottleneck.parameters.values():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=parameter.dtype
            )
    return bottleneck


class TestBottleneck:
    def test_each_sequence_s_rank_against_the_slow_formula(self):
        basis = a_basis()
        f = torch.randn(4, 3, 5, dtype=torch.float64)
        ranks = torch.tensor([0, 2, 5, 3])
        got = bottlenecked(f, basis.encoder, basis.decoder, basis.center, ranks)
        for i, k in enumerate(ranks.tolist()):
            for position in range(3):
                slow = basis.center.clone()
                for component in range(k):
                    coordinate = (f[i, position] - basis.center) @ basis.encoder[:, component]
                    slow = slow + coordinate * basis.decoder[component]
                torch.testing.assert_close(got[i, position], slow)

    def test_equal_steps_in_all_entries_change_the_excess_by_a_known_share_at_every_rank(self):
        """2δ² Σ_{p≤k} 1/p, of white activations and the loss ½ Σ_j Λ_j e_j²."""
        d, step = 9, 1e-3
        eye, falls = torch.eye(d).double(), 0.5 ** torch.arange(d).double()
        start = wpca.Basis(eye, eye, torch.zeros(d).double(), falls, falls.sum(), "made")
        nested = NestedBottleneck(start, torch.ones(d).double(), torch.zeros(()).double())
        nested.even_out(falls)

        def excess(moves):
            nested.parameters["moves"] = moves
            E, D, _ = nested.factors()
            left = torch.stack([eye - E[:, :k] @ D[:k] for k in range(1, d)])
            return 0.5 * (left.square() * falls).sum((1, 2))

        before, change = excess(0 * eye), 0
        for p in range(d):
            for q in range(d):
                move = torch.zeros(d, d).double()
                move[p, q] = step
                change = change + (excess(move) + excess(-move)) / 2 - before
        harmonic = (1 / torch.arange(1, d).double()).cumsum(0)
        torch.testing.assert_close(change / before, 2 * step**2 * harmonic, rtol=1e-4, atol=0)

    def test_heads_and_vectors(self):
        parts = [a_basis(seed=seed) for seed in range(2)]
        names = ("encoder", "decoder", "center", "eigenvalues", "total")
        per_head = dataclasses.replace(
            parts[0], **{n: torch.stack([getattr(p, n) for p in parts]) for n in names}
        )
        f, ranks = torch.randn(3, 4, 2, 5, dtype=torch.float64), torch.tensor([1, 4, 5])
        got = bottlenecked(f, per_head.encoder, per_head.decoder, per_head.center, ranks)
        flat = a_basis(width=10)
        of_all = bottlenecked(f, flat.encoder, flat.decoder, flat.center, ranks)
        for i, k in enumerate(ranks.tolist()):
            torch.testing.assert_close(got[i], per_head.project(f[i], k))
            torch.testing.assert_close(of_all[i], flat.project(f[i].flatten(-2), k).view(4, 2, 5))
        vectors = bottlenecked(f[:, 0, 0], *_factors(parts[0]), ranks)
        torch.testing.assert_close(vectors[1], parts[0].project(f[1, 0, 0], 4))

    @pytest.mark.parametrize("n_null", [0, 2])
    def test_it_starts_as_the_start_and_rank_d_is_always_the_identity(self, n_null):
        basis = a_basis()
        variances = torch.tensor([4.0, 1e-3, 9.0, 0.5, 1.0]).double()
        variances[:n_null] = 0
        bottleneck = NestedBottleneck(basis, variances, torch.zeros((), dtype=torch.float64))
        assert bottleneck.used == 5 - n_null
        order = [*range(n_null, 5), *range(n_null)]  # what has no variance comes last
        f = torch.randn(6, 3, 5, dtype=torch.float64)
        for k in range(6):
            found = bottleneck.edit(f, torch.full((6,), k))
            kept = order[:k]
            slow = (f - basis.center) @ basis.encoder[:, kept] @ basis.decoder[kept] + basis.center
            torch.testing.assert_close(found, slow)
        moved = shaken(bottleneck)
        torch.testing.assert_close(moved.edit(f, torch.full((6,), 5)), f)
        encoder, decoder, _ = moved.factors()
        torch.testing.assert_close(decoder @ encoder, torch.eye(5).double())
        for i, column in enumerate(order[5 - n_null :]):
            torch.testing.assert_close(encoder[:, 5 - n_null + i], basis.encoder[:, column])

    @pytest.mark.parametrize("n_null", [0, 2])
    @pytest.mark.parametrize("cuts", [[0], [2], [1, 3], [5]])
    def test_at_ranks_undone_it_is_the_start_whatever_was_trained(self, cuts, n_null):
        basis, variances = a_basis(), torch.tensor([4.0, 1e-3, 9.0, 0.5, 1.0]).double()
        variances[:n_null] = 0
        fresh, moved = (
            NestedBottleneck(basis, variances, torch.zeros((), dtype=torch.float64))
            for _ in range(2)
        )
        moved.even_out(0.5 ** torch.arange(moved.used).double())
        shaken(moved)
        f = torch.randn(6, 3, 5, dtype=torch.float64)

        def apart(k):
            at = torch.full((6,), k)
            return float((moved.edit(f, at) - fresh.edit(f, at)).detach().norm())

        before = [apart(k) for k in range(6)]
        assert moved.undo(cuts) is (cuts[0] < moved.used)
        assert not moved.undo(cuts)
        for k in range(moved.used):
            assert before[k] > 1e-3
            if k in cuts:
                assert apart(k) < 1e-12
            elif cuts != [0]:
                assert apart(k) > 1e-3
        assert apart(5) < 1e-12

    def test_its_products_are_float32_s_though_torch_is_set_to_those_of_bfloat16(self):
        like = torch.zeros((), dtype=torch.float32)
        bottleneck = shaken(NestedBottleneck(a_basis(width=96), torch.ones(96).double(), like))
        f, ranks = torch.randn(64, 3, 96), torch.arange(64)
        edited, basis = bottleneck.edit(f, ranks), bottleneck.basis()
        torch.set_float32_matmul_precision("medium")
        try:
            assert torch.equal(bottleneck.edit(f, ranks), edited)
            assert torch.equal(bottleneck.basis().encoder, basis.encoder)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")

    def test_gradcheck(self):
        bottleneck = shaken(
            NestedBottleneck(a_basis(), torch.ones(5).double(), torch.zeros(()).double())
        )
        f, ranks = torch.randn(3, 2, 5, dtype=torch.float64), torch.tensor([1, 3, 4])

        def edited(moves, shift, activations):
            bottleneck.parameters = {"moves": moves, "shift": shift}
            return bottleneck.edit(activations, ranks)

        parameters = tuple(bottleneck.parameters.values())
        assert torch.autograd.gradcheck(edited, (*parameters, f.requires_grad_()))

    def test_the_basis_made_is_the_map_trained(self):
        bottleneck = shaken(
            NestedBottleneck(a_basis(), torch.ones(5).double(), torch.zeros(()).double())
        )
        basis, f = bottleneck.basis(), torch.randn(4, 3, 5, dtype=torch.float64)
        for k in range(6):
            torch.testing.assert_close(
                basis.project(f, k), bottleneck.edit(f, torch.full((4,), k)).detach()
            )
        torch.testing.assert_close(basis.decoder.norm(dim=1), torch.ones(5).double())
        largest = basis.encoder.abs().argmax(0)
        assert bool((basis.encoder[largest, torch.arange(5)] > 0).all())

    def test_bfloat16_activations_are_edited_in_float32(self):
        basis = a_basis(dtype=torch.float32)
        f = torch.randn(4, 3, 5).bfloat16()
        got = bottlenecked(f, *_factors(basis), torch.tensor([2, 2, 3, 5]))
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got[2], basis.project(f[2].float(), 3).bfloat16())


def _factors(basis):
    return basis.encoder, basis.decoder, basis.center


class TestRanks:
    @given(width=st.integers(1, 700), n=st.integers(1, 40), seed=st.integers(0, 5))
    @settings(max_examples=60, deadline=None)
    def test_drawn_and_measured_ranks_are_ranks(self, width, n, seed):
        drawn = drawn_ranks(width, n, torch.Generator().manual_seed(seed))
        assert drawn.shape == (n,) and int(drawn.min()) >= 0 and int(drawn.max()) < width
        grid = measured_ranks(width)
        assert grid[0] == 0 and grid[-1] < width and grid == sorted(set(grid))

    def test_each_octave_and_the_tail_have_their_share(self):
        drawn = drawn_ranks(576, 20_000, torch.Generator().manual_seed(0))
        for low in (1, 2, 4, 8, 16, 32, 64, 128):
            assert ((drawn >= low) & (drawn < 2 * low)).double().mean() > 0.03
        assert 0.25 < (drawn >= 288).double().mean() < 0.35

    @given(st.lists(st.floats(-1, 5), min_size=4, max_size=4), st.integers(9, 20))
    @settings(deadline=None)
    def test_eigenvalues_descend_and_sum_to_the_excess(self, excess, width):
        curve = interpolated([0, 2, 4, 8], torch.tensor(excess).double(), width)
        found = eigenvalues(curve)
        assert bool((found.diff() <= 1e-12).all() and (found >= 0).all())
        assert float(found.sum() / 2) == pytest.approx(float(curve[0]), rel=1e-6, abs=1e-12)

    def test_where_the_excess_is_convex_the_tails_are_the_excess(self):
        excess = torch.tensor([8.0, 3.0, 1.5, 0.6]).double()  # and so is its logarithm
        tails = eigenvalues(interpolated([0, 2, 4, 8], excess, 13)).flip(0).cumsum(0).flip(0) / 2
        torch.testing.assert_close(tails[[0, 2, 4, 8]], excess)


class TestHeldOut:
    def scores(self, *excess, noise=0.0, n=200, seed=0):
        generator = torch.Generator().manual_seed(seed)
        drawn = noise * torch.randn(len(excess), n, generator=generator, dtype=torch.float64)
        return 10 * (2 + torch.tensor(excess).double()[:, None] + drawn)

    def judge(self):
        start = self.scores(4.0, 1.0, 0.1)
        return HeldOut([0, 4, 8], start, torch.full((200,), 20.0).double(), torch.full((200,), 10))

    def test_the_relative_excess_is_the_mean_of_the_ratios_but_for_rank_0(self):
        assert self.judge().relative(self.scores(9.0, 0.5, 0.02)) == pytest.approx(0.35)

    def test_one_rank_that_is_worse_is_seen_however_good_the_others_are(self):
        judge = self.judge()
        assert judge.worse(self.scores(4.0, 0.1, 0.11)) == [8]
        assert judge.worse(self.scores(4.1, 0.1, 0.01)) == [0]
        assert not judge.worse(self.scores(3.9, 0.1, 0.1 + 1e-8))
        assert not judge.worse(self.scores(3.9, 0.5, 0.105, noise=0.2, seed=1))

    def test_chance_is_no_gain(self):
        """Of starts that are as good as what was trained, one in twenty is given up; of gains, none."""
        generator = torch.Generator().manual_seed(0)
        terms = torch.randint(20, 100, (40,), generator=generator).double()
        given_up = 0
        for _ in range(400):
            noise = 0.01 * torch.randn(40, generator=generator).double() * terms
            given_up += surely_lower(noise, terms)
            assert surely_lower(noise - 0.01 * terms, terms)
        assert 5 <= given_up <= 40

    def test_one_sequence_makes_nothing_sure(self):
        one = torch.ones(1, dtype=torch.float64)
        assert not surely_lower(-one, 10 * one)


class Linear(HookedRootModule):
    """x -> xW, with a hook point before it."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.hook_in = HookPoint()
        self.setup()

    def forward(self, x):
        return self.hook_in(x) @ self.weight


def half_squared_distance(run):
    return (run.output - run.reference).square().sum((1, 2)) / 2


def test_a_linear_model_s_optimum_is_found_from_a_random_start():
    """There the excess at rank k is known to be ½ Σ_{i>k} Λ_i, of the basis in the metric WWᵀ."""
    generator = torch.Generator().manual_seed(1)
    weight, root = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    # Every sequence has the same second moment, so that every batch's loss is exact.
    x = torch.cat([torch.eye(6), -torch.eye(6)]).double() * math.sqrt(6) @ root
    moments = wpca.MomentAccumulator().update(x[None], x[None]).result()
    start = wpca.random_basis(moments)
    trained = wpca.optimize_basis(
        Linear(weight), x.expand(64, -1, -1), start, loss=half_squared_distance, steps=600,
        batch_size=8, hook_point="hook_in", progress=False,
    )  # fmt: skip

    def excess(basis, k):
        return float(((x - basis.project(x, k)) @ weight).square().sum()) / 2 / len(x)

    values = wpca.metric_pca(moments, weight @ weight.T).eigenvalues
    for k in range(7):
        optimum = float(values[k:].sum()) / 2
        assert excess(trained, k) == pytest.approx(optimum, rel=1e-3, abs=1e-3)
        tail = float(trained.eigenvalues[k:].sum()) / 2 / len(x)  # a score is a sequence's
        assert tail == pytest.approx(optimum, rel=1e-2, abs=1e-3)
        assert 0 < k < 6 or excess(start, k) == pytest.approx(optimum, abs=1e-9)
    assert excess(start, 3) > 5 * excess(trained, 3)


class TestEveryRank:
    def test_it_lowers_the_excess_and_leaves_the_model(self, model, stories, moments):
        start = wpca.pca(moments)
        weights = [p.clone() for p in model.parameters()]
        trained = wpca.optimize_basis(model, stories, start, **OPTIONS)
        assert trained.method == "optimize_basis" and trained.provenance == start.provenance
        assert trained.n_components == 64
        curves = wpca.ablation_curves(
            model, wpca.embedded.stories("heldout", 24), {"pca": start, "trained": trained}, HOOK,
            ranks=[8, 16, 32, 64], progress=False,
        )  # fmt: skip
        assert all(
            b < a for a, b in zip(*(curves.scores[n][:3] for n in curves.scores), strict=True)
        )
        assert curves.scores["trained"][3] == pytest.approx(curves.baseline, rel=1e-4)
        assert bool((trained.eigenvalues.diff() <= 0).all())
        torch.testing.assert_close(trained.decoder.norm(dim=1), torch.ones(64).double())
        assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        assert all(p.grad is None and p.requires_grad for p in model.parameters())

    def test_several_hook_points_at_once_are_trained_as_if_alone(self, model, stories, moments):
        other = "blocks.2.hook_resid_post"
        stats = wpca.collect(model, stories, other, objective=None, progress=False)
        starts = {other: wpca.pca(stats[other]), HOOK: wpca.pca(moments)}
        together = wpca.optimize_basis(model, stories, starts, **OPTIONS)
        assert list(together) == [other, HOOK]
        alone = wpca.optimize_basis(model, stories, starts[other], **OPTIONS)
        assert together[other].method == together[HOOK].method == "optimize_basis"
        torch.testing.assert_close(together[other].encoder, alone.encoder, rtol=1e-3, atol=1e-3)

    def test_per_head(self, best_model, stories):
        name = "blocks.2.attn.hook_z"
        options = {"objective": None, "per_head": True, "progress": False}
        start = wpca.pca(wpca.collect(best_model, stories, name, **options)[name])
        trained = wpca.optimize_basis(best_model, stories, start, **OPTIONS)
        assert trained.method == "optimize_basis"
        assert trained.eigenvalues.shape == start.eigenvalues.shape
        eye = torch.eye(start.width).double().expand_as(start.encoder)
        torch.testing.assert_close(trained.encoder @ trained.decoder, eye, atol=1e-4, rtol=0)

    def test_a_head_without_variance_stays_as_it_is(self, best_model, stories):
        name, options = "blocks.2.attn.hook_z", {"objective": None, "per_head": True}
        with best_model.hooks([("blocks.2.attn.hook_v", lambda v, hook: v * HEAD_1_IS_DEAD)]):
            moments = wpca.collect(best_model, stories, name, progress=False, **options)[name]
            start = wpca.pca(moments)
            trained = wpca.optimize_basis(best_model, stories, start, **OPTIONS | {"steps": 90})
        assert trained.method == "optimize_basis"
        eye = torch.eye(start.width).double().expand_as(start.encoder)
        torch.testing.assert_close(trained.encoder @ trained.decoder, eye, atol=1e-4, rtol=0)

    def test_what_does_not_vary_is_said(self, best_model, stories, moments):
        rows = torch.tensor([[7, *ids[:20]] for ids in stories["input_ids"] if len(ids) >= 20])
        with pytest.raises(ValueError, match="There is nothing to train at"):
            wpca.optimize_basis(best_model, rows, wpca.pca(moments), positions=[0], **OPTIONS)

    def test_any_whole_number_is_a_seed(self, best_model, stories, moments):
        options = OPTIONS | {"steps": 2, "seed": 2**62, "lr": 1e-12}
        with pytest.warns(UserWarning, match="the start is returned"):
            wpca.optimize_basis(best_model, stories, wpca.pca(moments), **options)

    def test_only_the_positions_asked_for_are_ablated(self, best_model, stories, moments):
        start = wpca.pca(moments)
        options = OPTIONS | {"steps": 2, "positions": slice(500, None)}
        with pytest.raises(ValueError, match="selects no token of the held-out batches"):
            wpca.optimize_basis(best_model, stories, start, **options)

    def test_what_diverges_is_said_and_the_start_kept(self, best_model, stories, moments):
        start = wpca.pca(moments)
        with pytest.warns(UserWarning, match="the start is returned"):
            wrecked = wpca.optimize_basis(
                best_model, stories, start, lr=1e6, **OPTIONS | {"steps": 4}
            )
        assert wrecked is start

    def test_the_same_twice(self, best_model, stories, moments):
        options = OPTIONS | {"steps": 10}
        one, two, other = (
            wpca.optimize_basis(best_model, stories, wpca.pca(moments), seed=seed, **options)
            for seed in (0, 0, 1)
        )
        assert torch.equal(one.encoder, two.encoder)
        assert not torch.equal(one.encoder, other.encoder)

    def test_a_bfloat16_model(self, stories, moments):
        model = wpca.embedded.load_model().to(torch.bfloat16)
        start = dataclasses.replace(wpca.pca(moments), provenance=Provenance())
        trained = wpca.optimize_basis(model, stories, start, hook_point=HOOK, **OPTIONS)
        assert trained.method == "optimize_basis"

    def test_a_basis_that_is_not_complete(self, best_model, stories, moments):
        with pytest.raises(ValueError, match="starts from a complete one: pass that, or k=20"):
            wpca.optimize_basis(best_model, stories, wpca.pca(moments).truncate(20))
        with pytest.raises(TypeError, match="expected a dict by hook point, or one Basis"):
            wpca.optimize_basis(best_model, stories, [wpca.pca(moments)])


class TestOneRank:
    def test_training_lowers_the_loss_and_leaves_the_model(self, model, stories, moments):
        start = wpca.pca(moments)
        weights = [p.clone() for p in model.parameters()]
        options = {"steps": 25, "batch_size": 8, "progress": False}
        trained = wpca.optimize_basis(model, stories, start, 16, **options)
        assert trained.method == "optimize_basis"
        assert trained.n_components == 16
        curves = wpca.ablation_curves(
            model, wpca.embedded.stories("heldout", 24), {"pca": start, "trained": trained}, HOOK,
            ranks=[16], progress=False,
        )  # fmt: skip
        assert curves.scores["trained"][0] < curves.scores["pca"][0]
        assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        assert all(p.grad is None and p.requires_grad for p in model.parameters())

    def test_it_never_returns_what_is_worse(self, best_model, stories, moments):
        start = wpca.pca(moments)
        wrecked = wpca.optimize_basis(
            best_model, stories, start, 40, steps=3, lr=100.0, batch_size=16, progress=False
        )
        assert torch.equal(wrecked.encoder, start.encoder[:, :40])

    def test_ranks_at_which_the_last_state_is_worse_are_the_start_s(
        self, best_model, stories, moments, monkeypatch
    ):
        start, step, consider = wpca.metric_pca(moments), Training.step, Training.consider
        found, told = [], []

        def spoilt(self, run, number):
            step(self, run, number)
            if number == 19:
                with torch.no_grad():
                    self.bottleneck.parameters["moves"][:56, 56:] += 3.0

        def heard(self, scores, number):
            found.append(consider(self, scores, number))
            told.append(float(self.said))
            return found[-1]

        monkeypatch.setattr(Training, "step", spoilt)
        monkeypatch.setattr(Training, "consider", heard)
        trained = wpca.optimize_basis(
            best_model, stories, start, steps=20, batch_size=8, progress=False
        )
        *_, spoilt_at, mended_at = found
        assert 56 in spoilt_at and mended_at == []
        assert told[-2] > 1 > told[-1]  # of the state that was judged, not of the best
        curves = wpca.ablation_curves(
            best_model, wpca.embedded.stories("heldout", 24), {"start": start, "trained": trained},
            HOOK, ranks=[16, 56], score="kl", progress=False,
        )  # fmt: skip
        (low, same), (was, there) = curves.scores["trained"], curves.scores["start"]
        assert low < 0.9 * was and same == pytest.approx(there, abs=5e-6)

    def test_what_is_held_out_is_not_all_of_one_length(self, best_model, moments):
        stories = wpca.embedded.stories("train", 64)
        every = list(batches(stories, 4))
        heldout, train = _split(every, 400, 0)
        assert len(heldout) == 3 and len(train) == 13
        longest = max(map(len, stories["input_ids"]))
        assert min(batch.inputs.shape[1] for batch in heldout) < longest - 3
        assert len(_split(every * 100, 200, 0)[0]) == 6  # no more than half the cost of training
        with pytest.raises(ValueError, match="There is one batch"):
            wpca.optimize_basis(best_model, stories, wpca.pca(moments), 8, max_tokens=300)
        nowhere = dataclasses.replace(wpca.pca(moments), provenance=Provenance())
        with pytest.raises(ValueError, match="say where with hook_point"):
            wpca.optimize_basis(best_model, stories, nowhere, 8)

    def test_held_out_batches_with_nothing_to_predict(self, best_model, moments):
        tokens = torch.arange(30).view(3, 10) + 5
        single = torch.zeros(3, 10, dtype=torch.long)
        single[:, 0] = 1  # one real token each
        data = [{"input_ids": tokens, "attention_mask": single}] * 4
        with pytest.raises(ValueError, match="held-out batches have no token to predict"):
            wpca.optimize_basis(best_model, data, wpca.pca(moments), 8, loss="loss", progress=False)

    def test_a_batch_with_nothing_to_predict_is_no_step(self, best_model, stories, moments):
        rows = torch.tensor([ids[:24] for ids in stories["input_ids"] if len(ids) >= 24])
        whole = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in rows.split(8)]
        single = torch.zeros_like(rows[:8])
        single[:, 0] = 1  # one real token each
        data = [*whole, {"input_ids": rows[:8], "attention_mask": single}]
        start, options = wpca.metric_pca(moments), {"steps": 30, "loss": "loss", "seed": 1}
        found = wpca.optimize_basis(best_model, data, start, 8, progress=False, **options)
        assert not torch.equal(found.encoder, start.truncate(8).encoder)

    def test_kl_too(self, best_model, stories, moments):
        start = wpca.metric_pca(moments)
        trained = wpca.optimize_basis(
            best_model, stories, start, 16, loss="kl", steps=15, batch_size=16, progress=False
        )
        curves = wpca.ablation_curves(
            best_model, wpca.embedded.stories("heldout", 24), {"pca": start, "trained": trained}, HOOK,
            ranks=[16], score="kl", progress=False,
        )  # fmt: skip
        assert curves.scores["trained"][0] < curves.scores["pca"][0]

    @pytest.mark.parametrize(
        ("k", "options", "message"),
        [(0, {}, r"expected 1\.\.64"), (65, {}, r"expected 1\.\.64"),
         (8, {"loss": "mse"}, "'loss', 'kl' or a callable"),
         (8, {"loss": lambda run: (run.output[:, :, 0] > 0).sum(1)}, "carries no gradient to"),
         (8, {"batch_size": 64}, "There is one batch")],
    )  # fmt: skip
    def test_wrong_input(self, best_model, stories, moments, k, options, message):
        with pytest.raises(ValueError, match=message):
            wpca.optimize_basis(
                best_model, stories, wpca.pca(moments), k, progress=False, **options
            )

    def test_a_dict_says_where(self, best_model, stories, moments):
        bases = {HOOK: wpca.pca(moments)}
        with pytest.raises(ValueError, match="the bases are by hook point already: leave it out"):
            wpca.optimize_basis(best_model, stories, bases, hook_point=HOOK)
        with pytest.raises(ValueError, match="No bases were given"):
            wpca.optimize_basis(best_model, stories, {})


@pytest.mark.parametrize("order", [1, -1])
def test_batches_whose_outputs_are_not_kept_start_again_half_way(best_model, order):
    rows = torch.arange(2 * 4 * 12).view(2, 4, 12) % best_model.cfg.d_vocab
    padded = torch.ones(4, 12, dtype=torch.bool)
    padded[:, 9:] = False
    data = [Batch(x, mask, torch.arange(4)) for x, mask in zip(rows, (None, padded), strict=True)]
    with quiet(best_model, gradients=False):
        downstream = Downstream(best_model, [HOOK])
        kept = KeptRuns(downstream, [HOOK], data[::order], most=2 * rows[0].numel() * 64 * 4)
        for _ in range(2):
            for number in range(2):
                run = kept.start(number)
                assert downstream.restarts(HOOK)
                expected = run_model(best_model, run.inputs, run.mask)
                torch.testing.assert_close(run.output, expected, rtol=1e-4, atol=1e-4)


def test_a_score_that_is_infinite_is_no_lack_of_gain(model, stories, moments):
    with (
        never_saying(model, 368),  # the commonest word
        pytest.raises(wpca.NonFiniteError, match="is NaN or infinite on the held-out batches"),
    ):  # fmt: skip
        wpca.optimize_basis(
            model, stories, wpca.pca(moments), 8, loss="loss", batch_size=16, progress=False
        )


def test_the_start_stays_as_it_was(best_model, stories, moments):
    """In float32 too, which is not copied by being asked for in float32."""
    made = wpca.pca(moments)
    names = ("encoder", "decoder", "center", "eigenvalues", "total")
    start = dataclasses.replace(made, **{name: getattr(made, name).float() for name in names})
    before = {name: getattr(start, name).clone() for name in names}
    trained = wpca.optimize_basis(best_model, stories, start, 8, steps=5, lr=0.1, progress=False)
    for name in names:
        assert torch.equal(getattr(start, name), before[name])
        assert not getattr(start, name).requires_grad and not getattr(trained, name).requires_grad
