"""Models that are offloaded, compiled, or have hook points switched off."""

import accelerate
import families
import pytest
import torch
import transformers
from conftest import KINDS
from formulas import divergences, next_token_losses, outer_products, reconstructed

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.feature_cards.direct_logits import direct_logits
from tl_weighted_pca.models.frozen import device_of

HOOK = "blocks.1.hook_resid_post"


@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_model_gives_what_a_whole_one_does(kind, monkeypatch):
    def offload(model):
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))

    if kind == "HookedTransformer":
        whole, model = families.hooked("llama"), offload(families.hooked("llama"))
    else:
        whole = families.bridged("Llama")
        save = transformers.LlamaForCausalLM.save_pretrained

        def saved_then_offloaded(model, folder):
            save(model, folder)
            offload(model.model)  # without lm_head, to which TransformerLens 3.9 adds a bias

        monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", saved_then_offloaded)
        model = families.bridged("Llama")
    assert any(parameter.is_meta for parameter in model.parameters())
    assert device_of(model) == torch.device("cpu")
    x = families.tokens()
    ours, theirs = (wpca.collect(each, x, HOOK, progress=False)[HOOK] for each in (model, whole))
    for a, b in ((ours.activation, theirs.activation), (ours.gradient, theirs.gradient)):
        assert torch.allclose(a.second, b.second, rtol=1e-9)


def test_a_compiled_hooked_transformer_is_told_apart(tokens):
    if "HookedTransformer" not in KINDS:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    model = embedded.load_model("HookedTransformer")
    with pytest.raises(ValueError, match=r"the model is compiled.*model\._orig_mod"):
        wpca.collect(torch.compile(model, backend="eager"), tokens[:2], HOOK, progress=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "switch"),
    [("attn.hook_result", "use_attn_result"), ("hook_attn_in", "use_attn_in"),
     ("hook_q_input", "use_split_qkv_input"), ("hook_mlp_in", "use_hook_mlp_in")],
)  # fmt: skip
def test_a_hook_point_that_is_switched_off_names_its_switch(kind, name, switch, tokens):
    model = embedded.load_model(kind)
    with pytest.raises(ValueError, match=rf"set_{switch}\(True\) first"):
        wpca.collect(model, tokens[:2], f"blocks.1.{name}", progress=False)


@pytest.fixture(scope="module", params=KINDS)
def fewer_out(request):
    """Models that predict only the first 30 of the 50 tokens that they read."""
    sizes = {"n_layers": 2, "d_model": 16, "n_ctx": 8, "d_head": 4, "n_heads": 4, "d_mlp": 24, "d_vocab": 50,
             "d_vocab_out": 30, "act_fn": "gelu", "normalization_type": "LN", "seed": 0}  # fmt: skip
    if request.param == "HookedTransformer":
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        return HookedTransformer(HookedTransformerConfig(**sizes, device="cpu"))
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_native(sizes)
    assert model(torch.tensor([[1]])).shape[-1] == 30
    return model


class TestAModelThatPredictsFewerTokensThanItReads:
    few, many = families.tokens(4, vocabulary=30), families.tokens(4)

    def of(self, model, tokens, objective=wpca.next_token_loss):
        options = {"objective": objective, "progress": False}
        return wpca.collect(model, tokens, HOOK, **options)[HOOK]

    def test_the_next_token_loss_is_of_what_it_predicts(self, fewer_out):
        pairs = families.autograd(fewer_out, self.few, HOOK)
        found = self.of(fewer_out, self.few).gradient.second
        torch.testing.assert_close(found, outer_products(pairs[1].double()), rtol=1e-4, atol=1e-7)
        with pytest.raises(ValueError, match=r"token \d+, but the model predicts only 0..29"):
            self.of(fewer_out, self.many)

    def test_labels_are_sampled_of_what_it_predicts(self, fewer_out):
        seen = []

        def probed(run):
            seen.append(run.output.shape)
            return wpca.sampled_token_loss()(run)

        probed.name = "probed"
        assert self.of(fewer_out, self.many, probed).gradient.second.trace() > 0
        assert seen[0][-1] == 30

    @pytest.mark.parametrize("score", ["loss", "kl"])
    def test_scores_are_of_what_it_predicts_or_refused(self, fewer_out, score):
        basis = wpca.pca(self.of(fewer_out, self.few))
        options = {"ranks": [5], "score": score, "progress": False}
        curves = wpca.ablation_curves(fewer_out, self.few, basis, **options)

        def edit(f, hook):
            return reconstructed(f, basis, 5).to(f.dtype)

        with torch.no_grad():
            logits = fewer_out(self.few)
            with fewer_out.hooks(fwd_hooks=[(HOOK, edit)]):
                edited = fewer_out(self.few)
        by_hand = (
            next_token_losses(edited, self.few) if score == "loss" else divergences(logits, edited)
        )
        assert float(curves.scores["pca"][0]) == pytest.approx(float(by_hand.mean()), rel=1e-4)
        if score == "loss":
            with pytest.raises(ValueError, match=r"the model predicts only 0..29"):
                wpca.ablation_curves(fewer_out, self.many, basis, **options)
        else:
            wpca.ablation_curves(fewer_out, self.many, basis, **options)

    def test_cards_promote_what_it_predicts(self, fewer_out):
        basis = wpca.pca(self.of(fewer_out, self.few))
        fewer_out.tokenizer = embedded.load_model("TransformerBridge").tokenizer
        found = wpca.cards(fewer_out, self.few, basis, n=2, progress=False)
        logits = direct_logits(fewer_out, HOOK, basis.decoder[:2])
        assert logits.shape == (2, 30)
        for card, row in zip(found, logits, strict=True):
            words = [word for word, _ in card.promoted]
            assert words[0].strip() == fewer_out.tokenizer.decode([int(row.argmax())]).strip()
        with pytest.raises(ValueError, match=r"the model predicts only 0..29"):
            wpca.cards(fewer_out, self.many, basis, n=2, progress=False)
