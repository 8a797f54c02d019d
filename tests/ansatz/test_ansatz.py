"""The feature ansatz: exact Jacobians, closed forms, and one claim told the same by every model class."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from fancy_einsum import einsum
from formulas import cosine, next_token_losses, outer_products

from tl_weighted_pca import logit_probe, next_token_loss, sampled_token_loss, shard
from tl_weighted_pca.ansatz import feature_ansatz
from tl_weighted_pca.ansatz.alignment import replaced_cosine
from tl_weighted_pca.ansatz.weight_ansatz import WeightAnsatz
from tl_weighted_pca.models.weights import Weight, model_weights
from tl_weighted_pca.objectives import classification_loss, squared_error
from tl_weighted_pca.toy import HookedMLP

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"progress": False}


def mlp(widths, activation=torch.relu, **options):
    return HookedMLP(widths, activation, **options).double()


def transformer(**options):
    """A small random HookedTransformer in float64, its gains and biases random too."""
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        pytest.skip("this TransformerLens has no HookedTransformer")
    settings = {
        "n_layers": 2, "d_model": 12, "n_ctx": 6, "d_head": 4, "n_heads": 4, "d_mlp": 20,
        "d_vocab": 9, "act_fn": "gelu", "normalization_type": "LN", "seed": 0,
        "dtype": torch.float64, "device": "cpu",
    }  # fmt: skip
    model = HookedTransformer(HookedTransformerConfig(**(settings | options)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.copy_(1 + 0.4 * noise if name.endswith(".w") else 0.4 * noise)
    return model.eval()


def tokens(n=3, length=5, vocabulary=9, seed=0):
    return torch.randint(0, vocabulary, (n, length), generator=torch.Generator().manual_seed(seed))


# -- exact gradients -----------------------------------------------------------------------------


def test_logit_probes_estimate_the_sum_of_jacobians_squared_to_their_sampling_error():
    model, x = mlp([6, 9, 5]), torch.randn(40, 6, dtype=torch.float64)
    jacobians = torch.stack([torch.autograd.functional.jacobian(model, row) for row in x])
    exact = outer_products(jacobians) / len(x)
    draws = torch.stack(
        [
            feature_ansatz(model, x, objective=logit_probe(8, seed), **QUIET)["layers.0.W"].agop
            for seed in range(24)
        ]
    )
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() / error).max() < 5
    assert error.norm() / exact.norm() < 0.03


def test_logit_probes_on_a_transformer_sum_over_positions():
    model, x = transformer(normalization_type=None, n_layers=1, attn_only=False), tokens(2, 4)
    # The exact Σ JᵀJ at the embedding's stream, one unit probe a logit, the obvious way.
    name = "blocks.0.attn.hook_v"
    exact = torch.zeros(16, 16, dtype=torch.float64)
    for row in x:

        def logits_from(v, row=row):
            return model.run_with_hooks(row[None], fwd_hooks=[(name, lambda t, hook: v)])

        v = model.run_with_cache(row[None])[1][name].detach()
        jacobian = torch.autograd.functional.jacobian(logits_from, v)[0, :, :, 0].flatten(-2)
        exact += einsum("t logit s i, t logit s j -> i j", jacobian, jacobian)
    exact /= x.numel()
    draws = torch.stack(
        [
            feature_ansatz(model, x, [0], logit_probe(16, seed), **QUIET)[
                "blocks.0.attn.W_V"
            ].before
            for seed in range(12)
        ]
    )
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() / error).max() < 5.5
    assert error.norm() / exact.norm() < 0.12


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("grouped", [None, 2])
def test_the_gradient_through_each_weight_is_the_chain_rule_s(gated, grouped):
    model = transformer(gated_mlp=gated, n_key_value_heads=grouped)
    x = tokens()
    found = feature_ansatz(model, x, [1], next_token_loss, **QUIET)
    seen = {}

    def keep(tensor, hook):
        if hook.name not in seen:  # the norm fires for Q, K and V each
            tensor.retain_grad()
            seen[hook.name] = tensor
        return seen[hook.name]

    names = {
        "W_Q": "attn.hook_q", "W_K": "attn.hook_k", "W_V": "attn.hook_v",
        "W_gate": "mlp.hook_pre", "W_in": "mlp.hook_pre_linear" if gated else "mlp.hook_pre",
    }  # fmt: skip
    norms = ["ln1.hook_normalized", "ln2.hook_normalized"]
    with model.hooks(fwd_hooks=[(f"blocks.1.{n}", keep) for n in {*names.values(), *norms}]):
        logits = model(x)
        next_token_losses(logits, x).sum().backward()
    block = model.blocks[1]
    for kind, hook in names.items():
        if kind == "W_gate" and not gated:
            continue
        where = "attn" if kind in ("W_Q", "W_K", "W_V") else "mlp"
        module = getattr(block, where)
        w = getattr(module, f"_{kind}", None)
        w = getattr(module, kind) if w is None else w
        g = seen[f"blocks.1.{hook}"].grad
        through = "b s h e, h d e -> b s d" if w.ndim == 3 else "b s m, d m -> b s d"
        g = einsum(through, g, w)
        slow = outer_products(g) / x.numel()
        torch.testing.assert_close(found[f"blocks.1.{where}.{kind}"].agop, slow.detach())
    # What several weights read gets the whole gradient at their common input, past the gain.
    shared = {"blocks.1.attn.W_Q+W_K+W_V": block.ln1}
    if gated:
        shared["blocks.1.mlp.W_gate+W_in"] = block.ln2
    for name, norm in shared.items():
        hook = f"blocks.1.{'ln1' if norm is block.ln1 else 'ln2'}.hook_normalized"
        g = seen[hook].grad / norm.w
        slow = outer_products(g) / x.numel()
        torch.testing.assert_close(found[name].agop, slow.detach())
    assert ("blocks.1.mlp.W_gate+W_in" in [row.name for row in found]) == gated


def test_a_weight_alone_at_its_input_has_one_agop_whether_measured_before_or_after_it():
    model, x = transformer(), tokens()
    for name, layer in (("blocks.0.mlp.W_in", 0), ("unembed.W_U", 2)):
        only = [w for w in model_weights(model, [layer]) if w.name == name]
        after = feature_ansatz(model, x, only, next_token_loss, **QUIET)[name]
        before = feature_ansatz(model, x, only, next_token_loss, max_width=1, **QUIET)[name]
        assert after.before is not None and before.before is None
        torch.testing.assert_close(before.agop, after.agop)


# -- closed forms --------------------------------------------------------------------------------


def orthonormal_rows(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator).double()).Q.mT


@pytest.mark.parametrize("activation", [None, torch.relu])
def test_the_ansatz_is_exact_where_gradients_are_a_tight_frame(activation):
    """f = W₂ act(W₁x) with W₂ᵀW₂ = I: K = E[act′act′ᵀ]∘I, which for ReLU and inputs ±x is I/2."""
    model = mlp([5, 8, 8], activation, bias=False)
    with torch.no_grad():
        model.layers[1].W.copy_(3 * orthonormal_rows(8, 8, 0))
    half = torch.randn(30, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = torch.cat([half, -half])
    # One unit probe an output makes the AGOP exact.
    found = feature_ansatz(model, x, objective=unit_probes, **QUIET)
    assert found["layers.0.W"].cosine() == pytest.approx(1, abs=1e-6)
    table = found.to_pandas().set_index("name")
    assert table.loc["layers.0.W", "tight_before"] == pytest.approx(1, abs=1e-6)
    assert table.loc["layers.0.W", "condition_before"] == pytest.approx(1, abs=1e-6)
    # The output layer of any network: f = hW + b, AGOP = WWᵀ whatever the data.
    assert found["layers.1.W"].cosine() == pytest.approx(1, abs=1e-6)
    # A tight frame makes the claim true of every W: the control says so.
    assert table.loc["layers.0.W", "replaced"] == pytest.approx(1, abs=1e-6)
    assert table.loc["layers.0.W", "rotated"] < 0.95


def unit_probes(run):
    """√k times one output each: the mean over samples is the sum over outputs, exactly."""
    return run.output.mT * run.output.shape[1] ** 0.5


@pytest.mark.parametrize("depth", [2, 3])
def test_a_balanced_linear_network_has_the_ansatz_with_a_power(depth):
    """W_lᵀW_l = W_{l+1}W_{l+1}ᵀ (in x @ W) gives AGOP at layer l = (W_lW_lᵀ)^(L−l)."""
    model = mlp([6] * (depth + 1), None, bias=False)
    s = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.6, 0.3]).double()
    frames = [orthonormal_rows(6, 6, seed) for seed in range(depth + 1)]
    with torch.no_grad():
        for layer, (u, v) in zip(model.layers, pairwise(frames), strict=True):
            layer.W.copy_(u.mT @ s.diag() @ v)
    found = feature_ansatz(model, torch.randn(8, 6).double(), objective=unit_probes, **QUIET)
    for l, row in enumerate(found):
        assert row.cosine(1 / (depth - l)) == pytest.approx(1, abs=1e-6)
        if l < depth - 1:
            assert row.cosine() < 0.99


def test_squared_error_weighs_the_jacobian_by_the_residual():
    model, x = mlp([4, 7, 1]), torch.randn(12, 4).double()
    y = torch.randn(12, 1).double()
    jacobians = torch.stack([torch.autograd.functional.jacobian(model, row)[0] for row in x])
    g = (model(x) - y).detach() * jacobians
    found = feature_ansatz(model, x, objective=squared_error(y), batch_size=5, **QUIET)
    slow = outer_products(g) / len(x)
    torch.testing.assert_close(found["layers.0.W"].agop, slow)
    with pytest.raises(ValueError, match="targets of this batch have shape"):
        feature_ansatz(model, x, objective=squared_error(y[:, 0]), **QUIET)
    with pytest.raises(ValueError, match="one target a row"):
        feature_ansatz(model, x, objective=classification_loss(torch.zeros(3).long()), **QUIET)


# -- one claim, several models --------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_the_folded_weight_s_claim_is_that_of_the_folded_model(norm):
    # TransformerLens cannot fold a bias β into a gated MLP, whose gate has none to take it.
    gated = norm == "RMS"
    model, x = transformer(normalization_type=norm, gated_mlp=gated), tokens(4)
    unfolded = feature_ansatz(model, x, None, next_token_loss, folded=True, **QUIET)
    raw = feature_ansatz(model, x, None, next_token_loss, **QUIET)
    state = model.fold_layer_norm(
        {k: v.clone() for k, v in model.state_dict().items()},
        fold_biases=True, center_weights=norm == "LN",
    )  # fmt: skip
    folded_model = transformer(normalization_type=norm + "Pre", gated_mlp=gated)
    folded_model.load_state_dict(state, strict=False)
    assert torch.dist(model(x), folded_model(x)) < 1e-8
    for model_says in (False, True):  # a folded model makes one claim, however it is asked
        folded = feature_ansatz(folded_model, x, None, next_token_loss, folded=model_says, **QUIET)
        assert len(folded) == len(unfolded)
        for ours, theirs, stored in zip(unfolded, folded, raw, strict=True):
            torch.testing.assert_close(ours.matrix, theirs.matrix)
            torch.testing.assert_close(ours.agop, theirs.agop)
            if stored.layer < 2:
                assert abs(stored.cosine() - ours.cosine()) > 1e-4


@pytest.mark.parametrize("folded", [False, True])
def test_both_model_classes_say_the_same(folded):
    from tl_weighted_pca.embedded import load_model, stories

    data = stories("heldout", 6)
    objectives = {"loss": next_token_loss, "labels": sampled_token_loss()}
    bridge = feature_ansatz(
        load_model("TransformerBridge", device="cpu"), data, [1, 4], objectives,
        folded=folded, **QUIET,
    )  # fmt: skip
    assert {row.objective for row in bridge} == {"loss", "labels"}
    assert {row.kind for row in bridge} == {"W_Q", "W_K", "W_V", "W_in", "W_U", "W_Q+W_K+W_V"}
    table = bridge.to_pandas()
    assert table[["cosine", "identity", "rotated", "captured"]].notna().all(None)
    try:
        hooked = load_model("HookedTransformer", device="cpu")
    except ValueError:
        return
    for ours, theirs in zip(
        bridge, feature_ansatz(hooked, data, [1, 4], objectives, folded=folded, **QUIET),
        strict=True,
    ):  # fmt: skip
        assert ours.name == theirs.name
        assert torch.dist(ours.agop, theirs.agop) < 1e-4 * ours.agop.norm()
        assert ours.cosine() == pytest.approx(theirs.cosine(), abs=1e-5)


def test_the_gradient_at_an_input_that_others_read_is_not_taken_for_a_weight_s():
    """Q, K and V read one norm: listed without its fellows, a wide W_Q cannot be told at its input."""
    model, x = transformer(), tokens()
    some = [w for w in model_weights(model, [1]) if w.kind in ("W_Q", "W_K")]
    found = feature_ansatz(model, x, some, next_token_loss, **QUIET)
    assert [row.kind for row in found] == ["W_Q", "W_K"]
    with pytest.raises(ValueError, match=r"W_Q has output width 16 and shares its input"):
        feature_ansatz(model, x, some[:1], next_token_loss, max_width=4, **QUIET)


def test_a_model_without_norms_has_its_weights_measured_at_their_outputs():
    model, x = transformer(normalization_type=None), tokens()
    found = feature_ansatz(model, x, None, next_token_loss, **QUIET)
    # The stream is read by the skip path too: there is no row for Q, K and V together.
    assert [r.kind for r in found if r.layer == 0] == ["W_Q", "W_K", "W_V", "W_in"]


def test_data_from_a_generator_is_read_once_and_whole():
    model, x = transformer(), tokens(4)
    whole = feature_ansatz(model, x, [0], next_token_loss, batch_size=2, **QUIET)
    stream = (batch for batch in x.split(2))
    assert torch.equal(
        feature_ansatz(model, stream, [0], next_token_loss, **QUIET)["blocks.0.mlp.W_in"].agop,
        whole["blocks.0.mlp.W_in"].agop,
    )
    shares = [
        feature_ansatz(
            model, shard(iter(x.split(1)), rank=rank, world_size=2), [0], next_token_loss, **QUIET
        )["blocks.0.mlp.W_in"].agop
        for rank in range(2)
    ]
    mean = (shares[0] + shares[1]) / 2
    assert torch.allclose(mean, whole["blocks.0.mlp.W_in"].agop, rtol=1e-9)


# -- the table, and what is refused ----------------------------------------------------------------


def test_each_column_of_the_table_is_its_definition():
    """All of a row again, from Jacobians and plain eigenvalues; 10 wide into 8 and 8 into 12."""
    model, x = mlp([10, 8, 12, 3], torch.tanh), torch.randn(50, 10).double()
    found = feature_ansatz(model, x, objective=unit_probes, **QUIET)
    table = found.to_pandas().set_index("name")
    rows = [found[f"layers.{l}.W"] for l in range(3)]

    def second_moment(forward, at):
        jacobian = torch.stack([torch.autograd.functional.jacobian(forward, row) for row in at])
        return outer_products(jacobian) / len(at)

    def traceless(a):
        return a - a.trace() / len(a) * torch.eye(len(a)).double()

    first, second, third = model.layers
    h = (x @ first.W + first.b).detach()
    past = [h.tanh(), (h.tanh() @ second.W + second.b).detach()]
    onward = [lambda f: third(second(f)), lambda f: third(f.tanh())]
    before = [second_moment(lambda f: onward[0](f.tanh()), h), second_moment(onward[1], past[1])]
    after = [second_moment(onward[0], past[0]), second_moment(third, past[1].tanh())]
    agops = [second_moment(model, x), second_moment(onward[0], past[0])]
    for l, (row, k, post, agop) in enumerate(zip(rows[:2], before, after, agops, strict=True)):
        w, line = model.layers[l].W.detach(), table.loc[f"layers.{l}.W"]
        gram, kept, eye = w @ w.mT, w.mT @ w, torch.eye(len(w)).double()
        u = torch.linalg.svd(w).U
        best, v = (t.flip(-1) for t in torch.linalg.eigh(agop))
        rank, d = min(w.shape), len(w)
        held = [
            float((u[:, :j].mT @ agop @ u[:, :j]).trace() / best[:j].sum())
            for j in range(1, rank + 1)
        ]
        chance = [float(j * agop.trace() / d / best[:j].sum()) for j in range(1, rank + 1)]
        frame = torch.linalg.eigvalsh(gram if d <= w.shape[1] else kept)

        def condition(a):
            eigenvalues = torch.linalg.eigvalsh(a)
            return float(eigenvalues[eigenvalues > 1e-6 * eigenvalues[-1]][0] / eigenvalues[-1])

        expected = {
            "d_in": d, "d_out": w.shape[1], "n_tokens": 50,
            "cosine": cosine(gram, agop), "identity": cosine(eye, agop),
            "rotated": float(gram.trace() * agop.trace() / d / (gram.norm() * agop.norm())),
            "centred": cosine(traceless(gram), traceless(agop)),
            "centred_sd": math.sqrt(1 / (d * (d + 1) / 2 - 1)),
            "replaced": replaced_cosine(w, k),
            "left": cosine(kept, k), "left_identity": cosine(torch.eye(len(k)).double(), k),
            "captured": sum(held) / rank, "captured_by_chance": sum(chance) / rank,
            "angles_k": rank // 8, "mean_cos2_angle": float((u[:, 0] @ v[:, 0]).square()),
            "tight_before": float(k.trace() ** 2 / len(k) / k.square().sum()),
            "tight_after": float(post.trace() ** 2 / len(post) / post.square().sum()),
            "condition_before": condition(k), "condition_after": condition(post),
            "tight_weight": float(frame.sum() ** 2 / len(frame) / frame.square().sum()),
            "condition_weight": float(frame[0] / frame[-1]),
        }  # fmt: skip
        for column, value in expected.items():
            assert line[column] == pytest.approx(value, rel=1e-6), column
        torch.testing.assert_close(row.agop, agop)
    # No other weight has the width of the first's input or the second's; the last has no K after it.
    assert table["other_layers"].isna().all() and math.isnan(table.loc["layers.2.W", "tight_after"])


def test_an_unembedding_of_any_vocabulary_has_a_row():
    """What is squared is as wide as the model, never as the vocabulary: 8 TB here."""
    matrix = torch.randn(2, 1_000_000, dtype=torch.float64)
    wide = WeightAnsatz("U", "W_U", 1, "logits", matrix, torch.eye(2).double(), None, None, 5)
    row = wide.row([], 1.0)
    assert row["tight_weight"] == pytest.approx(1.0, abs=0.01) and math.isnan(row["left"])


def test_other_layers_are_those_of_one_kind_width_and_objective():
    model, x = mlp([6, 6, 6, 3]), torch.randn(50, 6).double()
    objectives = {"once": unit_probes, "twice": lambda run: unit_probes(run)[:1]}
    found = feature_ansatz(model, x, objective=objectives, **QUIET)
    assert len(found) == 6
    table = found.to_pandas().set_index(["objective", "name"])
    rows = {(row.objective, row.name): row for row in found}
    for (objective, name), row in rows.items():
        grams = [other.gram for (o, n), other in rows.items() if o == objective and n != name]
        cosines = [float((g * row.agop).sum() / (g.norm() * row.agop.norm())) for g in grams]
        assert table.loc[(objective, name), "other_layers"] == pytest.approx(sum(cosines) / 2)


def test_what_was_found_is_named_and_told_in_a_line():
    model, x = mlp([6, 6, 6, 3]), torch.randn(50, 6).double()
    found = feature_ansatz(model, x, **QUIET)
    # A notebook that shows it must not print matrices.
    assert repr(found).startswith("FeatureAnsatz(3 weights, layers.0.W … layers.2.W; logit_probe")
    assert len(repr(found["layers.0.W"])) < 200
    with pytest.raises(KeyError, match="layers\\.0\\.W, layers\\.1\\.W"):
        found["layers.9.W"]


def test_what_is_wrong_is_said():
    model, x = mlp([6, 6, 6]), torch.randn(5, 6).double()
    weights = model.weights()
    transposed = replace(weights[0], matrix=weights[0].matrix.mT)
    with pytest.raises(ValueError, match=r"does not lead from 'layers\.0\.hook_in'"):
        feature_ansatz(model, x, [transposed], **QUIET)
    with pytest.raises(ValueError, match="carries width 6"):
        feature_ansatz(model, x, [replace(weights[0], matrix=torch.ones(6, 2))], **QUIET)
    with pytest.raises(ValueError, match=r"layers has \[7\]; expected some of 0\.\.1"):
        feature_ansatz(model, x, [7], **QUIET)
    with pytest.raises(TypeError, match=r"layers is 1; expected a list of numbers"):
        feature_ansatz(model, x, 1, **QUIET)
    with pytest.raises(TypeError, match="'lost'; expected a callable"):
        feature_ansatz(model, x, objective={"a": logit_probe(), "b": "lost"}, **QUIET)
    with pytest.raises(TypeError, match=r"pass layers=\[Weight"):
        feature_ansatz(torch.nn.Linear(2, 2), x, **QUIET)
    with pytest.raises(ValueError, match="dict of objectives is empty"):
        feature_ansatz(model, x, objective={}, **QUIET)
    with pytest.raises(ValueError, match="at least an input and an output"):
        HookedMLP([3])
    assert isinstance(weights[0], Weight)
