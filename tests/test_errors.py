"""Wrong input gets one clear sentence: what was given, what was expected, what to do."""

import re

import numpy as np
import pytest
import torch
from conftest import TinyMLP

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded

HOOK = "blocks.1.hook_resid_post"


def collect(model, data, hook_points=HOOK, **options):
    return wpca.collect(model, data, hook_points, progress=False, **options)


class TestHookPoints:
    def test_unknown_names_list_the_nearest(self, model, tokens):
        with pytest.raises(
            ValueError, match=r"no hook point 'blocks\.1\.hook_resid_pos'.*hook_resid_post"
        ):
            collect(model, tokens, "blocks.1.hook_resid_pos")
        with pytest.raises(ValueError, match="no hook point 'blocks.9.hook_resid_post'"):
            collect(model, tokens, [HOOK, "blocks.9.hook_resid_post"])

    def test_a_predicate_that_matches_nothing(self, model, tokens):
        with pytest.raises(ValueError, match="matches none of the model's"):
            collect(model, tokens, lambda name: False)

    def test_names_that_are_no_strings(self, model, tokens):
        for wrong in ([[HOOK]], [3]):
            with pytest.raises(TypeError, match="expected its name, a string"):
                collect(model, tokens, wrong)

    def test_none_at_all(self, model, tokens):
        with pytest.raises(ValueError, match="name at least one"):
            collect(model, tokens, [])

    def test_one_that_never_fires(self, mlp):
        x = torch.randn(3, 5, dtype=torch.float64)
        with pytest.raises(ValueError, match="'hook_unused' never fired"):
            collect(mlp, x, "hook_unused", objective=lambda run: run.output.sum(1))
        with pytest.raises(ValueError, match="'hook_unused' never fired"):
            collect(mlp, x, ["hook_in", "hook_unused"], objective=None)

    def test_one_without_gradient(self, mlp, best_model, tokens):
        x = torch.randn(3, 5, dtype=torch.float64)
        with pytest.raises(ValueError, match="'hook_dead_end' carries no gradient"):
            collect(mlp, x, ["hook_in", "hook_dead_end"], objective=lambda run: run.output.sum(1))
        with pytest.raises(ValueError, match="carries no gradient to blocks.1"):
            collect(best_model, tokens, objective=lambda run: run.output.detach().sum((1, 2)))

    def test_one_that_is_no_float(self, tokens):
        class Tokens(TinyMLP):
            def forward(self, x):
                return super().forward(self.hook_unused(x.round().long()).double())

        with pytest.raises(
            ValueError, match="'hook_unused' carries torch.int64, not floating-point"
        ):
            collect(Tokens(), torch.randn(3, 5), "hook_unused", objective=None)

    @pytest.mark.parametrize("name", ["hook_pattern", "hook_attn_scores"])
    def test_attention_patterns(self, model, tokens, name):
        with pytest.raises(ValueError, match="attention pattern or scores of shape"):
            collect(model, tokens, f"blocks.1.attn.{name}")

    def test_one_that_is_switched_off(self, model, tokens):
        with pytest.raises(ValueError, match="use_attn_result|never fired"):
            collect(model, tokens, "blocks.1.attn.hook_result")

    def test_one_with_several_values_in_a_pass(self, mlp):
        class Twice(TinyMLP):
            def forward(self, x):
                return super().forward(x) + super().forward(2 * x)

        x = torch.randn(3, 5, dtype=torch.float64)
        with pytest.raises(
            ValueError, match="fires several times in one pass with different values"
        ):
            collect(Twice(), x, "hook_hidden", objective=lambda run: run.output.sum(1))

    def test_models_without_hook_points(self, tokens):
        with pytest.raises(TypeError, match="a Linear, which has no hook points"):
            collect(torch.nn.Linear(2, 2), tokens)


