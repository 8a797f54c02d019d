"""The map of a model: its curves are those of each hook point alone, in one pass, resumable."""

import dataclasses
import itertools

import matplotlib
import pytest
import torch
from conftest import KINDS
from in_browser import on_each_screen, too_wide
from live_bytes import LiveBytes

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.model_map import measurement
from tl_weighted_pca.model_map.dimensions import layer_and_kind
from tl_weighted_pca.model_map.page import page as map_page

STREAM = "blocks.*.hook_resid_post"
PLACES = ["blocks.1.hook_resid_post", "blocks.1.attn.hook_z", "blocks.2.mlp.hook_post"]
SHARES = [0.0, 0.125, 0.5, 1.0]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def stories():
    return embedded.stories("train", 24)


@pytest.fixture(scope="module")
def heldout_stories():
    return embedded.stories("heldout", 12)


@pytest.fixture(scope="module")
def found(best_model, stories, heldout_stories):
    return wpca.dimension_map(
        best_model, stories, PLACES, heldout=heldout_stories, shares=SHARES, **QUIET
    )


@pytest.mark.parametrize("score", ["loss", "kl"])
def test_it_is_the_curves_of_each_hook_point_alone(model, stories, heldout_stories, score):
    options = {"positions": slice(1, None), "score": score}
    dims = wpca.dimension_map(
        model, stories, PLACES, heldout=heldout_stories, shares=SHARES, **options, **QUIET
    )
    stats = wpca.collect(
        model, stories, PLACES, objective=wpca.sampled_token_loss(), batch_size=16,
        statistics=["activation", "gradient"], positions=slice(1, None), **QUIET,
    )  # fmt: skip
    assert list(dims) == PLACES and dims.names == ["pca", "fisher"]
    for place in PLACES:
        bases = {"pca": wpca.pca(stats[place]), "fisher": wpca.metric_pca(stats[place])}
        alone = wpca.ablation_curves(
            model, heldout_stories, bases, ranks=SHARES, batch_size=16, **options, **QUIET
        )
        for name in bases:
            assert torch.equal(dims[place].per_sequence[name], alone.per_sequence[name])
            for tolerance in (0.01, 0.1, 1.0):
                expected = alone.smallest_rank(name, tolerance)
                mine = dims.smallest_ranks(name, tolerance)[place]
                assert (mine, mine.low, mine.high) == (expected, expected.low, expected.high)
        assert dims[place].ranks == [round(share * alone.width) for share in SHARES]


def test_one_pass_collects_and_one_ablates(stories, heldout_stories):
    """The unablated model runs once a batch, whatever the number of hook points and bases."""
    if "HookedTransformer" not in KINDS:
        pytest.skip("which bridges can start at a layer is their own affair")
    model, runs = embedded.load_model("HookedTransformer"), []
    model.embed.register_forward_hook(lambda *_: runs.append(1))
    wpca.dimension_map(
        model, stories, STREAM, heldout=heldout_stories, shares=[0.5], batch_size=4, **QUIET
    )
    # 24 stories collected and 12 ablated; ahead of collecting two short passes that see who reads what,
    # and ahead of both one batch, and two for each hook point, that try an ablation there.
    assert len(runs) == 24 / 4 + 12 / 4 + 2 + 1 + 2 * 4


def test_memory_is_flat_in_tokens(best_model, tokens):
    """From batch to batch no byte more is held; of what was ablated each sequence's scores alone."""
    live = LiveBytes()

    class Watched:
        """Five batches; of the last pass, what the work on each held at most."""

        def __iter__(self):
            self.most = []
            for i in range(5):
                live.most = live.now
                yield tokens.roll(i, 0)
                self.most.append(live.most)

    train, heldout = Watched(), Watched()
    with live:
        wpca.dimension_map(best_model, train, STREAM, heldout=heldout, shares=[0.5], **QUIET)
    of_batch = tokens.numel() * 64 * 4  # an activation
    first, *later = train.most
    assert len(later) == 4 and set(later) == {later[0]} and first > 4 * of_batch
    grown = [b - a for a, b in itertools.pairwise(heldout.most)]
    scores = (4 * 2 + 3) * 8 * len(tokens)  # hook points and bases; baseline, count, index
    assert len(grown) == 4 and max(grown[1:]) <= scores < of_batch / 4


