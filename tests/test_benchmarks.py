"""The scripts behind the documents' figures run, small, as the documents say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import KINDS

from tl_weighted_pca import embedded
from tl_weighted_pca.embedded.score import score
from tl_weighted_pca.embedded.vocabulary import MODEL_FOLDER, SLIPS_FOLDER
from tl_weighted_pca.models.pretrained import load_pretrained

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

pytestmark = pytest.mark.slow


def run(script: str, *arguments: object) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_run_and_the_bases_along_it(tmp_path):
    folder, page, picture = tmp_path / "run", tmp_path / "bases.md", tmp_path / "picture.png"
    few = ("--steps", 20, "--stories", 600, "--batch-size", 8)
    run("train_embedded.py", "--out", folder, *few, "--keep", 2, 20)
    heldout = embedded.stories("heldout", 4)
    early, late, last = (
        score(load_pretrained(str(path), device="cpu"), heldout).loss
        for path in (folder / "step-2", folder / "step-20", folder)
    )
    assert early > late == last

    page.write_text("Before.\n\n<!-- training -->\n\nold\n\n<!-- end of training -->\n\nAfter.\n")
    sizes = ("--train", 8, "--heldout", 4)
    run("bases_over_training.py", folder, *sizes, "--out", page, "--picture", picture)
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("\nAfter.\n") and "old" not in text
    rows = re.findall(r"^\| (\d+) \| \+([\d.]+)% \|.*\|$", text, re.MULTILINE)
    assert [step for step, _ in rows] == ["2", "20"]
    of_early, of_late = (float(excess) for _, excess in rows)
    assert of_early > of_late
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_bases_of_several_trainings(tmp_path):
    page, sizes = tmp_path / "bases.md", ("--train", 8, "--heldout", 4)
    page.write_text("Before.\n\n<!-- seeds -->\n\nold\n\n<!-- end of seeds -->\n\nAfter.\n")
    run("bases_over_seeds.py", SLIPS_FOLDER, MODEL_FOLDER, *sizes, "--out", page)
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("\nAfter.\n") and "old" not in text
    rows = [
        (name, float(excess), [*map(float, each.split(", "))], float(mean))
        for name, excess, each, mean in re.findall(
            r"^\| (gpt2-\w+) \| \+([\d.]+)% \| [\d.]+% \| ([\d., ]+) \| \*\*([\d.]+)\*\* \|",
            text,
            re.M,
        )
    ]
    (slips, good, each, mean), (stories, bad, _, _) = rows
    assert (slips, stories) == ("gpt2-slips", "gpt2-stories") and good < 10 < bad
    assert len(each) == 3 and abs(sum(each) / 3 - mean) < 0.01


def test_bases(tmp_path):
    page, picture = tmp_path / "bases.md", tmp_path / "picture.png"
    page.write_text("Before.\n\n<!-- table -->\nold\n")
    run("bases.py", "--quick", "--out", page, "--picture", picture)
    head, text = page.read_text().split("<!-- table -->")
    assert head == "Before.\n\n" and "old" not in text
    # Raw tables fold away, and the page says when and on what they were made.
    assert re.search(r'^\?\?\? details "`blocks.1.hook_resid_post`"\n\n    Unablated', text, re.M)
    assert re.search(r"^\*Made \d{4}-\d\d-\d\d on .*torch \d.*\*$", text, re.M)
    rows = dict(re.findall(r"^\| ([\w, -]+) \| ([\d.]+) \| [\d.]+ \|$", text, re.MULTILINE))
    assert float(rows["PCA"]) == 1
    assert {
        "weighted PCA",
        "Fisher-metric PCA",
        "joint PCA",
        "path-metric PCA, two rounds",
    } < rows.keys()
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("script", "mark", "n_tables"),
    [
        ("stability", "stability of slips", 3),
        ("training_text", "training text", 1),
        ("one_rank", "one rank", 1),
        ("trained_cards", "cards", 1),
    ],
)
def test_trainings(tmp_path, script, mark, n_tables):
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n\n<!-- {mark} -->\n\nold\n\n<!-- end of {mark} -->\n\nAfter.\n")
    run(f"{script}.py", "--quick", "--out", page)
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("\nAfter.\n") and "\nold\n" not in text
    assert len(re.findall(r"^ *\|---", text, re.MULTILINE)) == n_tables
    assert all(float(share) > 0 for share in re.findall(r"\d\.\d\d", text))


def test_svd():
    *_, row = run("svd.py", "--exactly", "3 × 2 × 4", "--seconds", 0.2).splitlines()
    name, shape, *_, reconstruction, orthogonality = row.strip("| ").split(" | ")
    assert (name, shape) == ("3 × 2 × 4", "1 × [3, 2] · [2, 4]")
    for errors in (reconstruction, orthogonality):
        assert all(float(error) < 1e-5 for error in errors.split(" → "))


def test_the_search_for_factors_that_are_worse_decomposed():
    _, first, *_ = run("svd_search.py", "--seconds", 3).splitlines()
    n, reconstruction = re.fullmatch(r"(\d+) products.*'reconstruction': (\d+),.*", first).groups()
    assert int(n) > 5 and int(reconstruction) == 0


def test_the_ansatz_on_two_of_its_networks_gives_the_rows_of_the_page():
    page = (BENCHMARKS.parent / "docs" / "feature_ansatz.md").read_text()
    printed = run("ansatz.py", "--models", "--quick")
    by_network = printed.partition("By network")[2]
    rows = re.findall(
        r"^    \| (\w[^|]*) \| ([^|]*) \| (output|loss) \| (.*) \|$", by_network, re.M
    )
    assert {family for family, *_ in rows} == {"depth", "x²"}
    for family, network, objective, figures in rows:
        (kept,) = re.findall(
            rf"^    \| {family} \| {network} \| {objective} \| (.*) \|$", page, re.M
        )
        for ours, theirs in zip(figures.split(" | "), kept.split(" | "), strict=True):
            if re.fullmatch(r"[\d.]+", theirs):
                assert abs(float(ours) - float(theirs)) <= 0.0101
            else:
                assert ours == theirs


def test_maps_of_a_model(tmp_path):
    page, kept = tmp_path / "maps.md", tmp_path / "kept"
    page.write_text("Before.\n\n<!-- slips -->\n\nold\n\n<!-- end of slips -->\n\nAfter.\n")
    (tmp_path / "images").mkdir()
    parts = ("--part", "The map", "--part", "Sequential bases")
    run("model_maps.py", "--quick", "--model", "slips", *parts, "--keep", kept, "--out", page)
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("\nAfter.\n") and "old" not in text
    ranks = re.findall(r"^    \| `blocks\.\d\.\w+` \| (\d+) \[.*\] \| (\d+) \[.*\] \|$", text, re.M)
    assert len(ranks) == 12 and all(int(k) <= 64 for row in ranks for k in row)
    kl = re.findall(r"^    \| stream \| 0\.\d+ \| ([\d.]+) \| ([\d.]+) \|", text, re.M)
    assert len(kl) == 2 and float(kl[0][0]) > float(kl[-1][0]) > 0
    assert (tmp_path / "images" / "model_map_gpt2-slips.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(kept.glob("*.md"))) == 2  # what is done is kept


@pytest.mark.skipif(len(KINDS) < 2, reason="TransformerLens 4 has no HookedTransformer")
def test_the_page_of_a_gpu_is_written_whole_by_a_cpu(tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text("Before.\n\n<!-- table -->\n\nold\n")
    run("gpu.py", "--quick", "--device", "cpu", "--seconds", 1e6, "--out", page)
    text = page.read_text()
    assert text.startswith("Before.\n\n<!-- table -->\n\nNo GPU: ") and "old" not in text
    assert "Failed" not in text
    tables = dict(re.findall(r"^## (.+?)\n(.+?)(?=^## |\Z)", text, re.M | re.S))
    assert len(tables) == 9
    rows = {name: re.findall(r"^\| (?!---)(.+) \|$", t, re.M)[1:] for name, t in tables.items()}
    errors = [float(x) for row in rows["Moments"] for x in row.split(" | ")[2:5]]
    assert len(errors) == 24 and max(errors) < 1e-6
    assert all("0e+00" in row.split(" | ")[4] for row in rows["Options"][:4])
    counts = {"Collecting": 2, "SVD": 2, "Options": 8, "TF32 and conclusions": 4, "Bases": 2}
    assert {name: len(rows[name]) for name in counts} == counts
    assert len(rows["A trained basis and a dimension map"]) == 2
    assert "*Left out" in tables["SmolLM2-135M"]
