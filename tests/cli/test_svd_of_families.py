"""What `svd --head` says of tokens, on models whose attention reaches the stream in different ways."""

import families
import pytest
import torch
from command_line import run

import tl_weighted_pca as wpca
from tl_weighted_pca.cli.svd import _read
from tl_weighted_pca.feature_cards.token_text import TokenText, visible


def read(family):
    """The table of two directions of a head, and U, S and V_T."""
    model = families.built(family)
    model.tokenizer = wpca.embedded.load_model("TransformerBridge").tokenizer
    with wpca.use_linalg_svd(), torch.no_grad():
        found = model.OV.svd()
    return model, found, _read(model, "OV", found, 1, 2, 2, 3)


@pytest.mark.parametrize("family", ["Olmo2", "Gemma2"])
def test_past_a_norm_no_token_is_told(family, capsys):
    _, _, table = read(family)
    assert set(table["writes"]) == {"n/a"}
    assert "a norm lies between" in " ".join(capsys.readouterr().err.split())
    assert "n/a" not in set(table["looks for"])


@pytest.mark.parametrize("family", ["GPT2", "GPTJ", "Granite"])
def test_tokens_are_those_of_the_stream_pushed_along_a_direction(family, capsys):
    """The final norm without its bias, then the unembedding: of the direction alone."""
    model, found, table = read(family)
    for i in range(2):
        large = 1e4 * found.V_T[1, 2, i][None, None]
        with torch.no_grad():
            logits = ((model.ln_final(large) - model.ln_final(-large)) @ model.W_U)[0, 0]
        for sign, row in ((1, 2 * i), (-1, 2 * i + 1)):
            top = TokenText(model.tokenizer)((sign * logits).topk(3).indices)
            assert [visible(word) for word in top] == table["writes"][row].split(), (i, sign)
    assert "Note" not in capsys.readouterr().err


@pytest.mark.parametrize("family", ["DeepseekV3", "Mamba"])
def test_a_model_without_such_weights_is_told_in_a_sentence(family, monkeypatch, tmp_path):
    model = families.built(family)
    monkeypatch.setattr("tl_weighted_pca.cli.model_options.ModelOptions.load", lambda *_: model)
    result = run("svd", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"The {type(model).__name__} has no OV of all heads" in result.stderr
    assert not (tmp_path / "out").exists()
