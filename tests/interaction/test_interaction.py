"""The local interaction basis and its edges: closed forms, the paper's own steps, and invariances."""

import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import KINDS, HookedRootModule
from datasets import Dataset
from fancy_einsum import einsum
from formulas import outer_products, rotation
from transformer_lens.hook_points import HookPoint

from tl_weighted_pca import (
    MomentAccumulator,
    ablation_curves,
    embedded,
    pca,
    random_basis,
    shard,
    weighted_pca,
)
from tl_weighted_pca.interaction import (
    edge_ablation_curves,
    interaction_edges,
    local_interaction_basis,
    used,
)
from tl_weighted_pca.interaction.jacobian_probe import jacobian_probe
from tl_weighted_pca.models.pretrained import load_pretrained
from tl_weighted_pca.objectives import squared_error
from tl_weighted_pca.streaming.one_pass import collect
from tl_weighted_pca.toy import HookedMLP

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"progress": False}


def mlp(widths, activation=torch.tanh, **options):
    return HookedMLP(widths, activation, **options).double()


def inputs(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x * torch.linspace(1.5, 0.5, d) + 1


NAMES = ["layers.0.hook_in", "layers.1.hook_in", "layers.2.hook_in", "layers.2.hook_pre"]


def assert_same_up_to_sign(a, b, **tolerances):
    """Columns equal but for their signs."""
    torch.testing.assert_close(a * (a * b).sum(0).sign(), b, **tolerances)


# -- closed forms ----------------------------------------------------------------------------------


def test_a_linear_network_s_basis_reads_the_output_s_principal_components():
    """f_L = f_l M_l: E_l = M_l V_L and Λ_l = Λ_L at every layer, and edges are diag Λ."""
    model, x = mlp([5, 6, 7, 4], None), inputs(60, 5)
    bases = local_interaction_basis(model, x, NAMES, **QUIET)
    w = [layer.W.detach() for layer in model.layers]
    y = model(x).detach()
    covariance = torch.cov(y.mT, correction=0)
    eigenvalues, v = (t.flip(-1) for t in torch.linalg.eigh(covariance))
    maps = [w[0] @ w[1] @ w[2], w[1] @ w[2], w[2], torch.eye(4).double()]
    for name, m in zip(NAMES, maps, strict=True):
        basis = used(bases[name], 1e-9)
        assert basis.n_components == 4 and bases[name].n_components == len(m)
        assert bases[name].method == "local_interaction_basis"
        torch.testing.assert_close(basis.eigenvalues, eigenvalues)
        assert_same_up_to_sign(basis.encoder, m @ v)
    graph = interaction_edges(model, x, bases, threshold=1e-9)
    assert list(graph.edges) == list(pairwise(NAMES))
    for edges in graph.edges.values():
        torch.testing.assert_close(edges, eigenvalues.diag(), atol=1e-9, rtol=1e-6)


def test_the_recursion_is_that_of_the_paper_step_by_step():
    """Whiten by PCA, the singular vectors of the Jacobian to the next basis, scale by singular values."""
    model, x = mlp([4, 6, 5, 3]), inputs(50, 4)
    bases = local_interaction_basis(model, x, NAMES, **QUIET)
    f = x
    layers = [f]
    for l, layer in enumerate(model.layers):
        f = f @ layer.W.detach() + layer.b.detach()
        f = f.tanh() if l < 2 else f
        layers.append(f)
    mean = [f.mean(0) for f in layers]
    d, u = torch.linalg.eigh(torch.cov(layers[3].mT, correction=0))
    encoder = u
    for l in (2, 1, 0):

        def onward(row, l=l, encoder=encoder):
            h = row @ model.layers[l].W.detach() + model.layers[l].b.detach()
            return (h.tanh() if l < 2 else h) @ encoder

        jacobian = torch.stack(
            [torch.autograd.functional.jacobian(onward, row) for row in layers[l]]
        )
        d, u = torch.linalg.eigh(torch.cov((layers[l] - mean[l]).mT, correction=0))
        present = d > 1e-12 * d.max()  # six tanh units of four inputs are all present
        whitening = u[:, present] / d[present].sqrt()
        dewhitened = u[:, present] * d[present].sqrt()
        in_white = jacobian @ dewhitened
        m = outer_products(in_white) / len(x)
        importance, v = (t.flip(-1) for t in torch.linalg.eigh(m))
        important = importance > 1e-12 * importance[0]
        encoder = whitening @ (v[:, important] * importance[important].sqrt())
        basis = used(bases[NAMES[l]], 1e-11)
        torch.testing.assert_close(basis.eigenvalues, importance[important])
        assert_same_up_to_sign(basis.encoder, encoder, rtol=1e-5, atol=1e-6)


def block_diagonal(seed=0):
    """Two networks side by side, of widths 2 and 3 at the input and 3 and 4 inside."""
    model = mlp([5, 7, 7, 4], seed=seed)
    splits = [2, 3, 3, 2]
    with torch.no_grad():
        for layer, (a, b) in zip(model.layers, pairwise(splits), strict=True):
            layer.W[:a, b:] = 0
            layer.W[a:, :b] = 0
            layer.b.copy_(torch.linspace(-0.5, 0.5, len(layer.b)))
    first, second = inputs(9, 2, 1), inputs(8, 3, 2)
    product = torch.cat(
        [first.repeat_interleave(len(second), 0), second.repeat(len(first), 1)], dim=1
    )
    return model, product, splits


def mixing(graph, splits):
    """The share of each pair's strength between features of different blocks."""
    shares = []
    for (here, there), edges in graph.edges.items():
        sides = []
        for name in (here, there):
            decoder = graph.bases[name].decoder
            split = splits[NAMES.index(name)]
            inside = decoder[:, :split].square().sum(1) > decoder[:, split:].square().sum(1)
            sides.append(inside)
        across = sides[0][:, None] != sides[1][None, :]
        shares.append(float(edges[across].sum() / edges.sum()))
    return max(shares)


def test_a_block_diagonal_network_has_block_diagonal_edges():
    model, product, splits = block_diagonal()
    bases = local_interaction_basis(model, product, NAMES, **QUIET)
    exact = mixing(interaction_edges(model, product, bases), splits)
    assert exact < 1e-6
    for name, split in zip(NAMES, splits, strict=True):
        rows = bases[name].decoder.abs()
        smaller = torch.minimum(rows[:, :split].amax(1), rows[:, split:].amax(1))
        assert (smaller / rows.amax(1)).max() < 1e-5
    # Independent inputs are uncorrelated in a product design only: drawn ones mix the blocks, and so
    # do sampled probes. benchmarks/interaction.py measures by how much.
    drawn = product[torch.randint(len(product), (60,), generator=torch.Generator().manual_seed(0))]
    bases = local_interaction_basis(model, drawn, NAMES, **QUIET)
    assert mixing(interaction_edges(model, drawn, bases), splits) > 1e-4
    sampled = local_interaction_basis(model, product, NAMES, exact=False, n_probes=2, **QUIET)
    assert mixing(interaction_edges(model, product, sampled), splits) > 1e-4


# -- accounts and invariances -----------------------------------------------------------------------


def test_edges_out_of_a_feature_sum_to_its_importance():
    model, x = mlp([4, 6, 5, 3]), inputs(50, 4)
    bases = local_interaction_basis(model, x, NAMES, **QUIET)
    graph = interaction_edges(model, x, bases, chunk=2, batch_size=7)
    for (here, _), edges in graph.edges.items():
        torch.testing.assert_close(
            edges.sum(1), used(bases[here]).eigenvalues, rtol=1e-6, atol=1e-9
        )
        torch.testing.assert_close(graph.variances[here], used(bases[here]).eigenvalues)


def test_rotating_or_permuting_a_layer_changes_no_edge():
    model, x = mlp([4, 6, 5, 3]), inputs(50, 4)
    graph = interaction_edges(model, x, local_interaction_basis(model, x, NAMES, **QUIET))
    turned, turn, back = mlp([4, 6, 5, 3]), rotation(4, 0), rotation(3, 1)
    shuffled = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        turned.layers[0].W.copy_((turn.mT @ model.layers[0].W)[:, shuffled])
        turned.layers[0].b.copy_(model.layers[0].b[shuffled])
        turned.layers[1].W.copy_(model.layers[1].W[shuffled])
        turned.layers[2].W.copy_(model.layers[2].W @ back)
    there = x @ turn
    bases = local_interaction_basis(turned, there, NAMES, **QUIET)
    again = interaction_edges(turned, there, bases)
    for pair, edges in graph.edges.items():
        torch.testing.assert_close(again.edges[pair], edges, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(
            torch.linalg.svdvals(again.edges[pair]), torch.linalg.svdvals(edges)
        )


def transformer():
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        pytest.skip("this TransformerLens has no HookedTransformer")
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=2, d_model=6, n_ctx=5, d_head=3, n_heads=2, d_mlp=9, d_vocab=7, seed=0,
            act_fn="gelu", normalization_type="LN", dtype=torch.float64, device="cpu",
            initializer_range=0.6,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("positions", [None, slice(1, 3), slice(-1, None)])
def test_positions_that_count_are_source_and_target_alike(positions):
    model = transformer()
    x = torch.randint(0, 7, (6, 4), generator=torch.Generator().manual_seed(0))
    here, there = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
    options = {"positions": positions, "batch_size": 4}
    bases = local_interaction_basis(model, x, [here, there], **options, **QUIET)
    graph = interaction_edges(model, x, bases, threshold=1e-9, **options)
    signed = interaction_edges(model, x, bases, threshold=1e-9, exact=False, **options)
    a, b = (used(bases[name], 1e-9) for name in (here, there))
    _, cache = model.run_with_cache(x)
    at = range(4)[positions] if positions else range(4)
    metric = torch.zeros(6, 6).double()
    slow = torch.zeros(a.n_components, b.n_components).double()
    for row in cache[here].detach():

        def onward(f):
            return model.blocks[1](f[None])[0] @ b.encoder

        jacobian = torch.autograd.functional.jacobian(onward, row)  # t k s d
        jacobian = jacobian[list(at)][:, :, list(at)]
        metric += einsum("t k s i, t k s j -> i j", jacobian, jacobian)
        slow += einsum("t k s i, a i -> t k s a", jacobian, a.decoder).square().sum((0, 2)).mT
    n = len(x) * len(at)
    z = a.encode(cache[here].detach()[:, list(at)])
    variance = z.square().mean((0, 1))
    torch.testing.assert_close(variance, a.eigenvalues, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        graph.edges[here, there], variance[:, None] * slow / n, rtol=1e-6, atol=1e-9
    )
    if a.n_components == 6:  # Q is EEᵀ where all of the stream is present
        torch.testing.assert_close(a.encoder @ a.encoder.mT, metric / n, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="selects no token"):
        interaction_edges(model, x, bases, positions=slice(4, None), **QUIET)
    if len(at) == 1:  # one probe a coordinate, with random signs over positions, is then exact
        torch.testing.assert_close(signed.edges[here, there], graph.edges[here, there])


def test_random_signs_over_positions_leave_edges_unbiased():
    model = transformer()
    x = torch.randint(0, 7, (6, 4), generator=torch.Generator().manual_seed(0))
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    bases = local_interaction_basis(model, x, names, **QUIET)
    exact = interaction_edges(model, x, bases, **QUIET).edges[tuple(names)]
    draws = torch.stack(
        [
            interaction_edges(model, x, bases, exact=False, seed=seed, **QUIET).edges[tuple(names)]
            for seed in range(60)
        ]
    )
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() / error).max() < 4.5
    assert error.norm() < 0.02 * exact.norm()


def test_random_probes_come_near_the_exact_jacobian():
    model = transformer()
    x = torch.randint(0, 7, (40, 5), generator=torch.Generator().manual_seed(0))
    names = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    exact = local_interaction_basis(model, x, names, batch_size=40, **QUIET)
    errors = []
    for n_probes in (4, 64):
        basis = local_interaction_basis(
            model, x, names, exact=False, n_probes=n_probes, batch_size=40, **QUIET
        )
        errors.append(float(torch.dist(basis[names[0]].eigenvalues, exact[names[0]].eigenvalues)))
    scale = float(exact[names[0]].eigenvalues.norm())
    assert errors[1] < errors[0] and errors[1] < 0.05 * scale


# -- what is kept, and what is cut --------------------------------------------------------------------


def test_the_graph_s_views_agree():
    model, x = mlp([4, 6, 5, 3]), inputs(50, 4)
    graph = interaction_edges(model, x, local_interaction_basis(model, x, NAMES, **QUIET))
    pair = (NAMES[0], NAMES[1])
    edges = graph.edges[pair]
    kept = graph.strongest(0.9)[pair]
    assert edges[kept].sum() >= 0.9 * edges.sum() > edges[kept].sum() - edges[kept].min()
    assert (
        graph.n_edges(0.9)[pair]
        == int(kept.sum())
        == (graph.to_pandas(0.9).from_hook_point == NAMES[0]).sum()
    )
    assert graph.n_edges(0)[pair] == 0 and graph.n_edges(1)[pair] <= edges.numel()
    networkx = pytest.importorskip("networkx")
    nodes = graph.to_networkx()
    assert nodes.nodes[NAMES[0], 0]["layer"] == 0
    assert nodes[NAMES[0], 0][NAMES[1], 0]["weight"] == pytest.approx(
        float(edges[0, 0] / edges.sum())
    )
    halves = networkx.community.greedy_modularity_communities(nodes, weight="weight")
    assert -0.5 <= networkx.community.modularity(nodes, halves) <= 1
    with pytest.raises(ValueError, match="from 0 to 1"):
        graph.strongest(2)


def test_cutting_no_edge_keeps_the_model_and_cutting_all_ablates_the_earlier_layer():
    model, x, _ = block_diagonal()
    y = model(x).detach() + 0.1
    here, there = NAMES[1], NAMES[2]
    bases = local_interaction_basis(model, x, NAMES[1:], **QUIET)
    stats = collect(model, x, [here, there], objective=None, **QUIET)
    graphs = {
        "LIB": interaction_edges(model, x, bases),
        "PCA": interaction_edges(model, x, {name: pca(stats[name]) for name in (here, there)}),
    }
    score = squared_error(y)
    curves = edge_ablation_curves(
        model, x, graphs, (here, there), n_edges=[0, 25, 49, 10**6], score=score, batch_size=50
    )
    nodes = ablation_curves(
        model, x, {"PCA": pca(stats[here])}, here, ranks=[0], score=score, **QUIET
    )
    for name in graphs:
        scores = curves.scores[name]
        assert scores[0] == pytest.approx(nodes.scores["PCA"][0])
        assert scores[3] == pytest.approx(curves.baseline, rel=1e-6)
    # Between blocks there is nothing: with half of the edges the LIB graph keeps the model.
    assert curves.scores["LIB"][1] == pytest.approx(curves.baseline, rel=1e-4)


def test_both_model_classes_give_one_basis():
    from tl_weighted_pca.embedded import load_model, stories

    data = stories("heldout", 6)
    names = ["blocks.1.hook_resid_post", "blocks.3.hook_resid_post"]
    found = []
    for kind in ("TransformerBridge", "HookedTransformer"):
        try:
            model = load_model(kind, device="cpu")
        except ValueError:
            continue
        bases = local_interaction_basis(model, data, names, n_probes=2, **QUIET)
        edges = interaction_edges(
            model, data, {n: b.truncate(6) for n, b in bases.items()}, batch_size=4
        )
        assert edges.edges[tuple(names)].shape == (6, 6)
        found.append(bases)
    for name in names:
        first, last = found[0][name].eigenvalues, found[-1][name].eigenvalues
        assert torch.dist(first, last) < 1e-3 * first.norm()


def test_what_is_wrong_is_said():
    model, x = mlp([4, 6, 5, 3]), inputs(9, 4)
    with pytest.raises(ValueError, match="in which the model computes them"):
        local_interaction_basis(model, x, NAMES[::-1], **QUIET)
    with pytest.raises(ValueError, match="at least two hook points"):
        local_interaction_basis(model, x, NAMES[0], **QUIET)
    with pytest.raises(ValueError, match=r"list\(data\)"):
        local_interaction_basis(model, iter([x]), NAMES, **QUIET)
    bases = local_interaction_basis(model, x, NAMES, **QUIET)
    graph = interaction_edges(model, x, bases)
    with pytest.raises(ValueError, match="has no edges between"):
        edge_ablation_curves(model, x, {"LIB": graph}, (NAMES[0], NAMES[2]), n_edges=[1])
    with pytest.raises(ValueError, match="One of n_edges is -1; expected at least 0"):
        edge_ablation_curves(model, x, {"LIB": graph}, (NAMES[0], NAMES[1]), n_edges=[-1])
    options = {"n_edges": [1], **QUIET}
    for graphs in ({}, graph):
        with pytest.raises(TypeError, match="expected a dict of at least one graph by name"):
            edge_ablation_curves(model, x, graphs, (NAMES[0], NAMES[1]), **options)
    listed = edge_ablation_curves(
        model, x, {"LIB": graph}, NAMES[:2], score=lambda run: run.output.sum(1), **options
    )
    assert listed.ranks == [1]
    with pytest.raises(ValueError, match="score of the unablated model is NaN in batch 0"):
        edge_ablation_curves(
            model,
            x,
            {"LIB": graph},
            NAMES[:2],
            score=lambda run: run.output[:, 0] * torch.nan,
            **options,
        )
    share = shard(x, rank=len(x), world_size=len(x) + 1)
    for call in (
        lambda: edge_ablation_curves(
            model, share, {"LIB": graph}, NAMES[:2], score=lambda run: run.output.sum(1), **options
        ),
        lambda: ablation_curves(
            model, share, {"a": bases[NAMES[0]]}, NAMES[0], score=lambda run: run.output.sum(1)
        ),
        lambda: interaction_edges(model, share, bases, **QUIET),
    ):
        with pytest.raises(ValueError, match="process's share of the data is empty"):
            call()
    with pytest.raises(ValueError, match="chunk is 0; expected at least 1"):
        interaction_edges(model, x, bases, chunk=0, **QUIET)
    with pytest.raises(ValueError, match="threshold is 1.5; expected a share"):
        interaction_edges(model, x, bases, threshold=1.5, **QUIET)
    with pytest.raises(ValueError, match="there is no row metric here"):
        local_interaction_basis(model, x, NAMES, center="row_metric", **QUIET)
    narrow = {NAMES[0]: bases[NAMES[1]], NAMES[1]: bases[NAMES[1]]}
    with pytest.raises(ValueError, match=r"has width \d+, but 'layers.0.hook_in' carries width"):
        interaction_edges(model, x, narrow, anywhere=True, **QUIET)
    with pytest.raises(TypeError, match="bases is a list; expected a dict"):
        interaction_edges(model, x, list(bases.values()), **QUIET)
    with pytest.raises(TypeError, match="bases is a dict of Tensor; expected"):
        interaction_edges(model, x, {n: torch.eye(3) for n in NAMES}, **QUIET)
    still = replace(bases[NAMES[0]], eigenvalues=0 * bases[NAMES[0]].eigenvalues)
    with pytest.raises(ValueError, match="nothing there varies"):
        used(still)


def test_a_basis_serves_where_it_was_made_unless_told_otherwise():
    """Of one width, so that nothing else would tell."""
    model, x = mlp([4, 4, 4, 4]), inputs(20, 4)
    bases = local_interaction_basis(model, x, NAMES, **QUIET)
    a, b = NAMES[:2]
    swapped = {a: bases[b], b: bases[a]}
    with pytest.raises(ValueError, match="This basis was made at 'layers.1.hook_in'"):
        interaction_edges(model, x, swapped, **QUIET)
    graph = interaction_edges(model, x, swapped, anywhere=True, **QUIET)
    assert repr(graph) == f"InteractionGraph({a} (4) → {b} (4); n_tokens=20)"
    with pytest.raises(ValueError, match="This basis was made at"):
        edge_ablation_curves(model, x, {"LIB": graph}, (a, b), n_edges=[1], **QUIET)
    curves = edge_ablation_curves(
        model, x, {"LIB": graph}, (a, b), n_edges=[16], score=squared_error(x),
        anywhere=True, **QUIET,
    )  # fmt: skip
    assert curves.scores["LIB"][0] == pytest.approx(curves.baseline, rel=1e-6)


def test_hooks_for_gradients_are_run_by_the_collector_alone():
    from pathlib import Path

    import tl_weighted_pca

    folder = Path(tl_weighted_pca.__file__).parent
    for file in [*folder.glob("ansatz/*.py"), *folder.glob("interaction/*.py")]:
        text = file.read_text()
        for word in (
            "fwd_hooks",
            "bwd_hooks",
            "add_hook",
            "register_hook",
            "autograd",
            ".backward(",
        ):
            assert word not in text, (file.name, word)


# -- what is counted, sequence by sequence -----------------------------------------------------------

POINTS = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]


