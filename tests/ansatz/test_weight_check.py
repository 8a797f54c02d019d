"""A wrong weight is refused whatever the first sequences hold, and a right one is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import KINDS
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset

from tl_weighted_pca import embedded, logit_probe, next_token_loss, shard
from tl_weighted_pca.ansatz import feature_ansatz
from tl_weighted_pca.ansatz.weight_check import check_weights
from tl_weighted_pca.models.weights import model_weights
from tl_weighted_pca.objectives import squared_error
from tl_weighted_pca.toy import HookedMLP

QUIET = {"progress": False}


class Drained(IterableDataset):
    """A data set whose iterator is the same one every time: what it gave is gone."""

    def __init__(self, items):
        self.items = iter(items)

    def __iter__(self):
        return self.items


def mixed_lengths(tokens):
    rows = tokens.tolist()
    return Dataset.from_dict(
        {"input_ids": [row[: 3 if i < 2 else 12] for i, row in enumerate(rows)]}
    )


def wrong(weight):
    generator = torch.Generator().manual_seed(0)
    return replace(weight, matrix=torch.randn(weight.matrix.shape, generator=generator))


def test_a_loader_over_an_iterator_loses_no_batch():
    torch.manual_seed(0)
    x, y = torch.randn(60, 6), torch.randn(60, 3)
    model = HookedMLP([6, 8, 3])
    whole = feature_ansatz(model, x, objective=squared_error(y), **QUIET)["layers.0.W"]
    loader = DataLoader(Drained(x), batch_size=7)
    drained = feature_ansatz(model, loader, objective=squared_error(y), **QUIET)["layers.0.W"]
    assert drained.n_tokens == 60
    # The model's own rounding differs by batch: 1e-5 of the matrix is what the numerical contract gives.
    assert torch.dist(drained.agop, whole.agop) < 1e-5 * whole.agop.norm()


@pytest.mark.parametrize(
    ("make", "positions"),
    [
        (
            lambda x: mixed_lengths(x),
            slice(5, None),
        ),  # the shortest come first, and have no such rows
        (lambda x: x[:1], None),
        (lambda x: x[:6].split(1), [3]),  # one row a batch
        (lambda x: torch.cat([x[:1], x[:1], x[:4]]), [3]),  # the same row twice
    ],
)
def test_a_wrong_weight_does_not_slip_through(best_model, tokens, make, positions):
    data, options = make(tokens[:6]), {"positions": positions, **QUIET}
    layer = [w for w in model_weights(best_model, [1]) if w.name == "blocks.1.mlp.W_in"]
    assert feature_ansatz(best_model, data, layer, **options)["blocks.1.mlp.W_in"].n_tokens
    with pytest.raises(ValueError, match="does not lead from"):
        feature_ansatz(best_model, data, [wrong(layer[0])], **options)


def test_rows_that_cannot_tell_are_no_licence():
    model, x = HookedMLP([6, 8, 3]), torch.ones(5, 6)
    with pytest.raises(ValueError, match="cannot be checked: over the first sequences"):
        feature_ansatz(model, x, **QUIET)


def test_an_input_is_not_taken_for_a_weight_s_own_where_there_is_no_gradient_yet(tokens):
    """Without norms Q, K and V read the stream itself, as the skip path does."""
    from test_ansatz import transformer

    model = transformer(normalization_type=None)
    x = tokens[:6, :5] % 9

    def late(run):  # nothing to say of the first two sequences
        return run.output.sum((1, 2)) * (run.sequence_index >= 2)

    kinds = [row.kind for row in feature_ansatz(model, x.split(2), [0], late, **QUIET)]
    assert kinds == ["W_Q", "W_K", "W_V", "W_in"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_allowed_its_rounding(kind, tokens, dtype):
    """HookedTransformer's norms give float32 to queries in half precision."""
    model = embedded.load_model(kind, dtype=dtype)
    rows = feature_ansatz(model, tokens[:2], [1], **QUIET)
    exact = feature_ansatz(embedded.load_model(kind), tokens[:2], [1], **QUIET)
    for row in rows:
        torch.testing.assert_close(
            row.agop, exact[row.name].agop, rtol=0.1, atol=0.1 * float(row.agop.max())
        )
    with pytest.raises(ValueError, match="does not lead from"):
        feature_ansatz(model, tokens[:2], [wrong(model_weights(model, [1])[0])], **QUIET)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_large_bias_hides_no_weight(kind, tokens, dtype):
    """As of keys in some models: h hardly varies beside it."""
    model = embedded.load_model(kind, dtype=dtype)
    keys = [weight for weight in model_weights(model, [1]) if weight.kind == "W_K"]
    with torch.no_grad():
        model.blocks[1].attn.b_K.data.add_(20)
    assert feature_ansatz(model, tokens[:4], keys, **QUIET).rows
    with pytest.raises(ValueError, match="does not lead from"):
        feature_ansatz(model, tokens[:4], [wrong(keys[0])], **QUIET)


def test_inside_inference_mode(best_model, tokens):
    expected = feature_ansatz(best_model, tokens[:2], [0], **QUIET)
    with torch.inference_mode():
        found = feature_ansatz(best_model, tokens[:2], [0], **QUIET)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.agop, b.agop)


def test_what_collect_takes_is_taken(best_model, tokens):
    """Rows of one token, and an empty first batch."""
    rows = Dataset.from_dict({"input_ids": [[5], [6], *tokens[:4].tolist()]})
    assert feature_ansatz(best_model, rows, [0], next_token_loss, **QUIET)[
        "blocks.0.mlp.W_in"
    ].n_tokens
    empty_first = iter([tokens[:0], tokens[:2]])
    assert feature_ansatz(best_model, empty_first, [0], **QUIET)["blocks.0.mlp.W_in"].n_tokens


def test_one_sentence_each(best_model, tokens):
    weights = model_weights(best_model, [1])
    with pytest.raises(ValueError, match="share of the data is empty"):
        feature_ansatz(best_model, shard(tokens[:1], rank=1, world_size=2), [0], **QUIET)
    with pytest.raises(TypeError, match=r"expected one of its kind: logit_probe"):
        feature_ansatz(best_model, tokens, [0], logit_probe, **QUIET)
    for data in ({"input_ids": tokens}, 5):
        with pytest.raises(TypeError, match="expected a tensor .n, pos. of tokens"):
            feature_ansatz(best_model, data, [0], **QUIET)
    for layers in (weights[0], [0, weights[0]], "all"):
        with pytest.raises(TypeError, match="expected a list of numbers of layers"):
            feature_ansatz(best_model, tokens, layers, **QUIET)
    (mlp,) = (w for w in weights if w.kind == "W_in")
    with pytest.raises(ValueError, match="which carries width 64, and not 256"):
        check_weights(
            best_model, tokens, [replace(mlp, after="blocks.1.hook_resid_post")], logit_probe()
        )
    for layers in (torch.tensor([0]), np.array([0]), range(1)):
        numbered = feature_ansatz(best_model, tokens[:2], layers, **QUIET)
        assert {row.layer for row in numbered} == {0}
    with pytest.raises(ValueError, match=r"One of layers is 0\.5; expected a whole number"):
        feature_ansatz(best_model, tokens, [0.5], **QUIET)


@pytest.mark.parametrize("switch", ["use_attn_in", "use_split_qkv_input"])
def test_inputs_split_by_head_are_named(tokens, switch):
    from test_ansatz import transformer

    model = transformer()
    getattr(model, f"set_{switch}")(True)
    with pytest.raises(ValueError, match=f"call model.set_{switch}"):
        feature_ansatz(model, tokens[:2] % 9, [0], **QUIET)
