"""The embedded model: it loads alike everywhere, and it learnt what its stories say."""

import contextlib
import math
import os
import subprocess
import sys

import pytest
import torch

from tl_weighted_pca import embedded
from tl_weighted_pca.embedded import vocabulary
from tl_weighted_pca.embedded.score import Bigram, score
from tl_weighted_pca.models.pretrained import load_pretrained

KINDS = ["TransformerBridge"]
# Not hasattr: TransformerLens 4 answers for the class it removed with an ImportError.
with contextlib.suppress(ImportError):
    from transformer_lens import HookedTransformer  # noqa: F401

    KINDS.insert(0, "HookedTransformer")


@pytest.fixture(scope="module")
def heldout():
    return embedded.stories("heldout")


# --- The tokenizer


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return embedded.load_model(request.param, device="cpu")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "slips"])
def slips(request):
    return request.param


def test_tokens_round_trip(model, heldout):
    for row in heldout.select(range(20)):
        tokens = model.to_tokens(row["text"], prepend_bos=True)
        assert tokens[0].tolist() == row["input_ids"][:-1]
        assert model.to_string(tokens[0, 1:]) == row["text"]
    assert model.to_str_tokens("One day, Tom had a zebra.") == [
        "<bos>", "One", " day", ",", " Tom", " had", " a", "<unk>", ".",
    ]  # fmt: skip
    padded = model.to_tokens(["One day", "One"])
    assert padded[1].tolist()[-1] == model.tokenizer.pad_token_id
    special = [
        getattr(model.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")
    ]
    assert special == [0, 1, 2, 3]


# --- The model


def _batch(split) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [torch.tensor(row) for row in split["input_ids"]]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=2)
    return tokens, tokens != 2


def test_model_is_as_stored(model):
    assert type(model).__name__ in KINDS
    assert not model.training
    assert model.cfg.n_layers >= 4
    assert model.cfg.d_model >= 64
    assert model.cfg.n_ctx == 128
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_hugging_face(kind, slips, heldout):
    from transformers import GPT2LMHeadModel

    folder = vocabulary.SLIPS_FOLDER if slips else vocabulary.MODEL_FOLDER
    reference = GPT2LMHeadModel.from_pretrained(folder, local_files_only=True)
    model = embedded.load_model(kind, device="cpu", slips=slips)
    tokens, real = _batch(heldout.select(range(16)))
    with torch.no_grad():
        expected = reference.eval()(tokens).logits[real]
        got = model(tokens)[real]
    assert (got - expected).abs().max() < 1e-4


def test_default_kind_is_the_best_available():
    assert type(embedded.load_model(device="cpu")).__name__ == KINDS[0]


def test_dtype():
    model = embedded.load_model(dtype=torch.float64, device="cpu")
    tokens = model.to_tokens("One day")
    assert model(tokens).dtype == torch.float64


def test_unavailable_kinds_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"'GPT2'.*HookedTransformer, TransformerBridge"):
        embedded.load_model("GPT2")
    monkeypatch.setattr("tl_weighted_pca.embedded.model._available", lambda: ["TransformerBridge"])
    with pytest.raises(ValueError, match="no HookedTransformer: use 'TransformerBridge'"):
        embedded.load_model("HookedTransformer")


def test_loading_needs_no_network():
    """In a process of its own, where opening a connection or resolving a name is an error."""
    code = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("the network was used")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from tl_weighted_pca import embedded
for kind in {kinds!r}:
    embedded.load_model(kind)
embedded.stories("heldout", 10)
"""
    # The hub's own switch must not be what keeps it quiet.
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    done = subprocess.run(
        [sys.executable, "-c", code.format(kinds=KINDS)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_import_is_cheap():
    code = """
import sys, tl_weighted_pca
before = set(sys.modules)
import tl_weighted_pca.embedded
print({"torch", "transformers", "datasets", "transformer_lens"} & (set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_both_models_have_one_vocabulary():
    """What one reads, the other does: the stories need only one tokenizer."""
    assert vocabulary.vocabulary(vocabulary.SLIPS_FOLDER) == vocabulary.vocabulary()
    tokenizer = embedded.load_model(slips=True, device="cpu").tokenizer
    assert tokenizer("One day, Tom")["input_ids"] == [0, *_ids("One", " day", ",", " Tom")]


def _ids(*tokens: str) -> list[int]:
    return [vocabulary.vocabulary()[token] for token in tokens]


def test_a_model_is_loaded_by_its_name():
    for name, slips in (("embedded", False), ("embedded-slips", True)):
        got = load_pretrained(name, device="cpu").state_dict()
        expected = embedded.load_model(device="cpu", slips=slips).state_dict()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert not torch.equal(
        embedded.load_model(device="cpu").W_E, embedded.load_model(device="cpu", slips=True).W_E
    )


@pytest.fixture(scope="module")
def scores(slips):
    model = embedded.load_model(device="cpu", slips=slips)
    heldout = embedded.stories("heldout", slips=slips)
    return {
        "model": score(model, heldout),
        "bigram": score(Bigram(embedded.stories("train", 5_000, slips=slips)), heldout),
    }


def test_heldout_loss_is_within_5_percent_of_the_entropy(scores):
    assert 0.0 <= scores["model"].excess <= 0.05
    assert scores["bigram"].excess > 0.9


def test_remembered_facts_are_predicted(scores):
    assert scores["model"].accuracy >= 0.9
    assert set(scores["model"].accuracy_of) == set(embedded.FACTS)
    assert min(scores["model"].accuracy_of.values()) >= 0.9
    assert scores["bigram"].accuracy < 0.3


def test_score_of_the_truth_is_the_entropy(heldout):
    """A model that says the stated probabilities has the stated entropy as its loss."""
    few = heldout.select(range(4))
    size = len(vocabulary.vocabulary())

    def truth(tokens: torch.Tensor) -> torch.Tensor:
        p = torch.zeros(*tokens.shape, size, dtype=torch.float64)
        for row, (ids, surprisal) in enumerate(
            zip(few["input_ids"], few["surprisal"], strict=True)
        ):
            for at in range(len(ids) - 1):
                certain = math.exp(-surprisal[at + 1])
                p[row, at] = (1 - certain) / (size - 1)
                p[row, at, ids[at + 1]] = certain
        return p.log().clamp(min=-1e4)

    result = score(truth, few)
    assert result.excess == pytest.approx(0.0, abs=1e-5)
    assert result.accuracy == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_class": "GPT2"}, "model_class is 'GPT2'; expected one of HookedTransformer"),
        ({"dtype": torch.int8}, "dtype is torch.int8; expected a floating-point one"),
    ],
)
def test_what_a_model_cannot_be_loaded_as_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained("embedded", **options)
