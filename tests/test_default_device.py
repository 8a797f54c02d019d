"""Tensors are made on the device of what they meet: none lands on the default device by oversight.

With the default device "meta" one that does has no values, and what comes of it fails or is meta too.
"""

import dataclasses
import warnings
from collections.abc import Mapping

import numpy as np
import pytest
import torch

import tl_weighted_pca as wpca

HERE, THERE = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
QUIET = {"progress": False}


class Setting:
    """What the uses share, made on the CPU."""

    def __init__(self, model, tokens, folder):
        self.model, self.tokens, self.folder = model, tokens, folder
        mask = torch.ones(4, 20, dtype=torch.bool)
        mask[1, 15:] = mask[2, :6] = False
        self.padded = [{"input_ids": tokens[:4], "attention_mask": mask}]
        self.heads = torch.randn(3, 200, 64, generator=torch.Generator().manual_seed(0))
        self.fisher = wpca.sampled_token_loss()
        stats = wpca.collect(model, tokens, [HERE, THERE], objective=self.fisher, **QUIET)
        self.stats, self.m = stats, stats[HERE]
        self.pca, self.oblique = wpca.pca(self.m), wpca.metric_pca(self.m)
        self.left, self.right = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
        self.layers = {name: wpca.pca(stats[name]).truncate(4) for name in (HERE, THERE)}

    def curves(self):
        bases = {"pca": self.pca, "random": wpca.random_basis(self.m)}
        return wpca.ablation_curves(self.model, self.tokens, bases, HERE, ranks=[4, 64], **QUIET)

    def mapped(self):
        return wpca.dimension_map(
            self.model, self.tokens, [HERE], heldout=self.tokens, shares=[0.1, 0.5], **QUIET
        )

    def pairs(self):
        return wpca.stream_pairs(self.model, self.tokens, HERE, objective=self.fisher)

    def saved(self, kind, thing):
        thing.save(self.folder / "file")
        return kind.load(self.folder / "file")

    def seen(self, objective):
        return wpca.collect(self.model, self.tokens, HERE, objective=objective, **QUIET)

    def switched(self):
        with wpca.use_linalg_svd():
            return tuple(self.model.OV.svd())


