"""`use_linalg_svd`: on models of every kind, and unnoticed by TransformerLens."""

import asyncio
import gc
import importlib
import threading

import pytest
import torch
import transformer_lens
import transformers
from transformer_lens import SVDInterpreter
from transformer_lens.FactoredMatrix import FactoredMatrix as Theirs
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.weight_processing import ProcessWeights

from tl_weighted_pca.factored import FactoredMatrix, use_linalg_svd

try:
    HookedTransformer = importlib.import_module(
        "transformer_lens.HookedTransformer"
    ).HookedTransformer
except ModuleNotFoundError:  # TransformerLens 4
    HookedTransformer = None

SIZES = dict(
    n_layers=2, d_model=32, n_ctx=8, d_head=8, n_heads=4, d_vocab=50, act_fn="gelu", seed=0
)


def _hooked(tmp_path_factory, **more):
    if HookedTransformer is None:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    return HookedTransformer(transformer_lens.HookedTransformerConfig(**SIZES, **more))


def _llama(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        intermediate_size=48,
        vocab_size=50,
        max_position_embeddings=8,
    )
    model = transformers.LlamaForCausalLM(config)
    path = str(tmp_path_factory.mktemp("llama"))
    model.save_pretrained(path)
    vocabulary = {f"t{i}": i for i in range(50)}
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="t1", eos_token="t2", pad_token="t3"
    ).save_pretrained(path)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    bridge = TransformerBridge.boot_transformers(
        path, hf_model=model, tokenizer=tokenizer, device="cpu"
    )
    try:
        _ = bridge.OV
    except RuntimeError as error:
        pytest.skip(f"TransformerLens 3.0 has no OV of grouped queries: {error}")
    return bridge


def _native():
    if not hasattr(TransformerBridge, "boot_native"):
        pytest.skip("TransformerLens 3.0 has no native bridge")
    return TransformerBridge.boot_native(dict(SIZES))


