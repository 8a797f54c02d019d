"""Objectives against exact enumeration, and their seeds."""

import functools
import inspect

import pytest
import torch
from conftest import HookedRootModule, HookPoint
from fancy_einsum import einsum
from formulas import relative

import tl_weighted_pca as wpca
from tl_weighted_pca.models.run import Run
from tl_weighted_pca.objectives.losses import objective_name, target_losses
from tl_weighted_pca.support.randomness import signs, uniform

HOOK = "hook_hidden"


def tiny_language_model():
    """Token ids -> logits over eleven words through one hidden hook point, causal by construction."""

    class Model(HookedRootModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.embed = torch.nn.Embedding(11, 4).double()
            self.head = torch.nn.Linear(4, 11).double()
            self.hook_hidden, self.hook_logits = HookPoint(), HookPoint()
            self.setup()

        def forward(self, tokens, attention_mask=None):
            before = self.embed(tokens)
            keep = 1 if attention_mask is None else attention_mask[..., None]
            hidden = self.hook_hidden((before * keep).cumsum(1).tanh())
            return self.hook_logits(self.head(hidden))

    return Model()


@pytest.fixture
def tiny():
    return tiny_language_model()


@pytest.fixture
def data():
    return torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(0))


def hidden(tiny, data):
    return tiny.embed(data).cumsum(1).tanh().detach()


def exact_fisher(tiny, data):
    """Σ_s E_{y ~ p(·|x_≤s)}[g gᵀ], each label of the vocabulary in turn; here g_s = Wᵀ(p − e_y)."""
    W = tiny.head.weight.detach()
    p = tiny(data).softmax(-1).detach()
    score = einsum("y v, v d -> y d", torch.eye(11).double(), W)[None, None] - (p @ W)[:, :, None]
    return einsum("b s y, b s y i, b s y j -> i j", p, score, score)


def test_sampled_labels_converge_to_the_fisher_as_one_over_root_n(tiny, data):
    exact = exact_fisher(tiny, data)

    def error(n, seed):
        objective = wpca.sampled_token_loss(n, seed=seed)
        got = wpca.collect(tiny, data, HOOK, objective=objective, progress=False)
        return relative(got[HOOK].gradient.second, exact)

    few = sum(error(4, seed) for seed in range(12)) / 12
    many = sum(error(256, seed) for seed in range(12)) / 12
    assert many < 0.03
    assert 5 < few / many < 12  # √64 = 8


def test_probes_converge_to_the_agop(tiny, data):
    W = tiny.head.weight.detach()
    exact = 30 * W.T @ W  # Σ JᵀJ over 30 positions, J = W at each

    def error(n, seed):
        objective = wpca.logit_probe(n, seed=seed)
        got = wpca.collect(tiny, data, HOOK, objective=objective, progress=False)
        return relative(got[HOOK].gradient.second, exact)

    few = sum(error(4, seed) for seed in range(12)) / 12
    many = sum(error(256, seed) for seed in range(12)) / 12
    assert many < 0.03
    assert 5 < few / many < 12


def test_probes_of_a_hook_point_see_its_basis(tiny, data):
    m = wpca.collect(tiny, data, "hook_logits", progress=False)["hook_logits"]
    basis = wpca.pca(m).truncate(3)
    objective = wpca.hook_probe("hook_logits", basis, n_probes=500)
    got = wpca.collect(tiny, data, HOOK, objective=objective, progress=False)[HOOK]
    J = basis.encoder.T @ tiny.head.weight.detach()
    assert relative(got.gradient.second / got.n_tokens, J.T @ J) < 0.05
    plain = wpca.hook_probe("hook_logits", n_probes=500)
    got = wpca.collect(tiny, data, HOOK, objective=plain, progress=False)[HOOK]
    W = tiny.head.weight.detach()
    assert relative(got.gradient.second / got.n_tokens, W.T @ W) < 0.05