def embedded_bases(model, tokens, k):
    stats = collect(model, tokens, POINTS, objective=None, **QUIET)
    return {name: pca(stats[name]).truncate(k) for name in POINTS}


@pytest.mark.parametrize("exact", [None, False])
def test_a_sequence_is_exact_or_not_by_itself(best_model, tokens, exact):
    """Of 6 tokens and 16 coordinates are 96, of 12 are more than 128: whatever the batch they come in."""
    rows = [row[: 6 if i % 2 else 12].tolist() for i, row in enumerate(tokens[:6])]
    data = Dataset.from_dict({"input_ids": rows})
    bases = embedded_bases(best_model, tokens, 16)
    probe = jacobian_probe(POINTS[1], bases[POINTS[1]], exact=exact)
    found = []
    for size in (1, 2, 6):
        q = collect(best_model, data, POINTS[0], objective=probe, batch_size=size, **QUIET)
        edges = interaction_edges(best_model, data, bases, exact=exact, batch_size=size, **QUIET)
        found.append((q[POINTS[0]].gradient.second, *edges.edges.values()))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)
    if exact is None:  # the short ones exactly
        short = Dataset.from_dict({"input_ids": rows[1::2]})
        options = {"objective": jacobian_probe(POINTS[1], bases[POINTS[1]], exact=True), **QUIET}
        right = collect(best_model, short, POINTS[0], **options)[POINTS[0]].gradient.second
        options["objective"] = probe
        got = collect(best_model, short, POINTS[0], **options)[POINTS[0]].gradient.second
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_edge(best_model, tokens, side, exact):
    bases = embedded_bases(best_model, tokens, 8)
    pad, ones = torch.full((3, 4), 9), torch.ones(3, 12).long()
    join = [tokens[:3, :12], pad] if side == "right" else [pad, tokens[:3, :12]]
    mask = [ones, ones[:, :4] * 0] if side == "right" else [ones[:, :4] * 0, ones]
    padded = [{"input_ids": torch.cat(join, 1), "attention_mask": torch.cat(mask, 1)}]
    options = {"exact": exact, **QUIET}
    plain = interaction_edges(best_model, tokens[:3, :12], bases, **options)
    found = interaction_edges(best_model, padded, bases, **options)
    torch.testing.assert_close(
        list(found.edges.values()), list(plain.edges.values()), rtol=1e-3, atol=1e-5
    )