MODELS = {
    "HookedTransformer": _hooked,
    "HookedTransformer, grouped": lambda tmp: _hooked(tmp, n_key_value_heads=2),
    "bridge": lambda tmp: _native(),
    "bridge, grouped": _llama,
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    return MODELS[request.param](tmp_path_factory)


def _is_patched() -> bool:
    gc.collect()
    return "OV" in vars(
        importlib.import_module(
            "transformer_lens.model_bridge.generalized_components.attention"
        ).AttentionBridge
    )


@pytest.fixture(autouse=True)
def _leaves_nothing_behind():
    yield
    assert not _is_patched()


class TestOnAModel:
    def test_as_written_in_a_notebook(self, model):
        with use_linalg_svd():
            OV = model.OV
            U, S, V_T = model.OV.svd()
            assert torch.dist(model.OV, U @ S.diag_embed() @ V_T) < 1e-4
            U, S, V_T = OV[0, 0].svd()
            assert torch.dist(OV[0, 0], U @ torch.diag(S) @ V_T) < 1e-4

    @pytest.mark.parametrize("circuit", ["OV", "QK"])
    def test_circuits_hold_the_same_matrix(self, model, circuit):
        before = getattr(model, circuit)
        with use_linalg_svd():
            after = getattr(model, circuit)
            assert type(after) is FactoredMatrix
            assert torch.equal(after.A, before.A)
            assert torch.equal(after.B, before.B)
        assert type(getattr(model, circuit)) is Theirs

    @pytest.mark.parametrize("circuit", ["OV", "QK"])
    def test_blocks_have_their_share_of_it(self, model, circuit):
        with use_linalg_svd():
            for layer, block in enumerate(model.blocks):
                part = getattr(block.attn, circuit)
                assert type(part) is FactoredMatrix
                torch.testing.assert_close(part.AB, getattr(model, circuit)[layer].AB)

    @pytest.mark.parametrize("circuit", ["OV", "QK"])
    def test_blocks_are_as_before_when_off(self, model, circuit):
        attention = model.blocks[0].attn
        assert hasattr(attention, circuit) == (not isinstance(model, TransformerBridge))
        with use_linalg_svd():
            assert hasattr(attention, circuit)
            with use_linalg_svd(False):
                assert hasattr(attention, circuit) == (not isinstance(model, TransformerBridge))
        assert hasattr(attention, circuit) == (not isinstance(model, TransformerBridge))


class TestTransformerLensNeverNotices:
    """Bit for bit the same, on or off."""

    @pytest.mark.parametrize("mode", ["Q", "K", "V"])
    def test_composition_scores(self, model, mode):
        before = model.all_composition_scores(mode)
        with use_linalg_svd():
            after = model.all_composition_scores(mode)
        before, after = (getattr(x, "scores", x) for x in (before, after))
        assert torch.equal(before, after)

    def test_svd_interpreter(self, model):
        try:
            before = SVDInterpreter(model).get_singular_vectors("OV", 1, 4, head_index=2)
        except (KeyError, IndexError):
            pytest.skip("SVDInterpreter does not know grouped queries")
        with use_linalg_svd():
            after = SVDInterpreter(model).get_singular_vectors("OV", 1, 4, head_index=2)
        assert torch.equal(before, after)

    def test_decompose_head(self, model):
        svd_circuits = pytest.importorskip("transformer_lens.tools.analysis.svd_circuits")
        before = svd_circuits.decompose_head(model, 1, 3)
        with use_linalg_svd():
            after = svd_circuits.decompose_head(model, 1, 3)
        for name in ("OV", "QK"):
            for part in "USV":
                x, y = getattr(getattr(before, name), part), getattr(getattr(after, name), part)
                assert torch.equal(x, y)

    def test_refactored_weights(self, tmp_path_factory):
        model = _hooked(tmp_path_factory)

        def refactor():
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            return ProcessWeights.refactor_factored_attn_matrices(weights, model.cfg)

        before = refactor()
        with use_linalg_svd():
            after = refactor()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_its_own_class_is_untouched(self):
        A, B = torch.randn(5, 3), torch.randn(3, 4)
        with use_linalg_svd():
            M = transformer_lens.FactoredMatrix(A, B)
            assert type(M) is Theirs
            U, S, V = M.svd()
            torch.testing.assert_close(U * S @ V.T, A @ B)
            assert type(M @ B.T) is Theirs

    def test_its_code_gets_its_class(self, model):
        """Code in a module of TransformerLens's, on our behalf: what the caller's frame decides."""
        namespace = {"__name__": "transformer_lens.anything"}
        exec("def read(model): return model.OV", namespace)
        with use_linalg_svd():
            assert type(namespace["read"](model)) is Theirs
            assert type(model.OV) is FactoredMatrix


@pytest.fixture(scope="module")
def bridge():
    return _native()


class TestTheSwitch:
    """torch.set_grad_enabled's idiom."""

    @staticmethod
    def is_on(bridge) -> bool:
        return type(bridge.OV) is FactoredMatrix

    def test_as_a_function(self, bridge):
        use_linalg_svd()
        assert self.is_on(bridge)
        use_linalg_svd(False)
        assert not self.is_on(bridge)
        use_linalg_svd(True)
        assert self.is_on(bridge)
        use_linalg_svd(False)

    def test_nests(self, bridge):
        with use_linalg_svd():
            with use_linalg_svd(False):
                assert not self.is_on(bridge)
                with use_linalg_svd():
                    assert self.is_on(bridge)
                assert not self.is_on(bridge)
            assert self.is_on(bridge)
        assert not self.is_on(bridge)

    def test_restores_after_an_exception(self, bridge):
        with pytest.raises(KeyboardInterrupt), use_linalg_svd():
            raise KeyboardInterrupt
        assert not self.is_on(bridge)

    def test_as_a_decorator(self, bridge):
        @use_linalg_svd()
        def inside():
            return self.is_on(bridge)

        assert not self.is_on(bridge)
        assert inside()
        assert not self.is_on(bridge)
        assert inside.__name__ == "inside"

    def test_generators_have_it_on_while_they_run(self, bridge):
        @use_linalg_svd()
        def inside():
            yield self.is_on(bridge)
            yield self.is_on(bridge)

        found = []
        for on in inside():
            found.append((on, self.is_on(bridge)))
        assert found == [(True, False), (True, False)]

    def test_is_entered_again(self, bridge):
        for mode in (True, False):
            switch = use_linalg_svd(mode)
            use_linalg_svd(False)
            for _ in range(2):
                with switch:
                    assert self.is_on(bridge) is mode
                assert not self.is_on(bridge)

    def test_needs_its_parentheses(self, bridge):
        with pytest.raises(TypeError, match=r"write @use_linalg_svd\(\)"):
            use_linalg_svd(lambda: None)
        assert not self.is_on(bridge)

    def test_threads_are_apart(self, bridge):
        seen = {}

        def other():
            seen["at the start"] = self.is_on(bridge)
            use_linalg_svd()
            seen["after turning on"] = self.is_on(bridge)

        with use_linalg_svd():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            assert self.is_on(bridge)
        assert seen == {"at the start": False, "after turning on": True}
        assert not self.is_on(bridge)

    def test_tasks_are_apart(self, bridge):
        async def task(mode):
            with use_linalg_svd(mode):
                for _ in range(3):
                    await asyncio.sleep(0)
                    assert self.is_on(bridge) == mode

        async def both():
            await asyncio.gather(task(True), task(False))

        asyncio.run(both())

    def test_a_task_inherits_and_may_switch_off_for_itself(self, bridge):
        async def off():
            use_linalg_svd(False)
            assert not self.is_on(bridge)

        async def outer():
            with use_linalg_svd():
                await asyncio.create_task(off())
                assert self.is_on(bridge)

        asyncio.run(outer())


def test_patches_are_taken_back():
    originals = {name: vars(TransformerBridge)[name] for name in ("OV", "QK")}
    with use_linalg_svd():
        assert _is_patched()
        assert vars(TransformerBridge)["OV"] is not originals["OV"]
        thread = threading.Thread(target=use_linalg_svd)  # dies with the mode on
        thread.start()
        thread.join()
    assert not _is_patched()
    assert {name: vars(TransformerBridge)[name] for name in originals} == originals