def test_names_are_the_same_in_every_process_and_tell_bases_apart(tiny, data):
    class Own:
        def __call__(self, run):
            return wpca.next_token_loss(run)

    def scaled(run, by):
        return by * wpca.next_token_loss(run)

    assert objective_name(wpca.next_token_loss) == "next_token_loss"
    assert objective_name(Own()) == "Own"
    assert objective_name(functools.partial(scaled, by=2)) == "scaled(by=2)"
    assert objective_name(wpca.logit_probe(2)) == "logit_probe(n_probes=2, seed=0)"
    m = wpca.collect(tiny, data, "hook_logits", progress=False)["hook_logits"]
    one, same, other = (wpca.pca(m).truncate(k) for k in (3, 3, 2))
    names = [objective_name(wpca.hook_probe("hook_logits", basis)) for basis in (one, same, other)]
    assert names[0] == names[1] != names[2]
    assert objective_name(wpca.hook_probe("hook_logits")).startswith(
        "hook_probe(hook_point='hook_logits', basis=None"
    )


def test_a_probe_of_half_precision_logits_does_not_overflow():
    logits = torch.full((1, 30, 5000), -200.0, dtype=torch.float16, requires_grad=True)
    run = Run(logits, torch.zeros(1, 30, dtype=torch.long), None, torch.arange(1))
    wide = Run(logits.detach().double(), run.inputs, None, run.sequence_index)
    value = wpca.logit_probe(4, seed=3)(run)
    assert value.abs().max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(value.double(), wpca.logit_probe(4, seed=3)(wide), rtol=1e-5, atol=1)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.dtype == torch.float16 and set(gradient.unique().tolist()) <= {-4, -2, 0, 2, 4}


def test_a_probe_of_what_lies_upstream_has_no_gradient(tiny, data):
    with pytest.raises(
        ValueError, match="'hook_logits' carries no gradient|carries no gradient to"
    ):
        wpca.collect(
            tiny, data, "hook_logits", objective=wpca.hook_probe("hook_hidden"), progress=False
        )
    with pytest.raises(ValueError, match="no hook point 'hook_hiden': the nearest are hook_hidden"):
        wpca.collect(tiny, data, HOOK, objective=wpca.hook_probe("hook_hiden"), progress=False)


@pytest.mark.parametrize(
    "objective",
    [
        wpca.next_token_loss,
        wpca.sampled_token_loss(3, seed=5),
        wpca.logit_probe(2, seed=5),
        wpca.hook_probe("hook_logits", n_probes=2, seed=5),
    ],
)
def test_batches_and_padding_change_no_draw(tiny, data, objective):
    lengths = [5, 3, 4, 5, 2, 5]
    alone = [{"input_ids": row[None, :n]} for row, n in zip(data, lengths, strict=True)]
    whole = wpca.collect(tiny, alone, HOOK, objective=objective, progress=False)[HOOK]
    for side in ("left", "right"):
        padded, mask = torch.zeros(6, 5, dtype=torch.long), torch.zeros(6, 5, dtype=torch.long)
        for i, n in enumerate(lengths):
            place = slice(5 - n, 5) if side == "left" else slice(n)
            padded[i, place], mask[i, place] = data[i, :n], 1
        for size in (6, 4):
            batches = [
                {"input_ids": t, "attention_mask": m}
                for t, m in zip(padded.split(size), mask.split(size), strict=True)
            ]
            got = wpca.collect(tiny, batches, HOOK, objective=objective, progress=False)[HOOK]
            assert relative(got.gradient.second, whole.gradient.second) < 1e-9
            assert relative(got.weighted.second, whole.weighted.second) < 1e-9


def test_other_seeds_are_other_draws(tiny, data):
    def second(seed):
        objective = wpca.sampled_token_loss(seed=seed)
        got = wpca.collect(tiny, data, HOOK, objective=objective, progress=False)
        return got[HOOK].gradient.second

    assert torch.equal(second(1), second(1))
    assert relative(second(1), second(2)) > 0.01


