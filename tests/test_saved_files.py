"""Files that earlier versions saved still load, and mean what they meant."""

import shutil

import pytest
import torch
from saved.make import HERE, collected, inputs

import tl_weighted_pca as wpca


@pytest.fixture
def stats() -> wpca.Collection:
    return collected(inputs()[:4])


def test_a_collection(stats):
    loaded = wpca.Collection.load(HERE / "collection.safetensors")
    assert list(loaded) == ["hook_hidden"]
    for kind in ("activation", "gradient", "weighted"):
        moment, expected = getattr(loaded["hook_hidden"], kind), getattr(stats["hook_hidden"], kind)
        torch.testing.assert_close(moment.second, expected.second)
        torch.testing.assert_close(moment.mean, expected.mean)
    assert (loaded + stats)["hook_hidden"].n_tokens == 24


def test_a_basis(stats):
    loaded = wpca.Basis.load(HERE / "basis.safetensors")
    expected = wpca.metric_pca(stats["hook_hidden"])
    torch.testing.assert_close(loaded.encoder, expected.encoder)
    torch.testing.assert_close(loaded.eigenvalues, expected.eigenvalues)


def test_a_checkpoint_goes_on(stats, tmp_path):
    path = shutil.copy(HERE / "checkpoint.safetensors", tmp_path)
    whole = collected(inputs(), checkpoint=path)["hook_hidden"]
    torch.testing.assert_close(
        whole.weighted.second, collected(inputs())["hook_hidden"].weighted.second
    )
    assert whole.n_sequences == 6
