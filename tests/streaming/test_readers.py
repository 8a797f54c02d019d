"""The gradient at a hook point: of the tensor there, all readers counted, whatever is collected beside it.

As autograd, written out: a pass with a graph from the parameters on, the tensor's own `grad` after
`loss.backward()`, in float64, one hook point at a time. (Norms of some families compute in float32.)
"""

import random
from importlib.metadata import version

import families
import pytest
import torch
from conftest import HookedRootModule
from transformer_lens.hook_points import HookPoint

import tl_weighted_pca as wpca

pytestmark = pytest.mark.usefixtures("one_thread")

TransformerLens = version("transformer_lens")
QUICK = ["Bloom", "GPTJ", "Llama", "Olmo2", "OPT", "gpt2", "llama", "gpt-j"]


def compare(model, tokens, names, expected):
    (pairs,) = wpca.stream_pairs(model, tokens, names)
    for name in names:
        F, g = expected[name]
        assert torch.dist(pairs[name].activations, F) < 2e-5 * F.norm(), name
        assert torch.dist(pairs[name].gradients[0], g) < 2e-5 * g.norm(), (name, names)


@families.sweep(*QUICK)
def test_alone_and_in_any_company_it_is_autograd_s(family):
    model, tokens, chance = families.built(family), families.tokens(), random.Random(family)
    names = families.sound(family, families.distinct(model))
    if family in QUICK:
        # Those that share a tensor with others, and some that do not.
        shared = [n for n in names if n.startswith("blocks.1.") and n.endswith("hook_in")]
        names = [n for n in names if n in {*shared, *chance.sample(names, 16)}]
    expected = {name: families.autograd(model, tokens, name) for name in names}
    expected = {name: pair for name, pair in expected.items() if pair is not None}
    assert len(expected) >= 5
    for name in expected:
        compare(model, tokens, [name], expected)
    compare(model, tokens, list(expected)[::-1], expected)
    for _ in range(3):
        company = chance.sample(list(expected), chance.randint(2, len(expected)))
        compare(model, tokens, company, expected)


@pytest.mark.skipif(not TransformerLens.startswith("3.9"), reason="a fault of that version")
def test_a_hook_that_changes_the_model_by_looking_is_refused():
    """TransformerLens takes Nemotron's gains, kept as γ − 1, for γ as soon as a hook is there."""
    model, name = families.built("Nemotron"), "blocks.1.ln1.hook_normalized"
    with pytest.raises(ValueError, match=f"computes something else while a hook looks at {name}"):
        wpca.collect(model, families.tokens(), name, progress=False)


class Late(HookedRootModule):
    """Something without a hook point reads the hidden layer before its hook point does."""

    def __init__(self, skip: bool):
        super().__init__()
        self.first, self.second = torch.nn.Linear(5, 7).double(), torch.nn.Linear(7, 3).double()
        self.hook_in, self.hook_hidden, self.skip = HookPoint(), HookPoint(), skip
        self.setup()

    def forward(self, x):
        x = self.hook_in(x) if self.skip else x
        hidden = self.first(x).tanh()
        early = hidden.square()[..., :3]
        return self.second(self.hook_hidden(hidden)) + early


@pytest.mark.parametrize("skip", [True, False])
def test_readers_without_a_hook_point_count_too(skip):
    """The graph starts upstream, at another hook point or at the input."""
    model, x = Late(skip), torch.randn(4, 2, 5, dtype=torch.float64)
    hidden = model.first(x).tanh().detach().requires_grad_()
    (model.second(hidden) + hidden.square()[..., :3]).sum().backward()
    found = wpca.collect(
        model, x, "hook_hidden", objective=lambda run: run.output.sum((1, 2)), progress=False
    )["hook_hidden"]
    exact = torch.einsum("bsi,bsj->ij", hidden.grad, hidden.grad)
    torch.testing.assert_close(found.gradient.second, exact)
    assert not x.requires_grad


def test_what_is_read_before_all_hook_points_is_refused():
    class Embedded(Late):
        def forward(self, tokens):
            hidden = torch.nn.functional.embedding(tokens, self.first.weight.T)
            early = hidden.square()[..., :3]
            return self.second(self.hook_hidden(hidden)) + early

    x, model = torch.randint(0, 5, (4, 6)), Embedded(False)
    with pytest.raises(ValueError, match="'hook_hidden' is read before any hook point at which"):
        wpca.collect(model, x, "hook_hidden", objective=lambda run: run.output.sum((1, 2)))


class TestFilesOfEarlierVersions:
    """Where the graph started in place, at the hook point, it missed those who had read before."""

    name, other = "blocks.1.attn.v.hook_in", "blocks.1.hook_out"

    @pytest.fixture(scope="class")
    def llama(self):
        return families.built("Llama")

    def collected(self, model, **options):
        x = families.tokens(6)
        return wpca.collect(model, x, [self.name, self.other], batch_size=2, **options)

    def test_are_told_apart_where_the_gradients_differ(self, llama, tmp_path):
        import dataclasses

        new = self.collected(llama, progress=False)
        earlier = {
            name: dataclasses.replace(m, provenance=dataclasses.replace(m.provenance, readers=""))
            for name, m in new.items()
        }
        new.save(tmp_path / "new")
        new = wpca.Collection.load(tmp_path / "new")
        assert (new[self.other] + earlier[self.other]).n_tokens == 72
        with pytest.raises(ValueError, match="they differ in readers 'all' and 'some'"):
            new[self.name] + earlier[self.name]
        assert next(wpca.stream_pairs(llama, families.tokens(), self.name))[
            self.name
        ].provenance.agrees_with(new[self.name].provenance)

    def test_and_so_are_checkpoints(self, llama, tmp_path):
        from safetensors import safe_open
        from safetensors.torch import save_file

        path, x = tmp_path / "checkpoint", families.tokens(6)
        options = {"batch_size": 2, "progress": False, "checkpoint": path}
        for names in ([self.other], [self.name]):
            path.unlink(missing_ok=True)
            wpca.collect(llama, x[:4], names, **options)
            done = wpca.collect(llama, x[:4], names, **options)  # no batch is left to run
            assert done[names[0]].provenance.readers == ("all" if names == [self.name] else "")
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                metadata = {k: v for k, v in file.metadata().items() if k != "recounted"}
            save_file(tensors, path, metadata)
            if names == [self.other]:
                assert wpca.collect(llama, x, names, **options)[self.other].n_tokens == 36
        before = path.read_bytes()
        with pytest.raises(ValueError, match=f"earlier version, whose gradients at {self.name}"):
            wpca.collect(llama, x, [self.name], **options)
        assert path.read_bytes() == before
