"""Hooks that the user has added to the model: they are part of it, and what they edit is not what we keep."""

import pytest
import torch
from conftest import KINDS
from formulas import next_token_losses

import tl_weighted_pca as wpca

HERE, NEXT = "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"


@pytest.fixture
def tokens():
    return torch.tensor([row[:40] for row in wpca.embedded.stories("train", 12)["input_ids"]])


@pytest.fixture(params=KINDS)
def model(request):
    return wpca.embedded.load_model(request.param, device="cpu")


def zeroed(tensor, hook):
    """TransformerLens's own idiom: in place."""
    tensor[:, :, :8] = 0
    return tensor


def zeroed_copy(tensor, hook):
    return torch.cat([torch.zeros_like(tensor[..., :8]), tensor[..., 8:]], -1)


QUIET = {"progress": False}


@pytest.mark.parametrize("objective", [None, wpca.next_token_loss])
@pytest.mark.parametrize("also", [[], ["blocks.0.hook_resid_pre"], [NEXT]])
def test_an_edit_downstream_does_not_reach_back(model, tokens, objective, also):
    clean = wpca.collect(model, tokens, HERE, objective=None, **QUIET)[HERE].activation.second
    model.add_hook(NEXT, zeroed_copy)
    points = [*also, HERE]
    expected = wpca.collect(model, tokens, points, objective=objective, **QUIET)[HERE]
    torch.testing.assert_close(expected.activation.second, clean)
    model.reset_hooks()
    model.add_hook(NEXT, zeroed)
    found = wpca.collect(model, tokens, points, objective=objective, **QUIET)[HERE]
    torch.testing.assert_close(found.activation.second, clean)
    if objective is not None:
        torch.testing.assert_close(found.gradient.second, expected.gradient.second)
        torch.testing.assert_close(found.weighted.second, expected.weighted.second)


def test_nor_into_pairs(model, tokens):
    model.add_hook(NEXT, zeroed)
    for objective in (None, wpca.next_token_loss):
        for names in ([HERE], [HERE, NEXT]):
            pairs = next(wpca.stream_pairs(model, tokens, names, objective=objective))[HERE]
            assert float(pairs.activations[..., :8].abs().sum()) > 1


def test_what_a_module_changes_in_place_is_refused_where_it_is_read_later(tokens):
    if "HookedTransformer" not in KINDS:
        pytest.skip("the bridge's hook points are not modules that can be wrapped")

    class Spoils(torch.nn.Module):
        def forward(self, x):
            x[..., 0] = 0
            return x

    model = wpca.embedded.load_model("HookedTransformer", device="cpu")
    model.blocks[1].hook_resid_pre = torch.nn.Sequential(model.blocks[1].hook_resid_pre, Spoils())
    points = ["blocks.0.hook_resid_pre", HERE]
    with pytest.raises(
        ValueError, match=f"What follows hook point {HERE!r} changes its activations"
    ):
        wpca.collect(model, tokens, points, **QUIET)
    assert wpca.collect(model, tokens, points, objective=None, **QUIET)
    with pytest.raises(
        ValueError, match=f"What follows hook point {HERE!r} changes its activations"
    ):
        wpca.collect(model, tokens, HERE, **QUIET)  # torch's own words: a leaf is edited in place
    pairs = next(wpca.stream_pairs(model, tokens, points, objective=None))
    assert float(pairs[HERE].activations[..., 0].abs().sum()) > 1


def by_hand(model, tokens, basis, place, k):
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(place, basis.hook(k))])
    return float(next_token_losses(logits, tokens).mean())


@pytest.mark.parametrize("place", [HERE, NEXT])
@pytest.mark.parametrize(
    "hook", [zeroed, zeroed_copy, lambda t, hook: t.clamp(-0.5, 0.5), lambda t, hook: 0.5 * t]
)
def test_curves_are_of_the_model_with_its_hooks(model, tokens, place, hook):
    basis = wpca.pca(wpca.collect(model, tokens, place, objective=None, **QUIET)[place])
    model.add_hook(NEXT, hook)
    curves = wpca.ablation_curves(model, tokens, {"a": basis}, place, ranks=[4, 16, 64], **QUIET)
    expected = [by_hand(model, tokens, basis, place, k) for k in (4, 16, 64)]
    assert curves.scores["a"] == pytest.approx(expected, rel=1e-5)


def test_an_objective_may_run_the_model(model, tokens):
    """As for the difference from a corrupted prompt: its passes are not recorded."""
    clean = wpca.collect(model, tokens, HERE, objective=lambda run: run.output[:, -1, 0], **QUIET)[
        HERE
    ]

    def against_corrupted(run):
        with torch.no_grad():
            other = model(tokens.flip(0)[run.sequence_index])
        return run.output[:, -1, 0] - other[:, -1, 0]

    found = wpca.collect(model, tokens, HERE, objective=against_corrupted, **QUIET)[HERE]
    torch.testing.assert_close(found.activation.second, clean.activation.second)
    torch.testing.assert_close(found.gradient.second, clean.gradient.second)
