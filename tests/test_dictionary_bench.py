"""What the dictionaries' benchmark trains and scores on, against the package's own functions."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from helpers.dictionary_bench import POSITIONS, Bench, run_all

sys.path.pop(0)

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.dictionary import evaluate_dictionary

HOOK = "blocks.1.hook_resid_post"
RUNS = [
    {"part": "frontier", "kind": "relu", "seed": 0, "learning_rate": 0.01, "sparsity": each}
    for each in (0.02, 0.3)
]


@pytest.fixture(scope="module")
def model():
    return embedded.load_model(device="cpu")


@pytest.fixture(scope="module")
def stories():
    return embedded.stories("train", 12).select_columns("input_ids")


@pytest.fixture(scope="module")
def heldout():
    return embedded.stories("heldout", 6).select_columns("input_ids")


def bench(model, stories, heldout, *keep):
    return Bench(
        model, HOOK, stories, heldout,
        features=96, steps=40, batch_size=4, keep=keep or (None, None),
    )  # fmt: skip


def test_it_scores_as_evaluate_dictionary_does(model, stories, heldout):
    made = bench(model, stories, heldout)
    code = made.train("relu", wpca.dictionary.Recipe(batch_size=64, seed=3))
    found = made.score(code)
    wanted = vars(
        evaluate_dictionary(model, heldout, code, HOOK, positions=POSITIONS).scores["dictionary"]
    )
    assert 0 < wanted["l0"] < 96 and wanted["kl"] > 0
    for name, value in wanted.items():
        # There, the loss recovered is relative to the mean of the held-out rows, here of those trained on.
        tolerance = 0.05 if name == "loss_recovered" else 1e-4
        assert found[name] == pytest.approx(value, rel=tolerance, abs=1e-6), name


def test_results_and_rows_are_kept(model, stories, heldout, tmp_path):
    out, rows = tmp_path / "results.jsonl", (tmp_path / "rows" / "a", tmp_path / "rows" / "b")
    run_all(RUNS[:1], out, lambda: bench(model, stories, heldout, *rows), 64)
    first = out.read_text()
    again = bench(model, stories, heldout, *rows)
    fresh = bench(model, stories, heldout)
    torch.testing.assert_close(again.x, fresh.x, rtol=0, atol=0)
    torch.testing.assert_close(again.held_g, fresh.held_g, rtol=0, atol=0)
    run_all(RUNS, out, lambda: again, 64)
    assert out.read_text().startswith(first)
    weak, strong = (json.loads(line) for line in out.read_text().splitlines())
    assert [weak["run"], strong["run"]] == RUNS
    assert strong["scores"]["l0"] < weak["scores"]["l0"]
    run_all(RUNS, out, lambda: 1 / 0, 64)  # nothing left to do