def test_the_loss_is_that_of_pytorch(best_model, tokens):
    run = Run(best_model(tokens).detach(), tokens, None, torch.arange(10))
    expected = torch.nn.functional.cross_entropy(
        run.output[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    assert torch.allclose(target_losses(run).flatten(), expected)
    assert torch.allclose(wpca.next_token_loss(run), expected.view(10, -1).sum(1))


@pytest.mark.parametrize("make", [wpca.sampled_token_loss, wpca.logit_probe])
def test_counts_below_one(make):
    with pytest.raises(ValueError, match="is 0; expected at least 1"):
        make(0)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("loss", wpca.next_token_loss), ("fisher", wpca.sampled_token_loss()),
        ("logits", wpca.logit_probe()),
    ],
)  # fmt: skip
def test_a_name_is_its_objective_wherever_one_is_taken(best_model, tokens, name, same):
    place = "blocks.2.hook_resid_post"
    options = {"progress": False, "batch_size": 5}
    both = wpca.collect(best_model, tokens, place, objective={"a": name, "b": same}, **options)
    assert both["a"][place].provenance == both["b"][place].provenance
    assert torch.equal(both["a"][place].gradient.second, both["b"][place].gradient.second)
    alone = wpca.collect(best_model, tokens, place, objective=name, **options)
    assert torch.equal(alone[place].gradient.second, both["a"][place].gradient.second)
    named, called = (
        next(wpca.stream_pairs(best_model, tokens, place, objective=each))[place]
        for each in (name, same)
    )
    assert torch.equal(named.gradients, called.gradients)
    basis = wpca.pca(alone[place])
    metrics = [
        wpca.path_metric(best_model, tokens, basis, ranks=[8], objective=each, **options)
        for each in (name, same)
    ]
    assert torch.equal(*(metric.matrix for metric in metrics))
    assert metrics[0].provenance == metrics[1].provenance
    if name != "loss":
        predicted = [
            wpca.ablation_curves(
                best_model, tokens, basis, ranks=[8], score="kl", predicted=each, **options
            ).predicted_per_sequence
            for each in (name, same)
        ]
        for one, other in zip(*(each.values() for each in predicted), strict=True):
            assert torch.equal(one, other)


def defaults(name):
    """What the public functions and the commands have as a default."""
    public = {n: getattr(wpca, n) for n in wpca.__all__}
    found = {}
    for n, each in public.items():
        if inspect.isfunction(each) and (p := inspect.signature(each).parameters.get(name)):
            found[n] = p.default
    return found


def test_what_is_said_once_is_said_alike_everywhere():
    sizes = defaults("batch_size")
    del sizes["joint_pca"]  # of pairs, not of sequences
    assert set(sizes.values()) == {16}
    assert set(defaults("progress").values()) == {True}
    assert set(defaults("data").values()) == {inspect.Parameter.empty}
    assert not defaults("batches") and not defaults("tokens")
    for name in ("batch_size", "progress", "data"):
        assert {"collect", "ablation_curves", "cards"} <= {*defaults(name)}


class TestRandomness:
    def test_uniform_is_uniform_and_signs_are_fair(self):
        u = uniform(7, torch.arange(400)[:, None], torch.arange(50)).flatten().sort().values
        steps = torch.arange(1, 20_001) / 20_000
        assert float((u - steps).abs().max()) < 1.63 / 20_000**0.5  # Kolmogorov-Smirnov at 1%
        s = signs(7, torch.arange(400)[:, None], torch.arange(50))
        assert set(s.unique().tolist()) == {-1.0, 1.0}
        assert abs(float(s.mean())) < 0.03

    def test_neighbouring_counters_share_nothing(self):
        u = uniform(0, torch.arange(2000)[:, None], torch.arange(8)).double()
        correlation = torch.corrcoef(u.T)
        assert float((correlation - torch.eye(8).double()).abs().max()) < 0.1
        shifted = torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0]]))[0, 1]
        assert abs(float(shifted)) < 0.1
