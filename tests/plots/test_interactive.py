"""Pictures by plotly: the numbers of those by matplotlib, on a page that opens offline."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from command_line import FEW, POINT, plain, run, works
from in_browser import on_each_screen, too_wide

import tl_weighted_pca as wpca
from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.dictionary.picture import plot_biases
from tl_weighted_pca.interaction.graph import InteractionGraph
from tl_weighted_pca.plots import basis_overlap, eigenvalue_spectra, singular_value_spectra
from tl_weighted_pca.support import interactive
from tl_weighted_pca.support.interactive import save_page

HOOK = "blocks.2.hook_resid_post"
NAMES = ("random", "metric", "pca", "weighted")


def curves_at(place, ranks=(0, 8, 32, 64)):
    """Hand-made: excesses that fall to zero, with noise over 6 sequences."""
    generator = torch.Generator().manual_seed(0)
    per_sequence = {}
    for i, name in enumerate(NAMES):
        excess = torch.tensor([8.0, 2.0 / (i + 1), 0.1 / (i + 1), 0.0]).double()
        noise = 1 + 0.1 * torch.rand(4, 6, generator=generator).double()
        per_sequence[name] = 10 * (1 + excess[:, None] * noise)
    ones = torch.full((6,), 10.0).double()
    return AblationCurves(list(ranks), 64, per_sequence, ones.clone(), ones, place, "loss")


@pytest.fixture(scope="module")
def curves():
    return curves_at(HOOK)


@pytest.fixture(scope="module")
def bases(best_model, tokens):
    m = wpca.collect(best_model, tokens, HOOK, progress=False)[HOOK]
    makers = (wpca.random_basis, wpca.metric_pca, wpca.pca, wpca.weighted_pca)
    return {name: make(m) for name, make in zip(NAMES, makers, strict=True)}


@pytest.fixture(scope="module")
def ansatz(best_model, tokens):
    return wpca.feature_ansatz(best_model, tokens[:4], [0, 1], progress=False)


def mapped():
    places = [f"blocks.{i}.{end}" for end in ("hook_resid_post", "hook_mlp_out") for i in range(3)]
    every = {place: curves_at(place) for place in places}
    return wpca.DimensionMap(every, 0.1, [0, 1 / 8, 1 / 2, 1])


def graph():
    strengths = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)).double()
    variances = {
        "a.hook": torch.arange(6, 0, -1).double(),
        "b.hook": torch.arange(5, 0, -1).double(),
    }
    return InteractionGraph(variances, {("a.hook", "b.hook"): strengths}, bases={})


SPECTRA = torch.rand(2, 9, 6, generator=torch.Generator().manual_seed(2)).sort(-1, descending=True)
PICTURES = {
    "curves": lambda of, **o: of("curves").plot(**o),
    "scores": lambda of, **o: of("curves").plot(excess=False, **o),
    "relative": lambda of, **o: of("curves").plot(relative_to="pca", **o),
    "eigenvalues": lambda of, **o: eigenvalue_spectra(of("bases"), **o),
    "singular values": lambda of, **o: singular_value_spectra(SPECTRA.values[:, :3], **o),
    "singular values, many heads": lambda of, **o: singular_value_spectra(SPECTRA.values, **o),
    "overlap": lambda of, **o: basis_overlap(of("bases"), **o),
    "overlap of two": lambda of, **o: basis_overlap(
        of("bases")["pca"], of("bases")["metric"], 9, **o
    ),
    "map": lambda of, **o: mapped().plot(**o),
    "graph": lambda of, **o: graph().plot(**o),
    "ansatz": lambda of, **o: of("ansatz").plot(**o),
    "captured": lambda of, **o: of("ansatz").plot_captured(**o),
    "biases": lambda of, **o: plot_biases(torch.randn(99), **o),
}


@pytest.fixture(params=PICTURES)
def both(request):
    """A picture, by matplotlib and by plotly."""
    draw = PICTURES[request.param]
    if request.param == "biases":
        torch.manual_seed(0)
        by_matplotlib = draw(request.getfixturevalue)
        torch.manual_seed(0)
        return request.param, by_matplotlib, draw(request.getfixturevalue, interactive=True)
    pictures = (draw(request.getfixturevalue, interactive=i) for i in (False, True))
    return request.param, *pictures


def lines_of(figure):
    """Label, y and colour of each line of a matplotlib figure that says something."""
    return {
        line.get_label().split("\n")[0]: line
        for ax in figure.axes
        for line in ax.lines
        if not line.get_label().startswith("_") and len(line.get_xdata())
    }


def test_it_shows_the_numbers_of_the_png(both):
    name, by_matplotlib, by_plotly = both
    traces = {trace.name: trace for trace in by_plotly.data if trace.name}
    lines = lines_of(by_matplotlib)
    for label, line in lines.items():
        found = [math.nan if y is None else y for y in traces[label].y]
        expected = [float(y) for y in line.get_ydata()]
        assert found == pytest.approx(expected, nan_ok=True), label
    images = [
        image for ax in by_matplotlib.axes for image in ax.images if image.get_array().ndim == 2
    ]
    heats = [trace for trace in by_plotly.data if trace.type == "heatmap"]
    for image, heat in zip(images, heats, strict=False):
        shown = torch.tensor(heat.customdata)
        assert torch.allclose(torch.tensor(image.get_array().data).to(shown), shown, atol=1e-6)
    assert lines or heats or name in ("graph", "biases")
    for line, label in (
        (line, label) for label, line in lines.items() if name in ("curves", "ansatz")
    ):
        assert traces[label].line.color == line.get_color()


def test_curves_are_those_of_the_table_with_their_intervals(curves):
    table = curves.to_pandas()
    drawn = {
        trace.name: trace for trace in curves.plot(interactive=True).data if trace.mode != "none"
    }
    shown = {"pca": "PCA", "metric": "metric PCA", "weighted": "weighted PCA", "random": "random"}
    assert list(drawn) == ["PCA", "metric PCA", "weighted PCA", "random"]
    assert drawn["PCA"].line.color == "#000000" and drawn["random"].line.dash == "dash"
    for basis, rows in table.groupby("basis"):
        trace = drawn[shown[basis]]
        assert list(trace.x) == list(rows["rank"])
        assert list(trace.y[:3]) == pytest.approx(list(rows["excess"])[:3])
        assert trace.y[3] is None  # zero has no logarithm
        low, high = zip(*trace.customdata[:3], strict=True)
        assert list(low) == pytest.approx(list(rows["excess_low"])[:3])
        assert list(high) == pytest.approx(list(rows["excess_high"])[:3])


def test_a_map_is_of_the_excess(curves):
    figure = mapped().plot(interactive=True)
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(heats) == len(NAMES) and len(heats[0].y) == 6
    excess = [float(e) for e in curves.excess("pca")]
    assert list(heats[NAMES.index("pca")].customdata[0]) == pytest.approx(excess)
    assert list(heats[0].x) == ["0", "1/8", "1/2", "1"]


def test_columns_that_read_alike_are_not_one(bases):
    """A category axis merges columns of one name."""
    dims = replace(mapped(), shares=[0, 0.121, 0.122, 1])
    assert dims.plot(interactive=True).data[0].x == ("0", "0.121", "0.122", "1")
    two = {"fisher": bases["metric"], "metric fisher": bases["weighted"]}
    (heat,) = basis_overlap(two, interactive=True).data
    assert heat.x == heat.y == tuple(two)


def test_a_map_has_the_contour_of_the_png():
    """In columns from the middle of the first, a line for each row: up to the first share that is enough."""
    still, shapes = mapped().plot(), mapped().plot(interactive=True).layout.shapes
    panels = [ax for ax in still.axes if ax.get_title()]
    coloured = [
        line for ax in panels for line in ax.lines if line.get_color() not in ("black", "white")
    ]
    expected = [x - 0.5 for line in coloured for x in line.get_xdata()[::2]]
    assert [shape.x0 for shape in shapes] == [shape.x1 for shape in shapes]
    assert [shape.x0 for shape in shapes] == pytest.approx(expected)
    assert [(s.y0, s.y1) for s in shapes] == [(i - 0.5, i + 0.5) for i in range(6)] * len(NAMES)
    for i, name in enumerate(NAMES):
        for shape, rank in zip(
            shapes[6 * i :], mapped().smallest_ranks(name).values(), strict=False
        ):
            column = [0, 8, 32, 64].index(rank)
            assert column - 1 < shape.x0 <= column


def test_features_name_their_strongest_partners():
    made = graph()
    (here, there) = [trace for trace in made.plot(interactive=True).data if trace.mode == "markers"]
    strengths = made.edges["a.hook", "b.hook"]
    top = int(strengths[0].argmax())
    assert here.customdata[0].startswith("a.hook, feature 0<br>variance 6")
    assert f"→ {top}: {float(strengths[0, top]):.4g}" in here.customdata[0]
    assert f"← {int(strengths[:, 1].argmax())}" in there.customdata[1]


def test_each_opens_offline_and_fits(visit, both, tmp_path):
    name, _, figure = both
    save_page(figure, tmp_path / f"{name}.html")
    page = visit(tmp_path / f"{name}.html")
    for _ in on_each_screen(page):
        page.wait_for_selector(".main-svg")
        assert page.locator(".plotly-graph-div .main-svg").first.bounding_box()["height"] > 200
        assert too_wide(page) <= 0
    assert page.complaints == []


def test_axe_has_no_serious_findings(visit, curves, tmp_path, axe):
    save_page(curves.plot(interactive=True), tmp_path / "curves.html")
    page = visit(tmp_path / "curves.html", bypass_csp=True)
    page.wait_for_selector(".main-svg")
    assert axe(page) == []


def test_hostile_names_stay_text(visit, curves, tmp_path):
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    figure = curves.plot(names={"pca": nasty, "random": "{{ 7*7 }}"}, title=nasty, interactive=True)
    save_page(figure, tmp_path / "x.html")
    page = visit(tmp_path / "x.html")
    page.wait_for_selector(".main-svg")
    assert page.complaints == []
    assert page.locator("img").count() == 0


def test_the_command_line_writes_it_beside_the_png(visit, tmp_path):
    works("collect", "--hook", POINT, *FEW, "--out", tmp_path / "run")
    works(
        "basis", tmp_path / "run", "--method", "pca", "--method", "random", "--out", tmp_path / "b"
    )
    works(
        "ablate", tmp_path / "b", "--ranks", "0,8", *FEW, "--interactive", "--out", tmp_path / "a"
    )
    page = visit(tmp_path / "a" / f"{POINT}.html")
    page.wait_for_selector(".main-svg")
    shown = json.loads(
        page.evaluate(
            "JSON.stringify(document.querySelector('.plotly-graph-div').data"
            ".filter((t) => t.mode !== 'none').map((t) => [t.name, [...t.y]]))"
        )
    )
    table = pd.read_csv(tmp_path / "a" / "ablation.csv")
    for name, basis in (("PCA", "pca"), ("random", "random")):
        expected = list(table[table["basis"] == basis]["excess"])
        assert dict(shown)[name] == pytest.approx(expected)
    assert (tmp_path / "a" / f"{POINT}.png").is_file()
    assert page.complaints == []


def test_without_plotly_it_says_so_before_any_work(monkeypatch, curves, tmp_path):
    monkeypatch.setattr(interactive.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need plotly, which is not installed: pip install"):
        curves.plot(interactive=True)
    refused = run("svd", "--interactive", "--out", tmp_path / "svd")
    assert refused.exit_code == 1
    assert "Interactive pictures need plotly" in plain(refused.output)
    assert not (tmp_path / "svd").exists()