def test_positions_left_out_cost_no_probe(best_model, tokens):
    basis = embedded_bases(best_model, tokens, 64)[POINTS[1]]
    samples = []

    def counted(run):
        samples.append(len(probe(run)))
        return probe(run)

    probe = jacobian_probe(POINTS[1], basis, positions=[-1])
    counted.hook_points = probe.hook_points
    collect(best_model, tokens[:2], POINTS[0], objective=counted, **QUIET)
    assert samples == [64]


def test_what_float32_cannot_tell_from_nothing_is_not_used(tokens):
    """Twelve tokens span eleven directions: the rest is rounding, which would count fully where Q = I."""
    from tl_weighted_pca import embedded

    found = {}
    for dtype in (torch.float32, torch.float64):
        model = embedded.load_model(dtype=dtype)
        found[dtype] = local_interaction_basis(model, tokens[:3, :4], POINTS, exact=True, **QUIET)
    for name in POINTS:
        ours, exact = (found[dtype][name] for dtype in (torch.float32, torch.float64))
        assert used(ours).n_components == used(exact).n_components <= 11
        torch.testing.assert_close(ours.eigenvalues[:5], exact.eigenvalues[:5], rtol=1e-3, atol=0)


def test_variances_are_about_the_mean_at_every_layer(best_model, tokens):
    stats = collect(best_model, tokens, POINTS, **QUIET)
    bases = {
        POINTS[0]: pca(stats[POINTS[0]], center=False),
        POINTS[1]: weighted_pca(stats[POINTS[1]]),
    }
    bases = {name: basis.truncate(5) for name, basis in bases.items()}
    graph = interaction_edges(best_model, tokens, bases, **QUIET)
    _, cache = best_model.run_with_cache(tokens)
    for name in POINTS:
        z = bases[name].encode(cache[name]).double().flatten(0, 1)
        torch.testing.assert_close(graph.variances[name], z.var(0, correction=0), rtol=1e-4, atol=0)


