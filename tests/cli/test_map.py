"""`map`: what the package gives, as a table, a picture and a page; resumable."""

import re

import pandas as pd
import pytest
from command_line import FEW, plain, run, works

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.model_map import measurement
from tl_weighted_pca.runs.manifest import read_manifest

PLACES = ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"]
OPTIONS = [
    *("--hook", PLACES[0], "--hook", PLACES[1], "--shares", "0,0.5,1", "--heldout-tokens", "600"),
    *("--checkpoint-every", "1", "--batch-size", "4", *FEW),
]


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """The folder and what was said."""
    folder = tmp_path_factory.mktemp("map") / "map"
    return folder, works("map", *OPTIONS, "--out", folder)


def test_it_is_what_the_package_gives(mapped, best_model):
    folder, said = mapped
    found = wpca.DimensionMap.load(folder / "map.safetensors")
    expected = wpca.dimension_map(
        best_model, embedded.stories("train", 100), PLACES, heldout=embedded.stories("heldout", 100),
        shares=[0, 0.5, 1], batch_size=4, max_tokens=1500, heldout_tokens=600, progress=False,
    )  # fmt: skip
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas(), rtol=1e-4, atol=1e-6)
    table = pd.read_csv(folder / "map.csv")
    assert list(table["hook_point"].unique()) == PLACES and len(table) == 2 * 2 * 3
    for place in PLACES:
        rank = found.smallest_ranks("fisher")[place]
        assert re.search(rf"{place} .*{rank:.0f} \[{rank.low:.0f}, {rank.high:.0f}\]", said)


def test_info_tells_what_a_map_is(mapped):
    shown = works("info", mapped[0] / "map.safetensors")
    assert "a dimension map" in shown and "tolerance │ 0.1" in shown
    table = re.search("Components within .*┘", mapped[1])  # that `map` printed
    assert all(place in table[0] for place in PLACES) and table[0] in shown


def test_the_page_needs_nothing_from_outside(mapped):
    page = (mapped[0] / "map.html").read_text()
    assert "Dimensions of gpt2-stories" in page and all(place in page for place in PLACES)
    assert re.findall(r'<th scope="col" class="n">([^<]*)', page)[1:] == [
        "PCA",
        "Fisher-metric PCA",
    ]
    assert page.count("data:image/png;base64,") == 1
    assert not re.search(r"(src|href)=\"?(?!data:)\w+:", page) and "<script" not in page
    assert (mapped[0] / "map.png").stat().st_size > 10_000


def test_a_run_that_was_cut_short_goes_on(mapped, tmp_path, monkeypatch):
    batches = []

    class Cut(measurement.ScoreSums):
        def add(self, *args):
            batches.append(1)
            if len(batches) == 2:
                raise KeyboardInterrupt
            super().add(*args)

    monkeypatch.setattr(measurement, "ScoreSums", Cut)
    cut = run("map", *OPTIONS, "--out", tmp_path / "again")
    assert cut.exit_code and "add --resume to go on" in plain(cut.output)
    for name, what in {"moments": "`collect`", "scores": "`map`"}.items():
        shown = works("info", tmp_path / "again.partial" / f"checkpoint.{name}.safetensors")
        assert f"a checkpoint of {what}" in shown and all(place in shown for place in PLACES)
    works("map", *OPTIONS, "--out", tmp_path / "again", "--resume")
    whole, again = (pd.read_csv(folder / "map.csv") for folder in (mapped[0], tmp_path / "again"))
    pd.testing.assert_frame_equal(whole, again)
    assert set(read_manifest(tmp_path / "again")["outputs"]) == {
        "map.csv", "map.html", "map.png", "map.safetensors"
    }  # fmt: skip


def test_a_tenth_of_ones_own_text_is_held_out_or_other_text(tmp_path):
    stories = embedded.stories("train", 20)["text"]
    for name, some in (("a", stories[:10]), ("b", stories[10:])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(some))
    few = [*OPTIONS, "--dataset", tmp_path / "a.txt"]
    works("map", *few, "--out", tmp_path / "tenth")
    works("map", *few, "--heldout", tmp_path / "b.txt", "--out", tmp_path / "other")
    tenth, other = (
        wpca.DimensionMap.load(tmp_path / folder / "map.safetensors")[PLACES[0]]
        for folder in ("tenth", "other")
    )
    assert len(tenth.counts) == 1  # of ten
    lengths = {len(row) - 2 for row in embedded.stories("train", 20)["input_ids"][10:]}
    assert set(other.counts.tolist()) <= lengths  # those of the second file
    assert len(read_manifest(tmp_path / "other")["inputs"]) == 2


def test_shares_that_are_none(tmp_path):
    result = run("map", "--shares", "0,2", "--out", tmp_path / "x")
    assert result.exit_code and "--shares is '0,2'; expected numbers between 0 and 1" in plain(
        result.output
    )