class TestData:
    @pytest.mark.parametrize("empty", [torch.empty(0, 5, dtype=torch.long), [], iter(())])
    def test_empty(self, model, empty):
        with pytest.raises(ValueError, match="The data is empty"):
            collect(model, empty)
        basis = wpca.pca(collect(model, torch.ones(2, 5, dtype=torch.long))[HOOK])
        with pytest.raises(ValueError, match="The data is empty"):
            wpca.ablation_curves(model, empty, {"p": basis}, HOOK, progress=False)

    def test_too_short_for_a_next_token(self, model, tokens):
        with pytest.raises(ValueError, match="length 1; this loss needs at least 2"):
            collect(model, tokens[:, :1])

    @pytest.mark.parametrize("wrong", [-1, 100_000])
    def test_tokens_outside_the_vocabulary(self, model, tokens, wrong):
        spoilt = tokens.clone()
        spoilt[3, 3] = wrong
        with pytest.raises(ValueError, match=f"token {wrong}, but the model's vocabulary is 0"):
            collect(model, spoilt)

    def test_mixed_lengths_without_a_mask(self, model):
        with pytest.raises(ValueError, match="mixed lengths in one batch and no mask"):
            collect(model, [[[1, 2, 3], [4, 5]]])
        with pytest.raises(ValueError, match="mixed lengths in one batch and no mask"):
            collect(model, [{"input_ids": [[1, 2, 3], [4, 5]]}])

    def test_a_mask_of_another_shape(self, model, tokens):
        with pytest.raises(ValueError, match="attention_mask has shape .10, 3."):
            collect(model, [{"input_ids": tokens, "attention_mask": torch.ones(10, 3)}])

    def test_columns_without_tokens(self, model, heldout):
        with pytest.raises(ValueError, match="expected `input_ids` or `tokens`: tokenise"):
            collect(model, heldout.select_columns(["text"]))

    @pytest.mark.parametrize("data", ["a story", 3, {"input_ids": [[1, 2]]}])
    def test_kinds_that_are_no_data(self, model, data):
        with pytest.raises(TypeError, match="expected a tensor .n, pos. of tokens"):
            collect(model, data)

    def test_floats_for_tokens(self, model, best_model, tokens):
        with pytest.raises(ValueError, match="are torch.float32, and the model fails on them"):
            collect(model, tokens.float())
        basis = wpca.pca(collect(best_model, tokens)[HOOK])
        with pytest.raises(ValueError, match="are torch.float64, and the model fails on them"):
            wpca.ablation_curves(best_model, tokens.double(), {"a": basis}, HOOK, progress=False)

    def test_batch_sizes_and_positions(self, model, tokens):
        with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
            collect(model, tokens, batch_size=0)
        for wrong in ("8", 2.5, True):
            with pytest.raises(ValueError, match=f"batch_size is {wrong!r}; expected a whole"):
                collect(model, tokens, batch_size=wrong)
        with pytest.raises(ValueError, match="max_tokens is 0; expected at least 1"):
            collect(model, tokens, max_tokens=0)
        for wrong in (3, "1:", [1.5], [True, False], slice("1"), torch.tensor([0.5])):
            with pytest.raises(TypeError, match="expected a slice such as"):
                collect(model, tokens, positions=wrong)
        with pytest.raises(ValueError, match="selects no token of the data"):
            collect(model, tokens, positions=slice(100, None))


class TestObjectives:
    @pytest.mark.parametrize("shape", ["scalar", "transposed", "nothing"])
    def test_of_the_wrong_shape(self, model, tokens, shape):
        def objective(run):
            losses = wpca.next_token_loss(run)
            return {"scalar": losses.sum(), "transposed": losses[:, None], "nothing": None}[shape]

        with pytest.raises(
            ValueError, match=r"The objective objective gave .*one scalar per sequence"
        ):
            collect(model, tokens[:4], objective=objective)

    def test_statistics_without_their_objective(self, model, tokens):
        with pytest.raises(ValueError, match="needs gradients, but objective is None"):
            collect(model, tokens, objective=None, statistics=["gradient"])
        with pytest.raises(ValueError, match="expected some of 'activation'"):
            collect(model, tokens, statistics=["variance"])
        with pytest.raises(ValueError, match="dict of objectives is empty"):
            collect(model, tokens, objective={})

    def test_moments_without_gradients(self, model, tokens):
        m = collect(model, tokens, objective=None)[HOOK]
        wpca.pca(m)
        for make in (wpca.gradient_pca, wpca.metric_pca, wpca.weighted_pca):
            with pytest.raises(ValueError, match="collect again with statistics including"):
                make(m)

    def test_a_language_loss_of_another_model(self, mlp):
        with pytest.raises(ValueError, match="for another kind of model pass your own objective"):
            collect(mlp, torch.randn(3, 5, dtype=torch.float64), "hook_in")

    def test_a_loss_that_is_nan(self, model, tokens):
        def objective(run):
            return wpca.next_token_loss(run) * float("nan")

        with pytest.raises(wpca.NonFiniteError, match="is NaN or infinite in batch 0, though all"):
            collect(model, tokens, objective=objective)

    @pytest.mark.parametrize("row_metric", ["indefinite", "negative", "nan"])
    def test_a_row_metric_that_is_none(self, best_model, tokens, row_metric):
        def metric(F, g):
            n, eye = F.shape[1], torch.eye(F.shape[1]).expand(len(F), -1, -1)
            alternating = (-1.0) ** torch.arange(n).diag_embed() * eye
            return {"indefinite": alternating, "negative": -eye, "nan": eye * torch.nan}[row_metric]

        def basis():
            return wpca.weighted_pca(collect(best_model, tokens, row_metric=metric)[HOOK])

        message = "gave NaN or infinity" if row_metric == "nan" else "is not positive semi-definite"
        with pytest.raises(ValueError, match=message):
            basis()

    @pytest.mark.parametrize("make", [wpca.sampled_token_loss, wpca.logit_probe])
    def test_seeds(self, make):
        for wrong in (1.5, "x", None):
            with pytest.raises(ValueError, match="expected a whole number"):
                make(seed=wrong)
        with pytest.raises(ValueError, match="seed is -1; expected at least 0"):
            make(seed=-1)


