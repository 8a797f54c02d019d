"""Pictures hold the numbers they are made from, say what they show, and leave nothing behind."""

import math
import warnings

import matplotlib
import pytest
import torch
import transformer_lens
from matplotlib.figure import Figure

import tl_weighted_pca as wpca
from tl_weighted_pca.bases.overlap import component_cosines
from tl_weighted_pca.plots import (
    basis_overlap,
    eigenvalue_spectra,
    plot_ablation_curves,
    singular_value_spectra,
)

PLACES = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
HEADS = "blocks.1.attn.hook_z"


@pytest.fixture(scope="module")
def stats(best_model, tokens):
    return wpca.collect(best_model, tokens, PLACES, progress=False)


@pytest.fixture(scope="module")
def per_head(best_model, tokens):
    return wpca.collect(best_model, tokens, HEADS, per_head=True, progress=False)[HEADS]


@pytest.fixture(autouse=True)
def _clean():
    """No warning while drawing, and no figure that pyplot would keep alive."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What libraries call of one another is theirs.
        warnings.filterwarnings(
            "ignore", category=DeprecationWarning, module=r"(matplotlib|pyparsing)\."
        )
        yield
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


def drawn(figure):
    """The figure, after it really was drawn."""
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    return figure


def shown(ax):
    """The numbers of a heat map."""
    return torch.from_numpy(ax.images[0].get_array().filled())


def lines(ax):
    return [(line.get_label(), list(line.get_ydata())) for line in ax.lines]


def test_eigenvalues_are_drawn_as_they_are_where_they_share_a_unit(stats):
    bases = {place: wpca.pca(stats[place]) for place in PLACES}
    left, right = drawn(eigenvalue_spectra(bases)).axes
    for (_, values), (label, shares), (name, basis) in zip(
        lines(left), lines(right), bases.items(), strict=True
    ):
        assert values == basis.eigenvalues.tolist()
        assert shares[-1] == pytest.approx(1) and shares == sorted(shares)
        ratio = float(basis.eigenvalues.sum() ** 2 / basis.eigenvalues.square().sum())
        assert label == f"{name} ({ratio:.1f})"
    assert left.get_yscale() == "log" and left.get_ylabel() == "eigenvalue (activation² per token)"
    assert left.get_xlabel() == right.get_xlabel() == "component"
    assert "share" in right.get_ylabel()


def test_eigenvalues_of_several_methods_have_no_common_unit_and_are_drawn_as_shares(stats):
    m = stats[PLACES[1]]
    bases = {"PCA": wpca.pca(m), "weighted": wpca.weighted_pca(m), "metric": wpca.metric_pca(m)}
    figure = drawn(eigenvalue_spectra(bases))
    assert [v for _, v in lines(figure.axes[0])] == [
        basis.explained_ratio.tolist() for basis in bases.values()
    ]
    assert figure.axes[0].get_ylabel() == "eigenvalue / sum of eigenvalues"
    assert figure.get_suptitle() == f"Eigenvalues at {PLACES[1]}"
    raw = drawn(eigenvalue_spectra(bases, normalized=False)).axes[0]
    assert lines(raw)[1][1] == bases["weighted"].eigenvalues.tolist()
    # Colours and markers both tell them apart.
    assert len({line.get_color() for line in raw.lines}) == 3
    assert len({line.get_marker() for line in raw.lines}) == 3


def test_a_truncated_basis_never_explains_all(stats):
    basis = wpca.pca(stats[PLACES[0]]).truncate(5)
    ((label, shares),) = lines(drawn(eigenvalue_spectra(basis)).axes[1])
    assert shares == basis.explained_ratio.cumsum(0).tolist() and shares[-1] < 1
    # But five components are never more than five equal ones.
    kept = basis.eigenvalues.tolist()
    ratio = sum(kept) ** 2 / sum(x * x for x in kept)
    assert ratio <= 5 and label == f"PCA ({ratio:.1f})"


def test_rounding_of_the_eigensolver_does_not_squeeze_what_it_stands_for(stats):
    basis = wpca.pca(stats[PLACES[0]])
    basis.eigenvalues[-2:] = torch.tensor([1e-25, 0.0])
    ax = drawn(eigenvalue_spectra(basis)).axes[0]
    assert ax.get_ylim()[0] > 1e-15 * float(basis.eigenvalues[0])
    assert ax.get_ylim()[0] < float(basis.eigenvalues[-3])


def test_each_head_has_a_line_and_all_of_them_one_name(per_head):
    basis = wpca.pca(per_head)
    left, right = drawn(eigenvalue_spectra({"heads": basis})).axes
    assert [v for _, v in lines(left)] == basis.eigenvalues.tolist()
    assert len(right.get_legend().get_texts()) == 1


def test_many_layers_are_a_sequence_from_dark_to_light(stats):
    bases = {f"layer {i}": wpca.pca(stats[PLACES[0]]) for i in range(12)}
    ax = drawn(eigenvalue_spectra(bases)).axes[0]
    shades = [sum(matplotlib.colors.to_rgb(line.get_color())) for line in ax.lines]
    assert len(set(shades)) == 12 and shades[0] < shades[5] < shades[11] < 2.6


def test_more_bases_than_colours_are_told_apart_by_dashes_and_not_by_shades(stats):
    moments = stats[PLACES[0]]
    bases = {"weighted": wpca.weighted_pca(moments)} | {
        f"pca {i}": wpca.pca(moments) for i in range(8)
    }
    lines_drawn = drawn(eigenvalue_spectra(bases)).axes[0].lines
    look = [(line.get_color(), line.get_linestyle()) for line in lines_drawn]
    assert len(set(look)) == 9 and len({color for color, _ in look}) == 7
    assert look[0] == ("#E69F00", "-") and look[7] == (look[1][0], "--")


def test_a_grid_of_overlaps_holds_them_and_writes_them_down(stats):
    rows = {name: wpca.pca(stats[name]) for name in PLACES}
    columns = {"weighted": wpca.weighted_pca(stats[PLACES[1]]), **rows}
    figure = drawn(basis_overlap(rows, columns, 10))
    ax, bar = figure.axes
    grid = shown(ax)
    for i, a in enumerate(rows.values()):
        for j, b in enumerate(columns.values()):
            overlap = float(wpca.subspace_overlap(a, b, 10)[-1])
            assert float(grid[i, j]) == pytest.approx(overlap, abs=1e-6)
            assert f"{overlap:.2f}" in [text.get_text() for text in ax.texts]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["weighted PCA", *PLACES]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(rows)
    assert bar.get_ylabel() == "overlap φ of the top 10 of 64\n(chance 0.16)"
    assert bar.lines[-1].get_ydata()[0] == pytest.approx(10 / 64)
    assert ax.images[0].get_clim() == (0, 1)


def test_two_bases_show_their_components_and_their_overlap_beside_chance(stats):
    a, b = wpca.pca(stats[PLACES[1]]), wpca.metric_pca(stats[PLACES[1]])
    for side in ("decoder", "encoder"):
        heat, curve, _ = drawn(basis_overlap(a, b, 20, side=side)).axes
        torch.testing.assert_close(shown(heat), component_cosines(a, b, 20, side=side))
        assert dict(lines(curve))["the two bases"] == pytest.approx(
            wpca.subspace_overlap(a, b, 20, side=side).tolist()
        )
        assert dict(lines(curve))["by chance, j / d"] == [j / 64 for j in range(1, 21)]
    assert heat.get_ylabel() == f"component of PCA\nat {PLACES[1]}"
    assert heat.get_xlabel() == f"component of metric PCA, empirical Fisher\nat {PLACES[1]}"
    # Components are counted from one: the first cell lies around (1, 1).
    assert heat.images[0].get_extent() == [0.5, 20.5, 20.5, 0.5]


def test_heads_are_rows_of_a_pair_and_a_mean_in_a_grid(per_head):
    a, b = wpca.pca(per_head), wpca.weighted_pca(per_head)
    heat, curve, _ = drawn(basis_overlap(a, b)).axes
    overlap = wpca.subspace_overlap(a, b)
    torch.testing.assert_close(shown(heat), overlap)
    assert (heat.get_ylabel(), heat.get_xlabel()) == ("head", "j, components of each")
    assert dict(lines(curve))["mean over heads"] == pytest.approx(overlap.mean(0).tolist())
    k = a.n_components // 4
    grid = shown(drawn(basis_overlap({"a": a, "b": b})).axes[0])
    assert float(grid[0, 1]) == pytest.approx(float(overlap[:, k - 1].mean()), abs=1e-6)


@pytest.mark.parametrize("heads", [3, 12])
def test_singular_values_are_found_by_layer_and_head(heads):
    torch.manual_seed(0)
    pair = torch.randn(5, heads, 20, 6), torch.randn(5, heads, 6, 20)
    for matrix in (wpca.FactoredMatrix(*pair), transformer_lens.FactoredMatrix(*pair)):
        figure = drawn(singular_value_spectra(matrix, columns=3, title="OV"))
        panels = [ax for ax in figure.axes if ax.get_title().startswith("layer")]
        S = torch.linalg.svdvals((pair[0] @ pair[1]).double())[..., :6]
        assert [ax.get_title() for ax in panels] == [f"layer {i}" for i in range(5)]
        for layer, ax in enumerate(panels):
            if heads == 3:
                assert [label for label, _ in lines(ax)] == ["head 0", "head 1", "head 2"]
                found = torch.tensor([values for _, values in lines(ax)]).double()
                assert ax.get_yscale() == "log"
            else:
                found = shown(ax)
            torch.testing.assert_close(found, S[layer], rtol=1e-5, atol=0)
        words = [ax.get_ylabel() for ax in figure.axes]
        assert "singular value" in words and ("head" in words) == (heads == 12)
        # The last panel of a column says what is along it, also above an empty place.
        assert [ax.get_xlabel() for ax in panels] == ["", "", "component", "component", "component"]


def test_singular_values_can_be_compared_by_shape_alone():
    S = torch.tensor([[8.0, 4.0, 0.0], [2.0, 1.0, 0.5]])
    (ax,) = drawn(singular_value_spectra(S, normalized=True)).axes
    assert [v for _, v in lines(ax)] == [[1.0, 0.5, 0.0], [1.0, 0.5, 0.25]]
    (single,) = drawn(singular_value_spectra(S[1])).axes
    assert lines(single) == [("head 0", [2.0, 1.0, 0.5])]


def test_the_baseline_and_the_band_of_each_basis_are_drawn(best_model, stats, heldout, per_head):
    m = stats[PLACES[0]]
    bases = {"pca": wpca.pca(m), "random": wpca.random_basis(m)}
    options = {"batch_size": 24, "progress": False}
    curves = wpca.ablation_curves(
        best_model, heldout, bases, PLACES[0], ranks=[0, 32, 64], **options
    )
    ax = drawn(curves.plot(excess=False)).axes[0]
    assert dict(lines(ax))["unablated"][0] == pytest.approx(curves.baseline)
    assert dict(lines(ax))["PCA"] == pytest.approx(curves.scores["pca"])
    for band, name in zip(ax.collections, bases, strict=True):
        low, high = band.get_datalim(ax.transData).intervaly
        ends = [(e.low + curves.baseline, e.high + curves.baseline) for e in curves.excess(name)]
        assert low == pytest.approx(min(e[0] for e in ends))
        assert high == pytest.approx(max(e[1] for e in ends))
    excess = drawn(plot_ablation_curves(curves)).axes[0]
    assert f"over the unablated {curves.baseline:.3f}" in excess.get_ylabel()
    # Full rank is the identity: zero has no place on a logarithm.
    *above, none = dict(lines(excess))["PCA"]
    assert above == pytest.approx(list(curves.excess("pca"))[:2]) and math.isnan(none)
    heads = {"heads": wpca.pca(per_head)}
    curves = wpca.ablation_curves(best_model, heldout, heads, HEADS, ranks=[0, 4], **options)
    ax = drawn(curves.plot(excess=False)).axes[0]
    assert dict(lines(ax))["heads"] == pytest.approx(curves.scores["heads"])
    assert ax.get_xlabel() == f"components kept (of {curves.width})"


def curves_of(scores, **fields):
    """Curves over four sequences at ranks 0, 32 and 64; the unablated model scores 0.75."""
    spread = torch.tensor([-0.02, -0.01, 0.01, 0.02], dtype=torch.float64)
    rows = torch.tensor(scores, dtype=torch.float64)[:, None] + spread
    whole = torch.full((4,), 0.75, dtype=torch.float64)
    counts = torch.ones(4, dtype=torch.float64)
    return wpca.AblationCurves(
        [0, 32, 64],
        64,
        {"pca": rows},
        whole,
        counts,
        hook_point=PLACES[0],
        unit="accuracy",
        **fields,
    )


def test_a_score_that_falls_is_drawn_as_it_is(stats):
    """An accuracy, one noisy rank above the baseline or none; a logarithm would show a dot or nothing."""
    for last in (0.75, 0.76):
        curves = curves_of([0.25, 0.5, last])
        (ax,) = drawn(curves.plot()).axes
        assert ax.get_yscale() == "linear" and ax.get_ylabel() == "accuracy"
        assert dict(lines(ax))["PCA"] == pytest.approx([0.25, 0.5, last])
        assert dict(lines(ax))["unablated"][0] == 0.75
    with pytest.raises(
        ValueError, match=r"No accuracy lies above the unablated 0\.750.*excess=False"
    ):
        curves_of([0.25, 0.5, 0.75]).plot(excess=True)
    assert drawn(curves_of([2.0, 1.0, 0.74]).plot()).axes[0].get_yscale() == "log"
    # All of it at full rank: nothing has changed, and that is to be seen.
    flat = drawn(curves_of([0.75, 0.75, 0.75]).plot()).axes[0]
    assert dict(lines(flat))["PCA"] == pytest.approx([0.75] * 3)


@pytest.mark.parametrize("nested", [False, True])
def test_pictures_go_into_axes_that_are_there_already(stats, nested):
    """Also into those of a subfigure; the title of the figure around them stays as it was."""
    import matplotlib.pyplot as plt

    a, b = (wpca.pca(stats[place]) for place in PLACES)
    figure = plt.figure()
    figure.suptitle("mine")
    inner = figure.subfigures(1, 2)[0].subfigures(2, 1)[1] if nested else figure
    axes = inner.subplots(3, 2)
    assert eigenvalue_spectra({"a": a}, axes=axes[0], title="A") is figure
    assert eigenvalue_spectra({"a": a}, axes=axes[1]) is figure
    assert basis_overlap(a, b, ax=axes[2, 0], title="B") is figure
    assert basis_overlap({"a": a}, {"b": b}, ax=axes[2, 1], title="C") is figure
    drawn(figure)
    assert all(ax.has_data() for ax in axes.flat)
    assert figure.get_suptitle() == "mine"
    titles = [ax.get_title() for ax in axes.flat]
    assert titles == ["A", "", f"Eigenvalues at {PLACES[0]}", "", "B", "C"]
    plt.close(figure)
    figure, ax = plt.subplots()
    inner = figure.subfigures(1, 1).subplots() if nested else ax
    assert curves_of([2.0, 1.0, 0.75]).plot(ax=inner) is figure
    plt.close(figure)


def test_what_cannot_be_drawn_is_refused_in_one_sentence(stats):
    a = wpca.pca(stats[PLACES[0]])
    for draw in (eigenvalue_spectra, basis_overlap):
        with pytest.raises(ValueError, match="No bases were given; pass"):
            draw({})
    with pytest.raises(ValueError, match="basis 'none' keeps no component.*leave it out"):
        eigenvalue_spectra({"pca": a, "none": a.truncate(0)})
    with pytest.raises(ValueError, match="1 axes were given; expected two"):
        eigenvalue_spectra(a, axes=[Figure().subplots()])
    with pytest.raises(ValueError, match="k is 65; expected 1 to 64"):
        basis_overlap(a, a, 65)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 1, 4\).*expected \[layer, head, k\]"):
        singular_value_spectra(torch.ones(1, 1, 1, 4))
    with pytest.raises(ValueError, match="All singular values are zero"):
        singular_value_spectra(torch.zeros(2, 4))


class TestRelativeExcess:
    @pytest.fixture(scope="class")
    def curves(self, best_model, heldout, stats):
        m = stats[PLACES[0]]
        bases = {"pca": wpca.pca(m), "metric": wpca.metric_pca(m), "random": wpca.random_basis(m)}
        return wpca.ablation_curves(
            best_model, heldout, bases, PLACES[0], ranks=[0, 16, 32, 64], progress=False
        )

    def test_it_is_the_ratio_of_excesses(self, curves):
        ax = drawn(curves.plot(relative_to="pca")).axes[0]
        found = dict(lines(ax))
        assert list(found) == ["metric PCA", "random", "PCA"]  # the last is the line at 1
        assert list(found["PCA"]) == [1, 1]
        for name, shown_as in {"metric": "metric PCA", "random": "random"}.items():
            slow = [a / b for a, b in zip(curves.excess(name), curves.excess("pca"), strict=True)]
            assert found[shown_as] == pytest.approx(slow[:3])  # all is kept at the last
        assert found["metric PCA"][0] == pytest.approx(1)  # nothing is kept at the first
        assert "over that of PCA" in ax.get_ylabel()
        low, high = ax.collections[0].get_datalim(ax.transData).intervaly
        each = [curves.relative_excess("metric", ranks=[k]) for k in (0, 16, 32)]
        assert (low, high) == pytest.approx((min(e.low for e in each), max(e.high for e in each)))

    def test_names_and_axes_of_ones_own(self, curves):
        figure = curves.plot(relative_to="random", names={"pca": "PCA", "random": "by chance"})
        found = dict(lines(drawn(figure).axes[0]))
        assert list(found) == ["PCA", "by chance"] and max(found["PCA"]) == pytest.approx(1)

    def test_what_cannot_be_compared(self, curves):
        with pytest.raises(ValueError, match="There is no curve 'fisher'"):
            curves.plot(relative_to="fisher")
        with pytest.raises(ValueError, match="nothing to compare 'pca' with"):
            curves.plot(relative_to="pca", names={"pca": "PCA"})
        falling = curves_of([0.2, 0.3, 0.75])
        with pytest.raises(ValueError, match="nothing to compare 'pca' with"):
            falling.plot(relative_to="pca")
