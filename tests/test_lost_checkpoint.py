"""A checkpoint that can no longer be written, since its target is gone: one sentence, and nothing lost."""

import shutil

import pytest
import torch

import tl_weighted_pca as wpca
from tl_weighted_pca.dictionary import Recipe, train_dictionary

HOOK = "blocks.1.hook_resid_post"
QUIET = {"progress": False}


def removed(path):
    shutil.rmtree(path.parent)


def folder_is_a_file(path):
    shutil.rmtree(path.parent)
    path.parent.write_text("a file now")


def target_is_a_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


class Spoiling:
    """Data in whose last but one batch something happens to a path, in a certain pass."""

    def __init__(self, tokens, spoil, path, in_pass=1):
        self.batches, self.spoil, self.path, self.left = tokens.split(2), spoil, path, in_pass

    def __iter__(self):
        self.left -= 1
        for number, batch in enumerate(self.batches):
            if not self.left and number == len(self.batches) - 2:
                self.spoil(self.path)
            yield batch


@pytest.fixture(params=[removed, folder_is_a_file, target_is_a_folder])
def spoil(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "run.safetensors"


@pytest.fixture
def lost(path):
    """The error of a call, which leaves its model as it was, and says what cannot be written."""

    def call(model, function, *args, **options):
        flags = {name: (p.requires_grad, p.clone(), p.grad) for name, p in model.named_parameters()}
        model.train()
        with pytest.raises(OSError, match="Cannot write") as caught:
            function(model, *args, **options)
        assert model.training
        model.eval()
        for name, p in model.named_parameters():
            assert p.requires_grad == flags[name][0] and torch.equal(p, flags[name][1])
            assert p.grad is flags[name][2]
        assert not any(point.fwd_hooks for point in model.hook_dict.values())
        assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value)
        assert not list(path.parent.parent.rglob("*.tmp"))
        return caught.value

    return call


def test_collect_hands_over_all_that_was_collected(model, tokens, path, spoil, lost):
    data = Spoiling(tokens, spoil, path)
    options = {"batch_size": 2, "checkpoint": path, "checkpoint_every": 1} | QUIET
    error = lost(model, wpca.collect, data, HOOK, **options)
    whole = wpca.collect(
        model, tokens[: error.collection[HOOK].n_sequences], HOOK, batch_size=2, **QUIET
    )
    assert error.collection[HOOK].n_sequences == 8
    for kind in ("activation", "gradient", "weighted"):
        kept, expected = (getattr(each[HOOK], kind) for each in (error.collection, whole))
        torch.testing.assert_close(kept.second, expected.second, rtol=1e-12, atol=1e-12)


def test_a_training_hands_over_the_best_bases(best_model, tokens, path, spoil, lost, monkeypatch):
    from tl_weighted_pca.fitted.training import Training

    stats = wpca.collect(best_model, tokens, HOOK, **QUIET)
    start, real = wpca.pca(stats[HOOK]), Training.step

    def step(self, run, number):
        if number == 5:
            spoil(path)
        real(self, run, number)

    monkeypatch.setattr(Training, "step", step)
    options = {"steps": 8, "batch_size": 2, "checkpoint": path, "checkpoint_every": 3} | QUIET
    error = lost(best_model, wpca.optimize_basis, tokens, start, **options)
    assert error.bases[HOOK].n_components == start.n_components


def test_a_dictionary_is_handed_over(best_model, tokens, path, spoil, lost):
    moments = wpca.collect(best_model, tokens, HOOK, **QUIET)[HOOK]
    error = lost(
        best_model, train_dictionary, Spoiling(tokens, spoil, path), HOOK, Recipe(batch_size=20),
        moments=moments, n_features=8, n_tokens=400, batch_size=2, buffer_tokens=40, checkpoint=path, **QUIET,
    )  # fmt: skip
    assert error.dictionary.W_dec.shape == (8, 64)


def test_a_map_hands_over_what_it_has(best_model, tokens, path, spoil, lost):
    path = path.with_name("checkpoint.scores.safetensors")
    options = {"bases": ["pca"], "shares": [0.5], "batch_size": 2, "checkpoint_every": 1} | QUIET
    heldout = Spoiling(tokens, spoil, path, in_pass=2)  # the first is a look at what can be ablated
    error = lost(
        best_model,
        wpca.dimension_map,
        tokens,
        HOOK,
        heldout=heldout,
        checkpoint=path.parent,
        **options,
    )
    options.pop("checkpoint_every")
    whole = wpca.dimension_map(best_model, tokens, HOOK, heldout=tokens[:8], **options)
    for name, scores in error.map[HOOK].per_sequence.items():
        torch.testing.assert_close(scores, whole[HOOK].per_sequence[name])
