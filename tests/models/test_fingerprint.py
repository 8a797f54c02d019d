"""What was made with one model is not taken for what another made, though it has the same name."""

import pytest
import torch

import tl_weighted_pca as wpca
from tl_weighted_pca.models.fingerprint import fingerprint, made_at

HOOK = "blocks.1.hook_resid_post"
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def tokens():
    return torch.tensor([row[:40] for row in wpca.embedded.stories("train", 12)["input_ids"]])


@pytest.fixture
def other():
    """The same but for one neuron, which was knocked out."""
    model = wpca.embedded.load_model()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "mlp" in n and p.ndim == 2)[50] = 0
    return model


def collected(model, tokens, **options):
    return wpca.collect(model, tokens, HOOK, **options, **QUIET)


def test_one_value_changes_the_fingerprint():
    model = torch.nn.Linear(7, 5)
    before = fingerprint(model)
    assert fingerprint(model) == before
    for index in range(35):
        value = model.weight.data.view(-1)[index].item()
        model.weight.data.view(-1)[index] = value + 1
        assert fingerprint(model) != before
        model.weight.data.view(-1)[index] = value
    assert fingerprint(model) == before
    # Not the way it lies in memory, nor parameters that begin where eight bytes do not.
    model.weight.data = model.weight.data.T.contiguous().T
    assert fingerprint(model) == before
    model.weight.data = torch.cat([torch.zeros(1), model.weight.data.flatten()])[1:].view(5, 7)
    assert fingerprint(model) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_of_every_dtype(dtype):
    model = torch.nn.Linear(9, 3).to(dtype)
    before = fingerprint(model)
    model.weight.data[2, 7] += 1
    assert fingerprint(model) != before


def test_moments_and_bases_of_other_weights_are_refused(best_model, other, tokens):
    mine, theirs = collected(best_model, tokens), collected(other, tokens)
    with pytest.raises(ValueError, match="differ in weights"):
        mine + theirs
    basis = wpca.pca(mine[HOOK])
    said = "of 'gpt2-stories' with other weights, and would be used"
    with pytest.raises(ValueError, match=said):
        wpca.ablation_curves(other, tokens, {"a": basis}, HOOK, **QUIET)
    with pytest.raises(ValueError, match=said):
        wpca.path_metric(other, tokens, HOOK, basis, **QUIET)
    curves = wpca.ablation_curves(
        other, tokens, {"a": basis}, HOOK, ranks=[8], anywhere=True, **QUIET
    )
    assert curves.scores["a"]
    pairs = wpca.stream_pairs(other, tokens, HOOK)
    with pytest.raises(ValueError, match="pairs and the moments differ: weights"):
        wpca.joint_pca(mine[HOOK], pairs, steps=1)


def test_a_checkpoint_of_other_weights_is_refused(best_model, other, tokens, tmp_path):
    collected(best_model, tokens, checkpoint=tmp_path / "half")
    with pytest.raises(ValueError, match="was made with weights="):
        collected(other, tokens, checkpoint=tmp_path / "half")


def test_another_dtype_or_class_is_not_another_model(best_model, model, tokens):
    """Digests tell weights apart in one class and dtype alone: elsewhere the name must do."""
    double = wpca.embedded.load_model().double()
    basis = wpca.pca(collected(best_model, tokens)[HOOK])
    for one in (double, model):
        basis.check_place(made_at(one, HOOK))
    assert collected(best_model, tokens) + collected(double, tokens)


def test_it_is_saved(best_model, tokens, tmp_path):
    stats = collected(best_model, tokens)
    stats.save(tmp_path / "stats")
    loaded = wpca.Collection.load(tmp_path / "stats")
    assert loaded[HOOK].provenance == stats[HOOK].provenance
    assert loaded[HOOK].provenance.weights.startswith(type(best_model).__name__)


def test_what_cannot_be_read_is_left_out(monkeypatch):
    """Parameters that wait on disk, or are spread over processes: names and shapes must do."""
    model = torch.nn.Linear(7, 5)
    assert fingerprint(torch.nn.Linear(7, 5, device="meta"))

    def unreadable(*tensors):
        raise NotImplementedError

    monkeypatch.setattr("tl_weighted_pca.models.fingerprint.update_digest", unreadable)
    assert fingerprint(model) != fingerprint(torch.nn.Linear(5, 7))


def test_curves_ask_once_for_all_bases(best_model, tokens, monkeypatch):
    """It takes a pass over the weights."""
    asked = []
    monkeypatch.setattr(
        "tl_weighted_pca.models.fingerprint.fingerprint",
        lambda m: asked.append(1) or fingerprint(m),
    )
    basis = wpca.pca(collected(best_model, tokens)[HOOK])
    asked.clear()
    bases = {name: basis for name in "abcd"}
    wpca.ablation_curves(best_model, tokens, bases, HOOK, ranks=[8], **QUIET)
    assert len(asked) == 1
    [*wpca.stream_pairs(best_model, tokens, [HOOK, "blocks.0.hook_resid_post"])]
    assert len(asked) == 2
