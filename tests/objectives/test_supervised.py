"""Objectives with known targets: of the row they belong to, of real positions, and known by their values."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

import tl_weighted_pca as wpca
from tl_weighted_pca.models.run import Run
from tl_weighted_pca.objectives import classification_loss, squared_error
from tl_weighted_pca.objectives.losses import objective_name
from tl_weighted_pca.toy import HookedMLP, low_rank_regression, train

HOOK = "blocks.1.hook_resid_post"
LABELS = torch.tensor([3, 5, 7])


def padded(tokens, lengths, side):
    """Rows cut to their lengths, with rubbish beside them that a mask hides."""
    ids = torch.full_like(tokens, 9)
    mask = torch.zeros_like(tokens)
    for i, n in enumerate(lengths):
        at = slice(0, n) if side == "right" else slice(tokens.shape[1] - n, None)
        ids[i, at], mask[i, at] = tokens[i, :n], 1
    return [{"input_ids": ids, "attention_mask": mask}]


@pytest.mark.parametrize("side", ["left", "right"])
def test_classes_are_read_at_the_last_real_position(model, tokens, side):
    lengths, objective = [5, 9, 12], classification_loss(LABELS)
    found = wpca.collect(
        model, padded(tokens[:3, :12], lengths, side), HOOK, objective=objective, progress=False
    )[HOOK]
    expected = 0
    for i, n in enumerate(lengths):
        alone = classification_loss(LABELS[i : i + 1])
        expected += wpca.collect(
            model, tokens[i : i + 1, :n], HOOK, objective=alone, progress=False
        )[HOOK].gradient.second
    torch.testing.assert_close(found.gradient.second, expected, rtol=1e-4, atol=1e-9)


def test_losses_are_their_formulas():
    output = torch.randn(3, 4, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    run = Run(output, torch.zeros(3, 4).long(), mask, torch.tensor([2, 0, 1]), {})
    last = output[[0, 1, 2], [1, 3, 3]]
    expected = cross_entropy(last, LABELS[[2, 0, 1]], reduction="none")
    assert torch.equal(classification_loss(LABELS)(run), expected)
    y = torch.randn(3, 4, 8, dtype=torch.float64)
    squares = (output - y[[2, 0, 1]]).square() * mask[..., None]
    torch.testing.assert_close(squared_error(y)(run), squares.sum((1, 2)) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    output, y = 500 * torch.randn(2, 9), torch.randn(2, 9)
    run = Run(output.to(dtype), torch.zeros(2, 3), None, torch.tensor([1, 0]), {})
    for objective in (squared_error(y), classification_loss(LABELS)):
        wide = objective(replace(run, output=run.output.float()))
        assert torch.equal(objective(run), wide) and wide.dtype == torch.float32


def test_targets_at_padding_change_no_gradient():
    output = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    run = Run(output, torch.zeros(2, 4).long(), mask, torch.tensor([0, 1]), {})
    y = torch.randn(2, 4, 3)
    y[0, 2:] = torch.nan
    (gradient,) = torch.autograd.grad(squared_error(y)(run).sum(), output)
    expected = torch.where(mask[..., None], output.detach() - y.nan_to_num(), 0.0)
    torch.testing.assert_close(gradient, expected)


def test_a_row_without_a_label_has_nothing_to_learn():
    run = Run(torch.randn(2, 4), torch.zeros(2, 3), None, torch.tensor([0, 1]), {})
    losses = classification_loss(torch.tensor([-100, 2]))(run)
    assert losses[0] == 0 and losses[1] > 0


@pytest.mark.parametrize("kind", [squared_error, classification_loss])
def test_other_targets_are_another_objective(kind, tmp_path):
    one = torch.arange(6) % 3 if kind is classification_loss else torch.randn(6, 3)
    other = one.flip(0)
    assert objective_name(kind(one)) == objective_name(kind(one.clone()))
    assert objective_name(kind(one)) != objective_name(kind(other))
    model, x = HookedMLP([4, 5, 3]), torch.randn(6, 4)
    options = {"progress": False, "checkpoint": tmp_path / "half"}
    first = wpca.collect(model, x, "layers.0.hook_post", objective=kind(one), **options)
    with pytest.raises(ValueError, match="was made with objective="):
        wpca.collect(model, x, "layers.0.hook_post", objective=kind(other), **options)
    second = wpca.collect(model, x, "layers.0.hook_post", objective=kind(other), progress=False)
    with pytest.raises(ValueError, match="they differ in objective"):
        first + second


def test_what_is_no_target_is_said():
    for wrong in ([1, 2], None):
        with pytest.raises(TypeError, match="expected a tensor, one row an input"):
            squared_error(wrong)
        with pytest.raises(TypeError, match="expected a tensor, one row an input"):
            classification_loss(wrong)
    for wrong in (torch.zeros(3), torch.zeros(3, 1).long()):
        with pytest.raises(ValueError, match="expected whole numbers"):
            classification_loss(wrong)
    model, x = HookedMLP([4, 5, 3]), torch.randn(2, 4)
    for wrong in (3, -1):
        with pytest.raises(
            ValueError, match=rf"labels hold {wrong}, but the model has the classes 0\.\.2"
        ):
            wpca.collect(
                model, x, "layers.0.hook_post", objective=classification_loss(torch.tensor([0, wrong])),
                progress=False,
            )  # fmt: skip


def test_a_network_is_not_trained_on_targets_that_broadcast():
    with pytest.raises(ValueError, match=r"expected \[n, outputs\] for squared error"):
        train(HookedMLP([4, 5, 1]), torch.randn(6, 4), torch.randn(6), steps=2)
    with pytest.raises(ValueError, match="width is 2; expected at least 3"):
        low_rank_regression(10, 2)