USES = {
    "SVD": lambda s: tuple(wpca.svd(s.left, s.right.mT)),
    "AblationCurves": lambda s: (s.curves().area("pca"), s.curves().to_pandas()["score"].to_numpy()),
    "Basis": lambda s: (s.saved(wpca.Basis, s.oblique).encode(s.left.new_ones(2, 64)),
                        s.oblique.project(s.left.new_ones(2, 64), 3), s.pca.to("cpu").digest),
    "Collection": lambda s: s.saved(wpca.Collection, s.stats.to("cpu") + s.stats),
    "Estimate": lambda s: s.curves().relative_excess("random", ranks=[4]),
    "FactoredMatrix": lambda s: tuple(wpca.FactoredMatrix(s.left, s.right.mT).svd()),
    "FeatureAnsatz": lambda s: wpca.feature_ansatz(s.model, s.tokens, **QUIET).to_pandas(),
    "FeatureCards": lambda s: wpca.cards(s.model, s.tokens, s.pca.truncate(2), **QUIET).to_html(),
    "Metric": lambda s: 2 * wpca.Metric(s.left.T @ s.left) + wpca.Metric(s.left.T @ s.left),
    "MomentAccumulator": lambda s: wpca.MomentAccumulator().update(*s.left.new_ones(2, 2, 3, 4)).result(),
    "Moments": lambda s: s.m + s.m,
    "Pairs": lambda s: [pair[HERE].rows() for pair in s.pairs()],
    "Provenance": lambda s: s.m.provenance,
    "SecondMoment": lambda s: wpca.SecondMoment.about_zero(s.left[0, 0].abs(), s.left[0], s.left.T @ s.left).mean,  # noqa: E501
    "ablation_curves": lambda s: s.curves().scores,
    "DimensionMap": lambda s: s.mapped().to_pandas(),
    "allocate_ranks": lambda s: wpca.allocate_ranks({HERE: s.oblique, THERE: wpca.metric_pca(s.stats[THERE])}, total=9),  # noqa: E501
    "dimension_map": lambda s: s.mapped().to_pandas(),
    "cards": lambda s: wpca.cards(s.model, s.tokens, s.oblique.truncate(2), **QUIET).to_html(),
    "collect": lambda s: wpca.collect(s.model, s.tokens, "blocks.*.attn.hook_z", per_head=True, **QUIET),
    "edge_ablation_curves": lambda s: wpca.edge_ablation_curves(
        s.model, s.tokens, {"pca": wpca.interaction_edges(s.model, s.tokens, s.layers, **QUIET)},
        (HERE, THERE), n_edges=[0, 4], **QUIET).scores,
    "feature_ansatz": lambda s: wpca.feature_ansatz(s.model, s.tokens, **QUIET).to_pandas(),
    "fisher_metric": lambda s: wpca.fisher_metric(s.m),
    "gradient_pca": lambda s: wpca.gradient_pca(s.m),
    "hook_probe": lambda s: s.seen(wpca.hook_probe(THERE, s.layers[THERE])),
    "interaction_edges": lambda s: wpca.interaction_edges(s.model, s.tokens, s.layers, **QUIET).edges,
    "joint_pca": lambda s: wpca.joint_pca(s.m, s.pairs(), shrinkage=0.5, steps=3),
    "local_interaction_basis": lambda s: wpca.local_interaction_basis(s.model, s.tokens, [HERE, THERE], **QUIET),  # noqa: E501
    "logit_probe": lambda s: s.seen(wpca.logit_probe()),
    "metric_pca": lambda s: (wpca.metric_pca(s.m, damping=0.1), wpca.metric_pca(s.m, weighted=True)),
    "next_token_loss": lambda s: s.seen(wpca.next_token_loss),
    "optimize_basis": lambda s: wpca.optimize_basis(
        s.model, s.tokens, s.pca, 4, steps=2, batch_size=3, **QUIET),
    "path_metric": lambda s: wpca.path_metric(s.model, s.tokens, HERE, s.pca, ranks=[4], **QUIET),
    "pca": lambda s: [wpca.pca(s.m, center=center) for center in (True, False, "row_metric")],
    "principal_angles": lambda s: wpca.principal_angles(s.pca, s.oblique, 3),
    "random_basis": lambda s: wpca.random_basis(s.m),
    "sampled_token_loss": lambda s: s.seen(s.fisher),
    "shard": lambda s: wpca.collect(s.model, wpca.shard(s.tokens, rank=0, world_size=2), HERE, **QUIET),
    "stream_pairs": lambda s: [pair[HERE].gradients for pair in s.pairs()],
    "subspace_overlap": lambda s: wpca.subspace_overlap(s.pca, s.oblique, 3),
    "svd": lambda s: tuple(wpca.svd(s.model.OV)),
    "svdvals": lambda s: wpca.svdvals(s.model.QK),
    "use_linalg_svd": lambda s: s.switched(),
    "weighted_pca": lambda s: wpca.weighted_pca(s.m),
}  # fmt: skip
OPTIONS = {
    "a mask, positions, outliers, a row metric": lambda s: wpca.collect(
        s.model, s.padded, HERE, positions=[1, 3, -1], outliers=3.0, sums_dtype="float32", recompute=True,
        row_metric=lambda F, g: g @ g.mT, **QUIET),
    "KL, together, resampled": lambda s: wpca.ablation_curves(
        s.model, s.padded, {"pca": s.layers}, ranks=[2], score="kl", fill="resample", outliers=5.0,
        positions=slice(1, None), **QUIET).per_sequence,
    "a basis for every rank": lambda s: wpca.optimize_basis(
        s.model, s.tokens, s.oblique, steps=2, batch_size=3, **QUIET),
    "cards beside others": lambda s: wpca.cards(
        s.model, s.tokens, s.oblique.truncate(2), compare=s.pca, **QUIET).to_json(),
    "a large SVD": lambda s: tuple(wpca.svd(s.heads, s.heads.mT)),
}  # fmt: skip
NO_TENSORS = {"NonFiniteError", "Run", "report"}


@pytest.fixture(scope="module")
def setting(best_model, tokens, tmp_path_factory):
    return Setting(best_model, tokens, tmp_path_factory.mktemp("files"))


def test_every_public_name_is_used_here():
    assert set(USES) | NO_TENSORS == set(wpca.__all__)


@pytest.mark.parametrize("name", [*USES, *OPTIONS])
def test_the_default_device_changes_nothing(setting, name):
    warnings.simplefilter("ignore")
    use = (USES | OPTIONS)[name]
    expected = use(setting)
    with torch.device("meta"):
        found = use(setting)
    for a, b in zip(parts(found), parts(expected), strict=True):
        if isinstance(a, torch.Tensor):
            assert a.device.type == "cpu"
            torch.testing.assert_close(a, b)
        elif isinstance(a, float):
            assert a == pytest.approx(b, rel=1e-5, abs=1e-9, nan_ok=True)
        else:
            assert a == b


def parts(result):
    """All tensors and plain values that something is made of."""
    if hasattr(result, "to_numpy"):
        result = result.to_numpy()
    if isinstance(result, np.ndarray):
        result = result.tolist()
    if isinstance(result, Mapping):
        result = [*result.items()]
    if isinstance(result, (list, tuple)):
        return [part for each in result for part in parts(each)]
    if dataclasses.is_dataclass(result):
        return parts([getattr(result, field.name) for field in dataclasses.fields(result)])
    return [result] if isinstance(result, (torch.Tensor, int, float, str, bool, type(None))) else []
