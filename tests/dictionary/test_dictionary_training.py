"""Training on a model's stream: resume, memory of the stream, units, throughput; and evaluation."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import tl_weighted_pca as wpca
from tl_weighted_pca.dictionary import (
    Recipe,
    SparseAutoencoder,
    evaluate_dictionary,
    plot_biases,
    train_dictionary,
)
from tl_weighted_pca.dictionary.recipe import losses
from tl_weighted_pca.dictionary.scores import _wide
from tl_weighted_pca.dictionary.shuffle_buffer import PairStream, Place, shuffled_blocks
from tl_weighted_pca.moments.second_moment import Provenance

HOOK = "blocks.2.hook_resid_post"
POSITIONS = slice(1, None)
FAST = {"n_features": 96, "positions": POSITIONS, "batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def moments(best_model, heldout):
    return wpca.collect(best_model, heldout, HOOK, positions=POSITIONS, progress=False)[HOOK]


def train(model, data, recipe=None, **kwargs):
    recipe = recipe or Recipe(batch_size=128)
    return train_dictionary(model, data, HOOK, recipe, **{**FAST, "n_tokens": 4096, **kwargs})


def test_trains_on_both_model_classes_and_leaves_the_model_as_it_was(model, heldout):
    before = {name: p.clone() for name, p in model.named_parameters()}
    recipe = Recipe(attribution=0.05, unexplained=0.01, batch_size=128)
    dictionary = train(model, heldout, recipe, kind="prolu_ste")
    assert dictionary.provenance.hook_point == HOOK
    assert dictionary.provenance.objective == "next_token_loss"
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    (pairs,) = wpca.stream_pairs(model, heldout, HOOK, positions=POSITIONS, batch_size=24)
    x = pairs[HOOK].rows()[0]
    left = (x - dictionary(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert left < 0.5


def test_without_attribution_terms_no_gradients_are_taken(best_model, heldout):
    def never(run):
        raise AssertionError("asked for gradients")

    assert train(best_model, heldout, objective=never).provenance.objective == ""


@pytest.mark.parametrize("attribution", [0.0, 0.05])
def test_resuming_gives_the_same_dictionary_to_the_bit(best_model, heldout, tmp_path, attribution):
    recipe = Recipe(attribution=attribution, batch_size=128)
    settings = {"buffer_tokens": 1024}
    path = tmp_path / "run.safetensors"
    shortest = min(len(row) for row in heldout["input_ids"])
    tensor = torch.tensor([row[:shortest] for row in heldout["input_ids"]])

    class Stop(Exception):
        pass

    class Failing:
        """Data that fails in its second pass: the first is for the units."""

        passes = 0

        def __iter__(self):
            self.passes += 1
            for start in range(0, len(tensor), 8):
                if self.passes == 2 and start == 16:
                    raise Stop
                yield tensor[start : start + 8]

    whole = train(best_model, tensor, recipe, **settings)
    with pytest.raises(Stop):
        train(best_model, Failing(), recipe, checkpoint=path, **settings)
    assert path.exists()
    resumed = train(best_model, tensor, recipe, checkpoint=path, **settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    # A finished run is read back, not trained again.
    again = train(best_model, tensor, recipe, checkpoint=path, **settings)
    assert torch.equal(again.W_dec, whole.W_dec)
    with pytest.raises(ValueError, match=r"another run: it differs in recipe"):
        train(best_model, tensor, Recipe(sparsity=9.0), checkpoint=path, **settings)
    moments = wpca.collect(best_model, tensor[:4], HOOK, progress=False)[HOOK]
    with pytest.raises(ValueError, match="another run: it differs in basis"):
        train(best_model, tensor, recipe, checkpoint=path, basis=wpca.pca(moments), **settings)
    with pytest.raises(ValueError, match="another run: its units are not those of these `moments`"):
        train(best_model, tensor, recipe, checkpoint=path, moments=moments, **settings)
    changed = wpca.embedded.load_model()
    with torch.no_grad():
        next(iter(changed.parameters()))[0] += 1
    with pytest.raises(ValueError, match="another run: it differs in weights"):
        train(changed, tensor, recipe, checkpoint=path, **settings)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="not readable as what train_dictionary"):
        train(best_model, tensor, recipe, checkpoint=path, **settings)


def test_blocks_hold_each_row_once_and_start_again_anywhere(best_model, heldout):
    stream = PairStream(best_model, heldout, HOOK, None, POSITIONS, 8)
    (pairs,) = wpca.stream_pairs(
        best_model, heldout, HOOK, objective=None, positions=POSITIONS, batch_size=24
    )
    everything = pairs[HOOK].rows()[0]
    size = len(everything) // 3
    blocks = shuffled_blocks(stream, size, 0, Place())
    found = [next(blocks) for _ in range(4)]
    one_pass = torch.cat([rows[0] for rows, _ in found[:3]])
    by_sum = torch.sort(one_pass.double().sum(1)).values
    expected = torch.sort(everything.double().sum(1)).values
    missing = len(everything) - 3 * size
    assert missing or torch.allclose(by_sum, expected, atol=1e-3)
    (x, _), _ = next(shuffled_blocks(stream, size, 0, found[1][1]))
    assert torch.equal(x, found[2][0][0])
    assert not torch.equal(found[0][0][0], everything[:size])


def test_one_shot_data(best_model, heldout, tmp_path):
    tokens = torch.tensor([row[:60] for row in heldout["input_ids"]])
    with pytest.raises(ValueError, match="only once"):
        train(best_model, iter([tokens]))
    moments = wpca.collect(best_model, tokens, HOOK, objective=None, progress=False)[HOOK]
    # 24·59 tokens are eleven batches and a rest, whatever the buffer.
    for buffer_tokens in (256, 2**16):
        with pytest.warns(UserWarning, match="The data ended after 1408 of 4096 tokens") as warned:
            trained = train(
                best_model, iter([tokens]), moments=moments, buffer_tokens=buffer_tokens
            )
        assert warned[0].filename == __file__
        start = SparseAutoencoder(64, 96, "prolu_relu")
        assert not torch.allclose(trained.W_dec, start.W_dec, atol=0.01)
    with pytest.raises(ValueError, match="ended before one batch of 128 tokens"):
        train(best_model, iter([tokens[:2]]), moments=moments, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()  # it would go on behind rows that trained nothing


def test_a_loader_of_one_shot_data_ends_with_a_warning_too(best_model, heldout, moments):
    class Once(IterableDataset):
        rows = iter(torch.tensor([row[:60] for row in heldout["input_ids"]]))

        def __iter__(self):
            return self.rows

    with pytest.warns(UserWarning, match="The data ended after 1408 of 4096 tokens"):
        train(best_model, DataLoader(Once(), batch_size=4), moments=moments)


def test_one_shot_data_resumes_to_the_bit(best_model, heldout, moments, tmp_path):
    tokens = torch.tensor([row[:60] for row in heldout["input_ids"]])
    settings = {"moments": moments, "buffer_tokens": 512}
    path = tmp_path / "run.safetensors"

    class Stop(Exception):
        pass

    def failing():
        yield from tokens[:16].split(4)
        raise Stop

    with pytest.warns(UserWarning, match="1408 of 4096"):
        whole = train(best_model, iter(tokens.split(4)), **settings)
    with pytest.raises(Stop):
        train(best_model, failing(), checkpoint=path, **settings)
    assert path.exists()
    # The second time from the end of the data, where nothing is left to train on.
    for _ in range(2):
        with pytest.warns(UserWarning, match="1408 of 4096"):
            resumed = train(best_model, iter(tokens.split(4)), checkpoint=path, **settings)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


def test_trains_in_inference_mode(best_model, heldout, moments):
    recipe = Recipe(attribution=0.05, batch_size=128)
    settings = {"n_tokens": 512, "moments": moments, "basis": wpca.pca(moments)}
    expected = train(best_model, heldout, recipe, **settings)
    with torch.inference_mode():
        found = train(best_model, heldout, recipe, **settings)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(found.W_dec, expected.W_dec)
    found(torch.randn(3, 64)).sum().backward()  # and can be trained further


def test_several_samples_of_an_objective(best_model, heldout):
    recipe = Recipe(attribution=0.05, batch_size=128)
    dictionary = train(best_model, heldout, recipe, objective=wpca.sampled_token_loss(2))
    assert bool(torch.isfinite(dictionary.W_dec).all())


def test_clear_errors(best_model, heldout):
    with pytest.raises(ValueError, match="less than one batch"):
        train(best_model, heldout, n_tokens=100)
    with pytest.raises(ValueError, match="no hook point"):
        train_dictionary(best_model, heldout, "blocks.2.hook_resid_pots", **FAST, n_tokens=4096)
    moments = wpca.collect(best_model, heldout, HOOK, objective=None, progress=False)[HOOK]
    with pytest.raises(ValueError, match="selects no token"):
        train(best_model, heldout, positions=slice(0, 0), moments=moments)


class Untouched:
    """Data that must not be read."""

    def __iter__(self):
        raise AssertionError("the data was read")


def test_refuses_before_the_data_is_read(best_model, heldout, moments, tmp_path):
    with pytest.raises(ValueError, match="kind is 'gelu'"):
        train(best_model, Untouched(), kind="gelu")
    with pytest.raises(ValueError, match="n_features is 0"):
        train(best_model, Untouched(), n_features=0)
    with pytest.raises(OSError, match="Cannot write to the folder"):
        train(best_model, Untouched(), checkpoint=tmp_path / "nowhere" / "run.safetensors")
    ungraded = replace(moments, gradient=None)
    with pytest.raises(ValueError, match="hold no gradient statistics"):
        train(best_model, Untouched(), Recipe(attribution=0.1), moments=ungraded)
    for place in (Provenance("other", HOOK), Provenance("", "blocks.1.hook_resid_post")):
        elsewhere = replace(moments, provenance=place)
        with pytest.raises(ValueError, match="collect them there"):
            train(best_model, Untouched(), moments=elsewhere)
        with pytest.raises(ValueError, match="This basis was made at"):
            train(best_model, Untouched(), basis=wpca.pca(elsewhere))
    # Without terms that look at gradients none are needed, nor a place that moments do not tell.
    train(best_model, heldout, moments=replace(ungraded, provenance=Provenance()), n_tokens=256)


def test_evaluation_of_the_identity(best_model, heldout, moments):
    """PCA at full rank, as a dictionary with both signs, changes nothing."""
    identity = SparseAutoencoder(64, 128, basis=wpca.pca(moments))
    found = evaluate_dictionary(best_model, heldout, identity, HOOK, positions=POSITIONS)
    scores = found.scores["dictionary"]
    assert scores.l0 == pytest.approx(64, abs=0.1)
    assert scores.explained_variance == pytest.approx(1, abs=1e-5)
    assert scores.loss_recovered == pytest.approx(1, abs=1e-4)
    assert scores.kl == pytest.approx(0, abs=1e-4)
    assert scores.unexplained_attribution == pytest.approx(0, abs=1e-4)
    assert scores.dead == 0 and scores.dense == 1
    assert found.n_tokens == moments.n_tokens


@pytest.mark.parametrize("name", ["mean", "", "unedited"])
def test_a_basis_may_have_any_other_name(best_model, heldout, moments, name):
    dictionary = train(best_model, heldout, n_tokens=512)
    options = {"positions": POSITIONS, "max_tokens": 300}
    expected, found = (
        evaluate_dictionary(best_model, heldout, dictionary, bases=bases, **options)
        for bases in ({"pca": wpca.pca(moments)}, {name: wpca.pca(moments)})
    )
    assert (found.loss, found.ablated_loss) == (expected.loss, expected.ablated_loss)
    assert found.scores == {
        "dictionary": expected.scores["dictionary"], name: expected.scores["pca"],
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dictionaries_of_other_dtypes_are_evaluated(best_model, heldout, dtype):
    dictionary = train(best_model, heldout, n_tokens=512)
    options = {"positions": POSITIONS, "max_tokens": 300}
    expected = evaluate_dictionary(best_model, heldout, dictionary, **options).scores["dictionary"]
    dictionary.to(dtype)
    found = evaluate_dictionary(best_model, heldout, dictionary, **options).scores["dictionary"]
    assert found.l0 == pytest.approx(expected.l0, rel=0.05)
    assert found.attribution_l0 == pytest.approx(expected.attribution_l0, rel=0.05)
    assert plot_biases(dictionary)


def test_a_dictionary_of_another_dtype_than_the_gradients_is_trained():
    dictionary = SparseAutoencoder(6, 9).double()
    x, g = torch.randn(2, 5, 6)
    recipe = Recipe(attribution=0.1)
    found = losses(dictionary, x.double(), g, recipe)[0].total(recipe)
    assert found == losses(dictionary, x.double(), g.double(), recipe)[0].total(recipe)


def test_evaluation_against_the_slow_way(best_model, heldout, moments):
    dictionary = train(best_model, heldout)
    bases = {"pca": wpca.pca(moments), "fisher": wpca.metric_pca(moments)}
    found = evaluate_dictionary(best_model, heldout, dictionary, bases=bases, positions=POSITIONS)
    (pairs,) = wpca.stream_pairs(best_model, heldout, HOOK, positions=POSITIONS, batch_size=24)
    x, (g,) = pairs[HOOK].rows()
    f = dictionary.encode(x)
    error = x - dictionary(x)
    holders = []
    for t in range(len(x)):
        a = (f[t] * (dictionary.W_dec @ g[t])).abs().sort(descending=True).values
        if a.sum() > 0:
            holders.append(1 + int((a.cumsum(0) < 0.99 * a.sum()).sum()))
    own = found.scores["dictionary"]
    about = x - x.mean(0)
    assert own.l0 == pytest.approx(float((f > 0).sum(1).float().mean()))
    assert own.attribution_l0 == pytest.approx(sum(holders) / len(holders), rel=1e-2)
    ratio = (g * error).sum(1).square().mean() / (g * about).sum(1).square().mean()
    assert own.unexplained_attribution == pytest.approx(float(ratio.detach()), rel=1e-3)
    variance = 1 - float(error.square().sum() / about.square().sum())
    assert own.explained_variance == pytest.approx(variance, abs=1e-4)
    assert own.dead == pytest.approx(float((f == 0).all(0).float().mean()))
    assert torch.equal(found.biases, dictionary.biases)
    # The loss, through TransformerLens's own hooks.
    total = count = 0.0
    for row in heldout["input_ids"]:
        tokens = torch.tensor([row])

        def put(value, hook):
            return torch.cat([value[:, :1], dictionary(value[:, 1:])], 1)

        with torch.no_grad():
            logits = best_model.run_with_hooks(tokens, fwd_hooks=[(HOOK, put)])
        total += float(
            torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum")
        )
        count += len(row) - 1
    recovered = (found.ablated_loss - total / count) / (found.ablated_loss - found.loss)
    assert own.loss_recovered == pytest.approx(recovered, abs=1e-4)
    # Bases have as many components as the dictionary has features at a token.
    table = found.to_pandas()
    assert list(table.index) == ["dictionary", "pca", "fisher"]
    rank = round(own.l0)
    curves = wpca.ablation_curves(
        best_model, heldout, bases, HOOK, ranks=[rank], positions=POSITIONS, progress=False
    )
    for name in bases:
        loss = found.ablated_loss - table.loc[name, "loss_recovered"] * (
            found.ablated_loss - found.loss
        )
        assert loss == pytest.approx(curves.scores[name][0], rel=1e-4)
        assert table.loc[name, "n_features"] == rank


def test_evaluation_refuses_another_place(best_model, heldout):
    dictionary = train(best_model, heldout, n_tokens=256)
    with pytest.raises(ValueError, match="evaluate it where it was trained"):
        evaluate_dictionary(best_model, heldout, dictionary, "blocks.1.hook_resid_post")
    with pytest.raises(ValueError, match="pass `hook_point`"):
        evaluate_dictionary(best_model, heldout, SparseAutoencoder(64, 96))


def test_evaluation_where_there_is_nothing_to_evaluate(best_model, heldout):
    dictionary = SparseAutoencoder(64, 96)
    tokens = torch.tensor([row[:20] for row in heldout["input_ids"]])

    def evaluate(data, positions):
        return evaluate_dictionary(best_model, data, dictionary, HOOK, positions=positions)

    with pytest.raises(ValueError, match="is a list_iterator, which can be read only once"):
        evaluate(iter([tokens]), None)
    with pytest.raises(ValueError, match="selects no token of the data"):
        evaluate(tokens, slice(0, 0))
    with pytest.raises(ValueError, match="do not vary over the 1 tokens that count"):
        evaluate(tokens[:1], [3])
    alone = torch.zeros_like(tokens[:8])
    alone[:, 3] = 1
    with pytest.raises(ValueError, match="no token to predict"):
        evaluate([{"input_ids": tokens[:8], "attention_mask": alone}], None)
    # Nothing is predicted from the last position: no gradient, and no loss to recover.
    scores = evaluate(tokens, [-1]).scores["dictionary"]
    assert scores.l0 > 0 and scores.explained_variance < 1
    assert math.isnan(scores.unexplained_attribution)


def test_evaluation_sums_in_float64_off_a_device_that_has_none():
    class OnMPS:
        device = torch.device("mps")

        def cpu(self):
            return torch.ones(2)

        def double(self):
            raise TypeError("MPS has no float64")

    assert torch.equal(_wide(OnMPS()), torch.ones(2).double())
    assert _wide(torch.ones(2, device="meta")).device.type == "meta"
