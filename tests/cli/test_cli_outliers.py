"""Positions of outlying norm: left out of every step of a chain of commands, as of its first."""

import json

import pytest
import torch
from command_line import FEW, plain, run, works
from conftest import KINDS

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.models import pretrained
from tl_weighted_pca.runs.manifest import read_manifest

HOOK = "blocks.0.hook_resid_pre"
WORD = " stole"
"""Wherever a story has it, the stream becomes a sink: in the middle of sequences."""


def sunken(load, kind, *args, **options):
    """The embedded model, the embedding of one word grown a hundredfold."""
    model = load(kind, *args, **options)
    (token,) = model.tokenizer.convert_tokens_to_ids([WORD])
    with torch.no_grad():
        embedding = model.embed
        weight = embedding.W_E if hasattr(embedding, "W_E") else embedding.weight
        weight[token] *= 100
    return model


@pytest.fixture(scope="module", params=KINDS)
def chain(request, tmp_path_factory):
    """The folder of a run in which the sinks are left out, and the options that name its model."""
    folder, load = tmp_path_factory.mktemp("chain"), pretrained.load_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "load_model", lambda *a, **k: sunken(load, *a, **k))
        source = ["--model-class", request.param, "--hook", HOOK, "--objective", "fisher"]
        said = works("collect", *source, *FEW, "--outliers", 20, "--out", folder / "run")
        works("basis", folder / "run", "--method", "pca", "--out", folder / "bases")
        yield folder, said


def sinks(split, n_tokens):
    """How often the word comes, by position, in the stories that a command reads."""
    token = embedded.load_model().tokenizer.convert_tokens_to_ids([WORD])[0]
    found, n = {}, 0
    for row in embedded.stories(split, 1000)["input_ids"]:
        if (n := n + len(row)) > n_tokens:
            break
        for place, each in enumerate(row):
            if each == token:
                found[str(place)] = found.get(str(place), 0) + 1
    return found


def test_collect_leaves_them_out_and_says_where(chain):
    folder, said = chain
    expected = sinks("train", 1500)
    assert expected and "0" not in expected
    moments = wpca.Collection.load(folder / "run" / "moments.safetensors")
    assert moments.settings["left_out"] == {HOOK: expected}
    assert f"Left out at {HOOK}: {sum(expected.values())} of outlying norm" in said
    manifest = read_manifest(folder / "run")
    assert manifest["left_out"] == {HOOK: expected}
    assert f"left out {HOOK} {sum(expected.values())} of outlying norm" in plain(
        works("info", folder / "run").replace("│", " ")
    )


def counts_of(folder):
    return read_manifest(folder)["left_out"][HOOK]


def test_later_steps_leave_out_the_same(chain, tmp_path):
    folder, _ = chain
    said = works("ablate", folder / "bases", "--ranks", "0,8", *FEW, "--out", tmp_path / "ablate")
    expected = sinks("heldout", 1500)
    assert expected and counts_of(tmp_path / "ablate") == expected
    assert f"Left out at {HOOK}" in said and "The input was made with" not in said
    basis = folder / "bases" / f"{HOOK}.pca.safetensors"
    works("cards", basis, "-n", 2, *FEW, "--positions", "", "--out", tmp_path / "cards")
    assert counts_of(tmp_path / "cards") == expected
    notes = json.loads((tmp_path / "cards" / "cards.json").read_text())["notes"]
    assert any(note.startswith(f"Outliers: {sum(expected.values())} tokens") for note in notes)
    # The steps between: bases of a further pass, and what is made of those.
    works("basis", folder / "run", "--method", "path", *FEW, "--out", tmp_path / "path")
    assert read_manifest(tmp_path / "path")["settings"]["outliers"] == 20


def test_other_outliers_than_the_input_s_are_told(chain, tmp_path):
    folder, _ = chain
    line = ["ablate", folder / "bases", "--ranks", "0", *FEW]
    said = run(*line, "--outliers", 0, "--out", tmp_path / "none")
    assert said.exit_code == 0 and "left_out" not in read_manifest(tmp_path / "none")
    assert "made with --outliers 20, and this step has --outliers 0" in plain(said.output)
    works("collect", "--hook", HOOK, *FEW, "--out", tmp_path / "run")
    works("basis", tmp_path / "run", "--method", "random", "--out", tmp_path / "all")
    mixed = run("ablate", folder / "bases", tmp_path / "all", *FEW, "--out", tmp_path / "mixed")
    assert mixed.exit_code == 1
    assert "made with --outliers 0 and --outliers 20: pass one of them" in plain(mixed.output)


def test_a_map_leaves_them_out(chain, tmp_path):
    options = ["--hook", HOOK, "--basis", "pca", "--shares", "0,1", *FEW, "--outliers", 20]
    works("map", *options, "--heldout-tokens", 1500, "--out", tmp_path / "map")
    assert counts_of(tmp_path / "map") == sinks("heldout", 1500)


def test_what_is_no_multiple_is_refused_ahead_of_the_work(tmp_path):
    result = run("collect", "--outliers", "0.5", "--out", tmp_path / "x")
    assert result.exit_code == 1 and "expected a number above 1" in plain(result.output)