class TestNonFinite:
    def poison(self, model, name, tokens, number, backward=False):
        calls = []

        def hook(tensor, hook):
            calls.append(1)
            # Ahead of the batches there is one pass that sees who reads what.
            if len(calls) - 2 != number:
                return tensor
            if backward:
                tensor = tensor * 1.0
                tensor.register_hook(lambda g: g * float("inf"))
                return tensor
            return tensor * float("nan")

        with model.hooks(fwd_hooks=[(name, hook)]):
            return collect(model, tokens, ["blocks.0.hook_resid_post", HOOK], batch_size=4)

    def test_activations_name_the_hook_point_and_the_batch(self, model, tokens):
        with pytest.raises(
            wpca.NonFiniteError, match=f"activations at .*{HOOK}.* in batch 1"
        ) as caught:
            self.poison(model, "blocks.1.hook_mlp_out", tokens, 1)
        kept, first = caught.value.collection[HOOK], collect(model, tokens[:4])[HOOK]
        assert kept.n_tokens == first.n_tokens
        assert torch.allclose(kept.weighted.second, first.weighted.second, rtol=1e-4)

    def test_gradients_too(self, model, tokens):
        with pytest.raises(wpca.NonFiniteError, match="gradients at hook point .* in batch 2"):
            self.poison(model, "blocks.2.hook_mlp_out", tokens, 2, backward=True)


class TestAblation:
    @pytest.fixture
    def basis(self, best_model, tokens):
        return wpca.pca(collect(best_model, tokens)[HOOK])

    def curves(self, model, tokens, basis, hook_point=HOOK, **options):
        return wpca.ablation_curves(
            model, tokens, {"pca": basis}, hook_point, progress=False, **options
        )

    @pytest.mark.parametrize("ranks", [[65], []])
    def test_ranks_outside(self, best_model, tokens, basis, ranks):
        with pytest.raises(ValueError, match=r"are outside 0\.\.64"):
            self.curves(best_model, tokens, basis, ranks=ranks)
        with pytest.raises(ValueError, match=r"are outside 0\.\.8"):
            self.curves(best_model, tokens, basis.truncate(8), ranks=[9])

    @pytest.mark.parametrize(
        ("ranks", "message"),
        [
            ([-1, 3], "One of ranks is -1; expected at least 0"),
            ([2.7], "One of ranks is 2.7; expected a whole number"),
            (["8"], "One of ranks is '8'; expected a whole number"),
            (8, "ranks is 8; expected a list of whole numbers"),
        ],
    )
    def test_ranks_that_are_none(self, best_model, tokens, basis, ranks, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            self.curves(best_model, tokens, basis, ranks=ranks)

    def test_a_rank_of_a_basis(self, basis):
        for use in (basis.truncate, basis.hook, lambda k: basis.project(torch.zeros(64), k)):
            with pytest.raises(ValueError, match=r"The rank is 2\.7; expected a whole number"):
                use(2.7)
        assert basis.truncate(np.int64(3)).n_components == 3

    def test_bases_that_are_none(self, best_model, tokens, basis):
        with pytest.raises(TypeError, match="bases is a Tensor; expected a Basis, a list"):
            wpca.ablation_curves(best_model, tokens, basis.encoder, HOOK)
        with pytest.raises(TypeError, match="bases holds a Tensor; expected a Basis, a list"):
            wpca.ablation_curves(best_model, tokens, {"a": basis, "b": basis.encoder}, HOOK)

    def test_another_width(self, best_model, tokens, basis):
        name = "blocks.1.mlp.hook_post"
        with pytest.raises(ValueError, match=r"do not fit this basis, which takes \[\.\.\., 64\]"):
            self.curves(best_model, tokens, basis, name, anywhere=True)

    def test_another_place_or_model(self, best_model, mlp, tokens, basis):
        other = "blocks.2.hook_resid_post"
        with pytest.raises(ValueError, match=f"made at '{HOOK}'.*used at '{other}'.*anywhere=True"):
            self.curves(best_model, tokens, basis, other)
        assert self.curves(best_model, tokens, basis, other, anywhere=True).ranks

    def test_the_same_basis_serves_both_classes(self, tokens, basis):
        bridge = embedded.load_model("TransformerBridge")
        assert self.curves(bridge, tokens, basis, ranks=[8]).ranks == [8]

    def test_no_bases_and_unknown_scores(self, best_model, tokens, basis):
        with pytest.raises(ValueError, match="No bases were given"):
            wpca.ablation_curves(best_model, tokens, {}, HOOK, progress=False)
        with pytest.raises(ValueError, match="expected 'loss', 'kl' or a callable"):
            self.curves(best_model, tokens, basis, score="accuracy")
        with pytest.raises(ValueError, match="The score gave .*; expected one scalar per sequence"):
            self.curves(best_model, tokens, basis, score=lambda run: run.output)

    def test_an_attention_pattern(self, best_model, tokens, basis):
        with pytest.raises(ValueError, match="attention pattern"):
            self.curves(best_model, tokens, basis, "blocks.1.attn.hook_pattern", anywhere=True)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            "lost",
            r"is 'lost'; expected a callable \(run\) -> \[batch\], or one of 'loss', 'fisher'",
        ),
        (wpca.sampled_token_loss, r"the class sampled_token_loss; .* sampled_token_loss\(…\)"),
        ({"a": None}, "The objective is None; expected a callable"),
    ],
)
def test_what_is_no_objective(model, tokens, objective, message):
    with pytest.raises(TypeError, match=message):
        wpca.collect(model, tokens, "blocks.1.hook_resid_post", objective=objective)