def test_saved_and_loaded_it_says_the_same(found, tmp_path):
    found.save(tmp_path / "map.safetensors")
    again = wpca.DimensionMap.load(tmp_path / "map.safetensors")
    assert repr(again) == repr(found) and "at 3 hook points: 4 shares, 12 sequences" in repr(found)
    assert again.to_pandas().equals(found.to_pandas())
    assert [c.kept for c in again.values()] == [c.kept for c in found.values()]
    found.bases["pca"][PLACES[0]].save(tmp_path / "basis.safetensors")
    with pytest.raises(ValueError, match="expected 'tl_weighted_pca.DimensionMap/1'"):
        wpca.DimensionMap.load(tmp_path / "basis.safetensors")


def test_its_bases_are_ablated_together_and_mapped_again(best_model, heldout_stories, found):
    together = wpca.ablation_curves(best_model, heldout_stories, found.bases, ranks=[0.5], **QUIET)
    assert together.width == 64 + 64 + 256
    again = wpca.dimension_map(
        best_model, None, heldout=heldout_stories, bases=found.bases, shares=SHARES, **QUIET
    )
    assert again.to_pandas().equals(found.to_pandas())


def test_a_run_that_is_cut_short_goes_on(
    best_model, stories, heldout_stories, found, tmp_path, monkeypatch
):
    options = {
        "shares": SHARES,
        "batch_size": 4,
        "checkpoint": tmp_path / "new",
        "checkpoint_every": 1,
    }
    options |= QUIET
    whole = wpca.dimension_map(
        best_model, stories, PLACES, heldout=heldout_stories, **options | {"checkpoint": None}
    )
    calls = []

    class Cut(measurement.ScoreSums):
        def add(self, *args):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            super().add(*args)

    monkeypatch.setattr(measurement, "ScoreSums", Cut)
    with pytest.raises(KeyboardInterrupt):
        wpca.dimension_map(best_model, stories, PLACES, heldout=heldout_stories, **options)
    again = wpca.dimension_map(best_model, stories, PLACES, heldout=heldout_stories, **options)
    assert len(calls) == 3 + 1  # the third batch, and no other
    for place in PLACES:
        for name in again.names:
            assert torch.equal(again[place].per_sequence[name], whole[place].per_sequence[name])
    with pytest.raises(ValueError, match="was made with score='loss', but this run has score='kl'"):
        wpca.dimension_map(
            best_model, stories, PLACES, heldout=heldout_stories, score="kl", **options
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bases": ["lda"]}, "expected some of 'pca', 'fisher', 'random', or bases by name"),
        ({"hook_points": None}, "No hook points were given; name some"),
        ({"hook_points": "blocks.*.hook_nothing"}, "No hook point of the model matches"),
        ({"shares": [2.0]}, "a share of the width between 0.0 and 1.0"),
        ({"score": lambda run: 0}, "expected 'loss' or 'kl', whose excess is in nats"),
        ({"heldout": iter([])}, "can be read only once, but it is looked at before"),
    ],
)
def test_what_is_refused(best_model, stories, heldout_stories, change, message):
    options = {"hook_points": PLACES[:1], "heldout": heldout_stories} | change
    with pytest.raises(ValueError, match=message):
        wpca.dimension_map(best_model, stories, **options, **QUIET)


def test_what_cannot_be_ablated_is_told_before_anything_is_collected(stories, heldout_stories):
    bridge = embedded.load_model("TransformerBridge")

    class Unread:
        def __iter__(self):
            raise AssertionError("read")

    with pytest.raises(ValueError, match="feeds only a part"):
        wpca.dimension_map(
            bridge, Unread(), "blocks.1.hook_resid_mid", heldout=heldout_stories, **QUIET
        )


def test_kinds_of_hook_points():
    assert layer_and_kind("blocks.11.hook_resid_post") == ("11", "stream")
    assert layer_and_kind("blocks.0.attn.hook_out") == ("0", "attention outputs")
    assert layer_and_kind("blocks.3.hook_mlp_out") == ("3", "MLP outputs")
    assert layer_and_kind("blocks.3.attn.hook_z") == ("3", "attn.hook_z")
    assert layer_and_kind("hook_embed") == ("hook_embed", "other")


