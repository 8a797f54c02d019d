"""A metric knows where it is from, and no other place takes it."""

import pytest
import torch

import tl_weighted_pca as wpca
from tl_weighted_pca import Metric, Provenance

HERE, THERE = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def stats(best_model, tokens):
    objectives = {"loss": wpca.next_token_loss, "fisher": wpca.sampled_token_loss(), "own": own}
    return wpca.collect(best_model, tokens, [HERE, THERE], objective=objectives, **QUIET)


def own(run):
    return run.output.square().sum((1, 2))


def test_a_metric_of_another_hook_point_is_refused(best_model, tokens, stats):
    one, two = stats["fisher"][HERE], stats["fisher"][THERE]
    path = wpca.path_metric(best_model, tokens, THERE, wpca.pca(two), ranks=[8], **QUIET)
    for metric in (path, wpca.fisher_metric(two), 2 * path, path + wpca.fisher_metric(two)):
        with pytest.raises(ValueError, match="differ in hook point 'blocks.2.* and 'blocks.1"):
            wpca.metric_pca(one, metric)
        assert wpca.metric_pca(two, metric).width == 64
        assert wpca.metric_pca(one, metric.matrix).method == "metric_pca"  # unknown, and taken
    with pytest.raises(ValueError, match="Cannot add metrics of different things"):
        path + wpca.fisher_metric(one)


def test_a_metric_of_another_model_is_refused(best_model, tokens, stats):
    other = wpca.embedded.load_model()
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    moments = wpca.collect(other, tokens, HERE, objective=own, **QUIET)[HERE]
    with pytest.raises(ValueError, match="differ in weights"):
        wpca.metric_pca(stats["own"][HERE], wpca.fisher_metric(moments))


def test_the_basis_and_its_file_say_which_metric(best_model, tokens, stats, tmp_path):
    m = stats["loss"][HERE]
    path = wpca.path_metric(best_model, tokens, HERE, wpca.pca(m), ranks=[8], **QUIET)
    fisher = wpca.fisher_metric(stats["fisher"][HERE])
    expected = {
        "metric_pca(fisher)": fisher,
        "metric_pca(empirical)": None,  # these moments' own: labels from the data
        "metric_pca(own)": wpca.fisher_metric(stats["own"][HERE]),
        "metric_pca(path)": path + path,
        "metric_pca(path + 0.3*fisher)": path + 0.3 * fisher,
        "metric_pca(0.5*(path + fisher))": (path + fisher) / 2,
        "metric_pca": torch.eye(64),
        "metric_pca(mine)": Metric(torch.eye(64), name="mine"),
    }
    for method, metric in expected.items():
        basis = wpca.metric_pca(m, metric)
        basis.save(tmp_path / "basis")
        assert basis.method == wpca.Basis.load(tmp_path / "basis").method == method
    # And the objective is the metric's, where it is known.
    assert wpca.metric_pca(m, fisher).provenance.objective.startswith("sampled_token_loss(")
    assert wpca.metric_pca(m, torch.eye(64)).provenance.objective == "next_token_loss"


def test_metrics_add_and_scale_as_their_matrices_do(stats):
    a, b = (wpca.fisher_metric(stats[name][HERE]) for name in ("fisher", "loss"))
    torch.testing.assert_close((2 * a + b / 4).matrix, 2 * a.matrix + b.matrix / 4)
    torch.testing.assert_close(sum([a, b]).matrix, a.matrix + b.matrix)
    assert (a + b).provenance.hook_point == HERE
    assert (
        a + b
    ).provenance.objective == "sampled_token_loss(n_samples=1, seed=0) + next_token_loss"
    assert (a + Metric(torch.eye(64))).name == ""  # partly unknown
    with pytest.raises(ValueError, match="of shapes"):
        a + Metric(torch.eye(3))
    with pytest.raises(TypeError):
        a + a.matrix
    assert repr(a) == f"Metric(fisher at {HERE!r}: shape (64, 64))"


def test_the_fisher_metric_is_the_gradients_second_moment_per_token():
    F, g = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    m = wpca.MomentAccumulator().update(F, g).result()
    expected = sum(torch.outer(row, row) for row in g.flatten(0, 1)) / 20
    torch.testing.assert_close(wpca.fisher_metric(m).matrix, expected)
    with pytest.raises(ValueError, match="no gradient statistics"):
        wpca.fisher_metric(wpca.MomentAccumulator().update(F).result())


@pytest.mark.parametrize("matrix", [torch.eye(3)[0], torch.zeros(2, 3), [[1.0]], None])
def test_what_is_no_matrix_is_refused(matrix):
    with pytest.raises(ValueError, match=r"expected a tensor \[d, d\]"):
        Metric(matrix, Provenance())
