"""T5 and its like are refused in one sentence, by all that takes a model.

TransformerLens 3.9 does not run one on the bridge; 4.3 feeds the decoder what the encoder reads, so that
the next-token loss would be of other tokens than the decoder predicts.
"""

import pytest
import torch
import transformers
from conftest import KINDS

import tl_weighted_pca as wpca

HOOK = "blocks.1.hook_resid_post"
X = torch.arange(3, 15).view(2, 6)
SIZES = {"d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}


@pytest.fixture(scope="module", params=KINDS)
def t5(request, best_model, tmp_path_factory):
    """An encoder and a decoder, in each class there is."""
    if request.param == "HookedTransformer":
        from transformer_lens import HookedEncoderDecoder, HookedTransformerConfig

        config = HookedTransformerConfig(
            n_layers=2, d_model=16, n_ctx=32, d_head=4, n_heads=4, d_mlp=24, d_vocab=50, act_fn="relu",
            normalization_type="RMS", positional_embedding_type="relative_positional_bias",
            relative_attention_max_distance=128, relative_attention_num_buckets=32, device="cpu",
            attention_dir="bidirectional", decoder_start_token_id=0,
        )  # fmt: skip
        return HookedEncoderDecoder(config, tokenizer=best_model.tokenizer)
    from transformer_lens.model_bridge import TransformerBridge

    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=4, **SIZES)
    model, folder = transformers.T5ForConditionalGeneration(config), tmp_path_factory.mktemp("t5")
    model.save_pretrained(folder)
    options = {"hf_model": model, "tokenizer": best_model.tokenizer, "device": "cpu"}
    return TransformerBridge.boot_transformers(str(folder), **options)


@pytest.fixture(scope="module")
def basis(best_model):
    return wpca.pca(wpca.collect(best_model, X, HOOK, progress=False)[HOOK])


@pytest.mark.parametrize(
    "use",
    [
        lambda t5, name, basis: wpca.collect(t5, X, name),
        lambda t5, name, basis: wpca.collect(t5, X, name, objective=None),
        lambda t5, name, basis: next(wpca.stream_pairs(t5, X, name)),
        lambda t5, name, basis: wpca.ablation_curves(t5, X, basis, name, anywhere=True),
        lambda t5, name, basis: wpca.optimize_basis(t5, X, basis),
        lambda t5, name, basis: wpca.path_metric(t5, X, basis),
        lambda t5, name, basis: wpca.cards(t5, X, basis, hook_point=name, anywhere=True),
        lambda t5, name, basis: wpca.dimension_map(t5, X, name, heldout=X),
        lambda t5, name, basis: wpca.local_interaction_basis(t5, X, name),
        lambda t5, name, basis: wpca.dictionary.train_dictionary(t5, X, name, n_features=8, n_tokens=4096),
        lambda t5, name, basis: wpca.feature_ansatz(t5, X),
    ],
    ids=[
        "collect", "activations", "stream_pairs", "ablation_curves", "optimize_basis", "path_metric", "cards",
        "dimension_map", "local_interaction_basis", "train_dictionary", "feature_ansatz",
    ],
)  # fmt: skip
def test_is_refused(t5, basis, use):
    before = t5.training
    with pytest.raises(TypeError, match=r"one stack of blocks") as caught:
        use(t5, list(t5.hook_dict)[-1], basis)
    assert "\n" not in str(caught.value)
    assert t5.training is before
