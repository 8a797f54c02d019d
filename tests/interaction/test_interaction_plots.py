"""The pictures hold what they should, and say what is wrong."""

import pytest
import torch

from tl_weighted_pca.ansatz import feature_ansatz
from tl_weighted_pca.interaction import InteractionGraph, interaction_edges, local_interaction_basis
from tl_weighted_pca.toy import HookedMLP

NAMES = ["layers.0.hook_in", "layers.1.hook_in", "layers.2.hook_pre"]


def test_the_graph_shows_every_feature_and_no_more_edges_than_asked():
    model, x = HookedMLP([70, 80, 70, 12], torch.tanh), torch.randn(300, 70)
    bases = local_interaction_basis(model, x, NAMES, batch_size=300, progress=False)
    graph = interaction_edges(model, x, bases, batch_size=300)
    groups = {(NAMES[0], i): i % 9 for i in range(70)}
    figure = graph.plot(features=64, most_edges=100, groups=groups, title="graph")
    (ax,) = figure.axes
    dots = [c for c in ax.collections if hasattr(c, "get_sizes") and len(c.get_offsets()) > 1]
    lines = [c for c in ax.collections if c not in dots]
    assert [len(d.get_offsets()) for d in dots] == [64, 64, 12]
    assert len(lines) == 2 and all(1 <= len(c.get_segments()) <= 100 for c in lines)
    heights = {round(float(y), 6) for y in dots[0].get_offsets()[:, 1]}
    assert len(heights) == 64 and min(heights) >= 0 and max(heights) <= 1
    figure.canvas.draw()


def test_features_that_interact_stand_side_by_side():
    """Sixteen threads, shuffled: in the picture none crosses another."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(16, generator=generator)
    names = NAMES[:2]
    graph = InteractionGraph(
        {name: torch.arange(16, 0, -1).double() for name in names},
        {tuple(names): torch.eye(16, dtype=torch.float64)[order] + 1e-3},
        bases={},
    )
    (ax,) = graph.plot(share=0.9).axes
    dots = [c for c in ax.collections if len(c.get_offsets()) == 16]
    here, there = (d.get_offsets()[:, 1] for d in dots)
    assert [float(y) for y in here] == pytest.approx([float(there[j]) for j in order])


def test_the_ansatz_has_one_panel_a_kind_and_draws_each_baseline():
    model, x = HookedMLP([6, 6, 6, 3]), torch.randn(50, 6)
    found = feature_ansatz(model, x, progress=False)
    figure = found.plot()
    (ax,) = figure.axes
    labels = ax.get_legend_handles_labels()[1]
    assert len(labels) == 5 and labels[0].startswith("cos")
    assert list(ax.lines[0].get_ydata()) == pytest.approx([row.cosine() for row in found])
    figure.canvas.draw()
    curves = found.plot_captured().axes[0].lines
    assert len(curves) == 6 and curves[0].get_ydata()[-1] == pytest.approx(1)
    with pytest.raises(ValueError, match="there are the kinds W and the objectives logit_probe"):
        found.plot(kinds=["W_Q"])