def test_the_picture_has_a_panel_a_basis_and_a_line_a_kind(found):
    figure = found.plot(title="mine")
    figure.canvas.draw()
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["PCA", "Fisher-metric PCA"]
    for name, ax in zip(found.names, panels, strict=True):
        (mesh,) = [c for c in ax.collections if isinstance(c, matplotlib.collections.QuadMesh)]
        shown = mesh.get_array().reshape(3, 4)
        curves = found[PLACES[0]]
        excess = [s - curves.baseline for s in curves.scores[name]]
        assert shown[0, :3].tolist() == pytest.approx(excess[:3])
        # The contour crosses into the first column whose excess is at most the tolerance.
        lines = [
            line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_color() != "black"
        ]
        crossings = {tuple(line.get_ydata()): line.get_xdata()[0] for line in lines}
        for row, place in enumerate(PLACES):
            column = found[place].ranks.index(found.smallest_ranks(name)[place])
            assert column - 0.5 < crossings[(row, row + 1)] <= column + 0.5
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "stream", "attn.hook_z", "mlp.hook_post",
    ]  # fmt: skip


@pytest.mark.parametrize("change", [{"tolerance": 0.0}, {"shares": [1.0]}, {"tolerance": 99.0}])
def test_any_map_has_a_picture(found, change):
    """Also where nothing is lost, or no loss allowed, which have no logarithm."""
    dims = dataclasses.replace(found, **change)
    dims.plot().canvas.draw()
    assert len(dims.plot(interactive=True).layout.shapes) == 2 * len(PLACES)


@pytest.mark.parametrize("tolerance", [0.0, 1e-9])
def test_the_whole_width_is_enough_for_any_tolerance(found, tolerance):
    """There the basis is the identity, up to the rounding of float32, which is no excess."""
    curves = {}
    for place, of in found.items():
        base = of.baseline_per_sequence
        rows = torch.stack([base + 3, base + 2, base + 1, base * (1 + 1e-7)])
        curves[place] = dataclasses.replace(of, per_sequence=dict.fromkeys(found.names, rows))
    dims = dataclasses.replace(found, curves=curves, tolerance=tolerance)
    for place, rank in dims.smallest_ranks("pca").items():
        assert rank == rank.low == rank.high == dims[place].width
    for ax in dims.plot().axes[:2]:
        assert all(
            x < 4 for line in ax.lines for x in line.get_xdata()
        )  # where the last column ends
    least = dataclasses.replace(dims[PLACES[0]], ranks=[0, 1, 2, 3])
    assert least.smallest_rank("pca", tolerance) == float("inf")


@pytest.mark.parametrize("interactive", [False, True])
def test_its_page_opens_offline_and_fits(found, visit, tmp_path, interactive):
    hostile = "<script>alert(1)</script>"
    text = map_page(found, hostile, interactive=interactive)
    (tmp_path / "map.html").write_text(text, encoding="utf-8")
    page = visit(tmp_path / "map.html")
    picture = page.locator(".main-svg" if interactive else "img").first
    for _ in on_each_screen(page):
        picture.wait_for()
        assert picture.bounding_box()["height"] > 100
        assert too_wide(page) <= 0
    assert page.inner_text("h1") == hostile
    rank = found.smallest_ranks("pca")[PLACES[0]]
    assert page.locator("tbody tr").first.locator("td").nth(1).inner_text() == (
        f"{rank:.0f} [{rank.low:.0f}, {rank.high:.0f}]"
    )
    assert page.complaints == []


@pytest.mark.parametrize("interactive", [False, True])
def test_axe_has_no_serious_findings_in_its_page(found, visit, axe, tmp_path, interactive):
    text = map_page(found, "A map", interactive=interactive)
    (tmp_path / "map.html").write_text(text, encoding="utf-8")
    page = visit(tmp_path / "map.html", bypass_csp=True)
    page.wait_for_selector(".main-svg" if interactive else "img")
    for _ in on_each_screen(page):
        assert axe(page) == []
