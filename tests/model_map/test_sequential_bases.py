"""Bases of activations that earlier ablations have changed, against a plain loop written out."""

import pytest
import torch
from conftest import KINDS
from formulas import reconstructed

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.data.batches import batches

STREAM = [f"blocks.{layer}.hook_resid_post" for layer in range(4)]
MIXED = ["hook_embed", "blocks.1.attn.hook_z", "blocks.1.hook_attn_out", "blocks.2.mlp.hook_post"]
QUIET = {"progress": False}


def rows_that_arrive(model, data, place, bases, kept, positions):
    """Rows at a hook point, while plain hooks ablate those before it, in float64."""
    found = []
    for batch in batches(data, 7):
        mask = torch.ones(batch.inputs.shape).bool() if batch.mask is None else batch.mask
        counts = torch.zeros_like(mask)
        for i, row in enumerate(mask):
            counts[i, row.nonzero()[:, 0][positions]] = True

        def ablate(name, counts=counts):
            def hook(f, hook):
                new = reconstructed(f.flatten(2), bases[name], kept[name]).view(f.shape).to(f)
                return torch.where(counts.view(*counts.shape, *[1] * (f.ndim - 2)), new, f)

            return hook

        def keep(f, hook, counts=counts):
            found.append(f.flatten(2)[counts].double())

        hooks = [*((name, ablate(name)) for name in bases), (place, keep)]
        options = {} if batch.mask is None else {"attention_mask": mask.long()}
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            model(batch.inputs, **options)
    return torch.cat(found)


def projection_in_metric(rows, metric, k):
    """C^½ W_kW_kᵀ C^-½, W the top eigenvectors of C^½QC^½: E_kD_k where C is invertible."""
    covariance = rows.T.cov(correction=0)
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp(min=1e-9 * values[-1])
    root, inverse = ((axes * values**power) @ axes.T for power in (0.5, -0.5))
    W = torch.linalg.eigh(root @ metric @ root)[1][:, -k:]
    return inverse @ W @ W.T @ root


@pytest.mark.parametrize(
    ("places", "ranks", "positions"),
    [
        (STREAM, 0.5, slice(None)),
        (MIXED, dict(zip(MIXED, (40, 0.25, 9, 30), strict=True)), slice(2, 9)),
    ],
    ids=["stream", "mixed"],
)
def test_it_is_the_plain_loop(model, heldout, places, ranks, positions):
    heldout = heldout.select(range(10))
    model.train()
    options = {"positions": positions, "batch_size": 7, **QUIET}
    shuffled = places[::-1]  # the order is that of the pass
    found = wpca.sequential_bases(model, heldout, shuffled, ranks, **options)
    assert list(found) == places and model.training
    model.eval()
    clean = wpca.collect(
        model, heldout, places, objective=wpca.sampled_token_loss(), **options,
        statistics=["activation", "gradient"],
    )  # fmt: skip
    kept, done = {}, {}
    for place, basis in found.items():
        rank = ranks[place] if isinstance(ranks, dict) else ranks
        k = kept[place] = rank if isinstance(rank, int) else round(rank * basis.width)
        rows = rows_that_arrive(model, heldout, place, done, kept, positions)
        torch.testing.assert_close(basis.center, rows.mean(0), rtol=1e-4, atol=1e-5)
        covariance = rows.T.cov(correction=0)
        metric = wpca.fisher_metric(clean[place]).matrix
        total = float((covariance @ metric).trace())
        assert float(basis.total) == pytest.approx(total, rel=1e-4)
        # The projection that loses least in the metric, by a different formula.
        lost = [
            float(((f := rows - rows.mean(0)) - f @ P).mm(metric).mul(f - f @ P).sum() / len(f))
            for P in (
                basis.encoder[:, :k] @ basis.decoder[:k],
                projection_in_metric(rows, metric, k),
            )
        ]
        assert lost[0] == pytest.approx(lost[1], rel=1e-3, abs=1e-7 * total)
        done[place] = basis
        assert basis.method == "metric_pca(fisher)" and basis.n_components == basis.width
        assert basis.provenance.hook_point == place


def test_they_cost_less_together_than_bases_of_the_unablated_model(best_model):
    train, heldout = embedded.stories("train", 30), embedded.stories("heldout", 8)
    found = wpca.dimension_map(
        best_model, train, STREAM, heldout=heldout, bases=["fisher"], shares=[0.5], **QUIET
    )
    bases = {
        "independent": found.bases["fisher"],
        "sequential": wpca.sequential_bases(best_model, train, STREAM, 0.5, **QUIET),
    }
    curves = wpca.ablation_curves(best_model, heldout, bases, ranks=[0.5], score="kl", **QUIET)
    assert curves.relative_excess("sequential", to="independent", ranks=curves.ranks).high < 0.9


def test_each_pass_but_the_first_ends_at_its_hook_point(tokens):
    if "HookedTransformer" not in KINDS:
        pytest.skip("a bridge's blocks are other modules")
    model, runs = embedded.load_model("HookedTransformer"), [0] * 4
    for i, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
    wpca.sequential_bases(model, tokens, STREAM, 0.5, batch_size=5, **QUIET)
    tried = (
        1 + 2 * 4 + 2
    )  # one batch, two for each hook point that ask who reads it, and two of collect
    collected = 2
    assert runs[0] == tried + collected + 3 * 2  # two batches for each of three later hook points
    assert [runs[0] - n for n in runs] == [0, 0, 2, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": 65}, "ranks .* are outside 0..64"),
        ({"ranks": 1.5}, "a share of the width between 0.0 and 1.0"),
        (
            {"ranks": {STREAM[0]: 8}},
            "A rank is given at blocks.0.hook_resid_post, but the bases are",
        ),
        ({"hook_points": "blocks.*.hook_nothing"}, "No hook point of the model matches"),
        ({"data": iter([])}, "it is read once for each hook point"),
    ],
)
def test_what_is_refused_before_anything_is_collected(best_model, tokens, change, message):
    class Once:
        """A data set whose second batch nobody may read."""

        def __iter__(self):
            yield tokens
            raise AssertionError("read")

    options = {"data": Once(), "hook_points": STREAM[:2], "ranks": 0.5} | change
    with pytest.raises(ValueError, match=message):
        wpca.sequential_bases(best_model, **options, batch_size=len(tokens), **QUIET)


def test_two_names_of_one_hook_point_are_refused(tokens):
    bridge = embedded.load_model("TransformerBridge")
    with pytest.raises(ValueError, match="two names of one hook point"):
        wpca.sequential_bases(bridge, tokens, [STREAM[1], "blocks.1.hook_out"], 0.5, **QUIET)
