"""Only what is asked, where it is asked; sums in less memory; the same numbers all the while."""

import re
import warnings

import pytest
import torch

import tl_weighted_pca as wpca

MLP, RESID = "blocks.*.hook_mlp_out", "blocks.1.hook_resid_post"
NAMES = [f"blocks.{i}.hook_mlp_out" for i in range(4)]
KINDS = ("activation", "gradient", "weighted")
QUIET = {"progress": False, "batch_size": 3}


def close(a, b, tolerance):
    return float((a - b).norm() / b.norm()) <= tolerance


def same(a, b, tolerance=1e-7):
    """Every statistic that `a` has at a hook point is that of `b`."""
    for name in a:
        for kind in KINDS:
            one, other = getattr(a[name], kind), getattr(b[name], kind)
            if one is not None:
                mean = other.mean if kind == "activation" else torch.zeros_like(other.shift)
                assert close(one.about(mean), other.about(mean), tolerance)
    return True


@pytest.fixture(scope="module")
def whole(best_model, tokens):
    return wpca.collect(best_model, tokens, [*NAMES, RESID], **QUIET)


def held(moments):
    return {kind for kind in KINDS if getattr(moments, kind) is not None}


def test_statistics_by_name_and_glob(best_model, tokens, whole):
    asked = {MLP: "gradient", NAMES[1]: ["activation"], "*resid*": ["activation", "weighted"]}
    found = wpca.collect(best_model, tokens, [MLP, RESID], statistics=asked, **QUIET)
    assert list(found) == [*NAMES, RESID]
    assert held(found[NAMES[0]]) == {"gradient"} and held(found[NAMES[1]]) == {"activation"}
    assert held(found[RESID]) == {"activation", "weighted"} and same(found, whole)
    assert found[NAMES[1]].provenance.objective == ""
    assert found.settings["statistics"][NAMES[0]] == ["gradient"]
    # What no key matches has all.
    few = wpca.collect(
        best_model, tokens, [*NAMES, RESID], statistics={NAMES[0]: "activation"}, **QUIET
    )
    assert held(few[NAMES[0]]) == {"activation"} and held(few[RESID]) == set(KINDS)


def test_a_hook_point_without_gradients_takes_no_product_of_them(best_model, tokens, monkeypatch):
    """And one that wants gradients alone none of activations."""
    from tl_weighted_pca.moments import row_metric

    products = []
    original = row_metric.symmetric_product

    def counted(left, right):
        products.append(left.shape[-1])
        return original(left, right)

    monkeypatch.setattr(row_metric, "symmetric_product", counted)
    asked = {NAMES[0]: "activation", NAMES[1]: "gradient"}
    wpca.collect(
        best_model, tokens, NAMES[:2], statistics=asked, batch_size=len(tokens), progress=False
    )
    assert len(products) == 2


def test_a_hook_point_without_gradients_does_not_begin_the_graph(best_model, tokens):
    """It asks for none on the way back either: what it costs is a forward pass."""
    began = []

    def objective(run):
        began.extend(name for name, x in run.activations.items() if x.requires_grad)
        return wpca.next_token_loss(run)

    asked = {**dict.fromkeys(NAMES[:3], "activation"), NAMES[3]: "gradient"}
    found = wpca.collect(
        best_model, tokens[:3], NAMES, statistics=asked, objective=objective, **QUIET
    )
    assert began == [NAMES[3]]
    alone = wpca.collect(
        best_model, tokens[:3], NAMES[3], objective=objective, statistics="gradient", **QUIET
    )
    assert torch.equal(found[NAMES[3]].gradient.second, alone[NAMES[3]].gradient.second)


def test_row_metrics_and_heads_by_name(best_model, tokens):
    z = [f"blocks.{i}.attn.hook_z" for i in range(2)]
    found = wpca.collect(
        best_model, tokens, z, row_metric={z[0]: "diagonal"}, per_head={z[1]: True}, **QUIET
    )
    diagonal = wpca.collect(best_model, tokens, z[0], row_metric="diagonal", **QUIET)
    heads = wpca.collect(best_model, tokens, z[1], per_head=True, **QUIET)
    assert found[z[1]].weighted.shift.ndim == 2
    assert same({z[0]: found[z[0]], z[1]: found[z[1]]}, {z[0]: diagonal[z[0]], z[1]: heads[z[1]]})
    assert [found[name].provenance.row_metric for name in z] == ["diagonal", "gradient"]