def test_pairs_are_averaged_over_their_own_tokens():
    """A hook point with seven rows a sequence before two with one: a linear map's edges sum to Var."""

    class Pooled(HookedRootModule):
        def __init__(self):
            super().__init__()
            self.h0, self.h1, self.h2 = HookPoint(), HookPoint(), HookPoint()
            generator = torch.Generator().manual_seed(0)
            self.w = torch.randn(5, 5, generator=generator, dtype=torch.float64)
            self.setup()

        def forward(self, x):
            return self.h2(self.h1(self.h0(x).tanh().sum(1)) @ self.w)

    x = inputs(60, 5)[:56].view(8, 7, 5)
    stats = collect(Pooled(), x, ["h0", "h1", "h2"], objective=None, **QUIET)
    bases = {name: pca(stats[name]) for name in ("h0", "h1", "h2")}
    graph = interaction_edges(Pooled(), x, bases, **QUIET)
    torch.testing.assert_close(graph.edges["h1", "h2"].sum(0), graph.variances["h2"])


def test_one_large_dimension_hides_no_small_one():
    """As massive activations do not: rounding of a product goes by its own factors."""
    x = torch.randn(3000, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e4, 1, 1, 1, 1, 1]
    )
    accumulator = MomentAccumulator("identity", statistics=("activation",))
    moments = accumulator.update(x[None]).result()
    assert used(pca(moments)).n_components == 6
    flat = torch.randn(3000, 4, generator=torch.Generator().manual_seed(1)) @ torch.randn(4, 16)
    accumulator = MomentAccumulator("identity", statistics=("activation",))
    assert used(pca(accumulator.update(flat[None]).result())).n_components == 4