def test_a_model_whose_own_score_is_nan(model, tokens):
    name = "blocks.1.hook_resid_post"
    m = wpca.collect(model, tokens, name, objective=None, progress=False)[name]
    with pytest.raises(ValueError, match="score of the unablated model is NaN in batch 1"):
        wpca.ablation_curves(
            model, tokens[:4], {"pca": wpca.pca(m)}, name, batch_size=2, progress=False,
            score=lambda run: torch.where(run.sequence_index > 2, torch.nan, 1.0),
        )  # fmt: skip


@pytest.mark.parametrize("given", [None, 3])
def test_hook_points_that_are_none(model, tokens, given):
    with pytest.raises(
        TypeError, match=f"hook_points is {given}; expected a name, several, or a pred"
    ):
        wpca.collect(model, tokens, given, progress=False)


def test_a_folder_is_no_file(tmp_path):
    for load in (wpca.Basis.load, wpca.Collection.load):
        with pytest.raises(ValueError, match="is a folder: pass a file written by"):
            load(tmp_path)


class TestNumbersThatAreNone:
    @pytest.fixture(scope="class")
    def curves(self, best_model, tokens):
        name = "blocks.1.hook_resid_post"
        m = wpca.collect(best_model, tokens, name, objective=None, progress=False)[name]
        bases = {"pca": wpca.pca(m), "random": wpca.random_basis(m)}
        return wpca.ablation_curves(best_model, tokens, bases, name, ranks=[8, 16], progress=False)

    def test_a_level_is_a_share(self, curves):
        for level in (95, 0, 1):
            with pytest.raises(
                ValueError, match=f"level is {level}; expected a share between 0 and 1"
            ):
                curves.excess("pca", level=level)

    def test_ranks_are_several(self, curves):
        with pytest.raises(ValueError, match="ranks is 8; expected a list of whole numbers"):
            curves.relative_excess("random", ranks=8)

    @pytest.mark.parametrize(
        ("given", "what"),
        [
            (np.zeros(64), "a ndarray"),
            ([0.0] * 64, "a list"),
            (torch.tensor(1.0), "a single number"),
        ],
    )
    def test_activations_are_a_tensor(self, best_model, tokens, given, what):
        name = "blocks.1.hook_resid_post"
        m = wpca.collect(best_model, tokens, name, objective=None, progress=False)[name]
        for use in (wpca.pca(m).encode, wpca.pca(m).project):
            with pytest.raises(
                TypeError, match=f"The activations are {what}; expected a torch tensor"
            ):
                use(given)