def test_they_resume_and_merge(best_model, tokens, whole, tmp_path):
    asked = {
        "statistics": {MLP: "gradient"},
        "row_metric": {RESID: "diagonal"},
        "sums_dtype": "float32",
    }
    path, points = tmp_path / "run", [MLP, RESID]
    with pytest.warns(UserWarning, match="first batch has 60 tokens"):
        wpca.collect(best_model, tokens[:6], points, checkpoint=path, **asked, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed = wpca.collect(best_model, tokens, points, checkpoint=path, **asked, **QUIET)
        alone = wpca.collect(best_model, tokens, points, **asked, **QUIET)
    for name in alone:
        for kind in held(alone[name]):
            one, other = (getattr(x[name], kind).packed_second.flat for x in (alone, resumed))
            assert torch.equal(one, other) and one.dtype == torch.float32
    del asked["row_metric"]
    with pytest.raises(ValueError, match="was made with row_metric="):
        wpca.collect(best_model, tokens, points, checkpoint=path, **asked, **QUIET)
    # Float32 sums and float64 ones add, and files keep both.
    alone.save(tmp_path / "float32")
    loaded = wpca.Collection.load(tmp_path / "float32")
    assert loaded[RESID].activation.packed_second.flat.dtype == torch.float32
    double = wpca.collect(best_model, tokens, points, statistics={MLP: "gradient"},
                          row_metric={RESID: "diagonal"}, **QUIET)  # fmt: skip
    added = loaded + double
    assert added[RESID].activation.packed_second.flat.dtype == torch.float64
    assert close(added[RESID].activation.second, 2 * whole[RESID].activation.second, 1e-6)
    assert wpca.pca(added[RESID]).eigenvalues.dtype == torch.float64


@pytest.mark.parametrize("option", ["statistics", "row_metric", "per_head"])
def test_a_key_that_matches_nothing_is_told(best_model, tokens, option):
    with pytest.raises(ValueError, match=f"{option} has the key 'blocks.9.\\*', which is none of"):
        wpca.collect(best_model, tokens, NAMES, **{option: {"blocks.9.*": "activation"}}, **QUIET)


def test_wrong_options_are_told(best_model, tokens):
    for wrong in ({"sums_dtype": "float16"}, {"precision": "bfloat16"}):
        with pytest.raises(ValueError, match="; expected 'float64' or|; expected 'highest' or"):
            wpca.collect(best_model, tokens, NAMES, **wrong, **QUIET)
    with pytest.raises(ValueError, match="expected some of 'activation'"):
        wpca.collect(best_model, tokens, NAMES, statistics={MLP: "mean"}, **QUIET)
    with pytest.raises(ValueError, match="needs gradients, but objective is None"):
        wpca.collect(
            best_model, tokens, NAMES, statistics={MLP: "gradient"}, objective=None, **QUIET
        )


def test_aliases_cannot_be_asked_for_different_things(tokens):
    bridge = wpca.embedded.load_model("TransformerBridge")
    names = ["blocks.1.hook_resid_post", "blocks.1.hook_out"]
    assert bridge.hook_dict[names[0]] is bridge.hook_dict[names[1]]
    with pytest.raises(ValueError, match="are one hook point, and are asked for different"):
        wpca.collect(bridge, tokens, names, statistics={names[0]: "activation"}, **QUIET)


def test_globs_are_names_everywhere(best_model, tokens):
    found = wpca.collect(best_model, tokens, "blocks.[12].hook_resid_post", objective=None, **QUIET)
    assert list(found) == ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    with pytest.raises(ValueError, match="matches 4 hook points, and one is expected"):
        wpca.path_metric(best_model, tokens, MLP, wpca.pca(found[RESID]))


def test_what_the_sums_will_take_is_told_before_the_first_batch(
    best_model, tokens, capsys, monkeypatch
):
    wpca.collect(best_model, tokens, NAMES, objective=None, batch_size=3)
    told = re.search(r"The sums at 4 hook points take (\S+) kB on cpu", capsys.readouterr().err)
    assert float(told[1]) == pytest.approx(4 * 64 * 64 * 8 / 1000, rel=0.01)
    monkeypatch.setattr("tl_weighted_pca.moments.memory.free_memory", lambda device: 400_000)
    flags = [p.requires_grad for p in best_model.parameters()]
    message = r"at 3 of 4 hook points alone take 442 kB on cpu, where 400 kB are free: ask for"
    with pytest.raises(MemoryError, match=message):
        wpca.collect(best_model, tokens, NAMES, **QUIET)
    assert flags == [p.requires_grad for p in best_model.parameters()]
    assert wpca.collect(best_model, tokens, NAMES, statistics="gradient", **QUIET)


def test_float32_sums_over_a_million_tokens():
    """Within 5e-6, with a mean a hundred spreads away, a spectrum, and additions of 1,024 tokens."""
    generator = torch.Generator().manual_seed(0)
    d, n = 48, 1_000_448 // 1024
    kinds = {
        "float32": wpca.MomentAccumulator(sums_dtype="float32"),
        "float64": wpca.MomentAccumulator(),
    }
    scale = torch.logspace(0, -2, d)
    for _ in range(n):
        F = torch.randn(8, 128, d, generator=generator) * scale + 1.0
        g = torch.randn(8, 128, d, generator=generator)
        for each in kinds.values():
            each.update(F, g)
    one, other = (each.result() for each in kinds.values())
    assert one.n_tokens > 10**6
    for kind in KINDS:
        center = other.activation.mean if kind != "gradient" else torch.zeros(d)
        assert close(getattr(one, kind).about(center), getattr(other, kind).about(center), 5e-6)


def test_autocast_and_half_precision_models_keep_float32_products(tokens):
    """The products are those of the activations and gradients as they were, summed in float64."""
    model = wpca.embedded.load_model().to(torch.bfloat16)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            m = wpca.collect(model, tokens, RESID, **QUIET)[RESID]
            pairs = list(wpca.stream_pairs(model, tokens, RESID, batch_size=3))
        F, g = (
            torch.cat([getattr(p[RESID], part) for p in pairs], at).double()
            for part, at in (("activations", 0), ("gradients", 1))
        )
        F, g = F.flatten(0, 1), g[0].flatten(0, 1)
        centred = F - F.mean(0)
        assert close(m.activation.about(F.mean(0)), centred.T @ centred, 1e-6)
        assert close(m.gradient.second, g.T @ g, 1e-6)