def test_used_goes_by_the_largest_eigenvalue_wherever_it_stands(best_model, tokens):
    moments = collect(best_model, tokens, POINTS[0], objective=None, **QUIET)[POINTS[0]]
    basis = random_basis(moments)
    kept = used(basis, 0.5)
    large = basis.eigenvalues > basis.eigenvalues.max() / 2
    assert torch.equal(kept.eigenvalues, basis.eigenvalues[large])
    assert torch.equal(kept.encoder, basis.encoder[:, large])


@pytest.mark.parametrize("exact", [True, False])
def test_heads_are_read_flattened(model, tokens, exact):
    names = ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]
    bases = local_interaction_basis(model, tokens[:2, :3], names, exact=exact, **QUIET)
    assert bases[names[0]].width == 64 and used(bases[names[0]]).n_components > 1


class TestWhatGoesPast:
    """A hook point beside a skip path has not all that reaches the next, and no Jacobian to it."""

    def lib(self, model, data, names, **options):
        return local_interaction_basis(model, data, names, n_probes=1, progress=False, **options)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_skip_path_is_told(self, kind):
        model = embedded.load_model(kind)
        data = embedded.stories("train", 4)
        past = ["blocks.1.mlp.hook_post", "blocks.2.hook_resid_post"]
        for names in (past, ["blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"]):
            with pytest.warns(UserWarning, match=f"{names[0]!r} does not carry all that reaches"):
                self.lib(model, data, names)
        bases = {
            name: pca(collect(model, data, name, objective=None, progress=False)[name])
            for name in past
        }
        with pytest.warns(UserWarning, match="does not carry all that reaches"):
            interaction_edges(model, data, bases, progress=False)

    @pytest.mark.parametrize("n", [1, 5])
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_residual_stream_is_not(self, kind, n):
        """Of sequences of different lengths, and of one alone; positions are no way past."""
        model = embedded.load_model(kind)
        data = embedded.stories("train", n)
        names = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert list(self.lib(model, data, names)) == names

    def test_in_half_precision_too(self):
        model = load_pretrained(dtype=torch.bfloat16, device="cpu")
        data = embedded.stories("train", 3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert self.lib(model, data, ["blocks.2.hook_resid_post", "blocks.3.hook_resid_post"])
