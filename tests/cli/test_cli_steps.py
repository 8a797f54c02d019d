"""Each step's folder is the next one's input, and holds what the package would give."""

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from command_line import FEW, ON_CPU, POINT, plain, run, works
from conftest import KINDS
from safetensors import safe_open
from safetensors.torch import save_file

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.cli.processes import share
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.feature_cards import page as cards_page
from tl_weighted_pca.runs.manifest import read_manifest


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A folder with moments of two objectives, and bases of them."""
    folder = tmp_path_factory.mktemp("steps")
    objectives = ["--objective", "loss", "--objective", "fisher"]
    works("collect", "--hook", POINT, *objectives, *FEW, *ON_CPU, "--out", folder / "run")
    works("basis", folder / "run", "--out", folder / "bases")
    return folder


def test_collect_gives_what_the_package_gives(steps, best_model):
    data = embedded.stories("train", 1500 // 20 + 1)
    expected = wpca.collect(best_model, data, POINT, batch_size=16, max_tokens=1500, progress=False)
    found = wpca.Collection.load(steps / "run" / "moments.loss.safetensors")
    assert list(found) == [POINT]
    assert found[POINT].n_tokens == expected[POINT].n_tokens > 1000
    for kind in ("activation", "gradient", "weighted"):
        torch.testing.assert_close(
            getattr(found[POINT], kind).second, getattr(expected[POINT], kind).second
        )
    fisher = wpca.Collection.load(steps / "run" / "moments.fisher.safetensors")
    assert fisher[POINT].provenance.objective.startswith("sampled_token_loss")


def test_basis_makes_one_of_each_method_and_of_each_objective_it_uses(steps):
    made = {file.name.removeprefix(f"{POINT}.") for file in (steps / "bases").iterdir()}
    assert made == {
        "pca.safetensors", "weighted-loss.safetensors", "weighted-fisher.safetensors",
        "metric-loss.safetensors", "metric-fisher.safetensors", "random.safetensors", "png",
        "manifest.json",
    }  # fmt: skip
    moments = wpca.Collection.load(steps / "run" / "moments.fisher.safetensors")[POINT]
    found = wpca.Basis.load(steps / "bases" / f"{POINT}.metric-fisher.safetensors")
    torch.testing.assert_close(found.encoder, wpca.metric_pca(moments).encoder)


def test_ablate_writes_the_curves_that_it_shows(steps, tmp_path, best_model):
    shown = works(
        "ablate", steps / "bases", "--ranks", "0,16,64", *FEW, "--out", tmp_path / "ablation"
    )
    table = pd.read_csv(tmp_path / "ablation" / "ablation.csv")
    names = ["pca", "weighted loss", "weighted fisher", "metric loss", "metric fisher", "random"]
    assert set(table["basis"]) == set(names)
    bases = {"pca": wpca.Basis.load(steps / "bases" / f"{POINT}.pca.safetensors")}
    curves = wpca.ablation_curves(
        best_model, embedded.stories("heldout", 76), bases, POINT, ranks=[0, 16, 64],
        max_tokens=1500, progress=False,
    )  # fmt: skip
    found = table[table["basis"] == "pca"]["score"]
    assert list(found) == pytest.approx(curves.scores["pca"], rel=1e-5)
    assert f"{curves.scores['pca'][1]:.3f}" in shown and "that of PCA" in plain(shown)
    assert (tmp_path / "ablation" / f"{POINT}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("objective", "says"), [("fisher", "fisher"), ("loss", "empirical")])
def test_a_file_and_a_basis_say_which_metric(steps, tmp_path, objective, says):
    """Also where there is one objective, and no other to tell it from."""
    moments = steps / "run" / f"moments.{objective}.safetensors"
    works("basis", moments, "--method", "metric", "--out", tmp_path / "out")
    basis = wpca.Basis.load(tmp_path / "out" / f"{POINT}.metric-{objective}.safetensors")
    assert basis.method == f"metric_pca({says})"


def test_the_path_basis_reads_the_data_again(steps, tmp_path):
    works(
        "basis", steps / "run" / "moments.loss.safetensors", "--method", "path", *FEW,
        "--out", tmp_path / "path",
    )  # fmt: skip
    basis = wpca.Basis.load(tmp_path / "path" / f"{POINT}.path.safetensors")
    assert basis.method == "metric_pca(path)" and basis.n_components == 64
    assert read_manifest(tmp_path / "path")["model"]["name"] == "gpt2-stories"


def test_the_path_is_at_the_positions_of_the_moments(tmp_path, best_model):
    works("collect", "--hook", POINT, "--positions", "1:", *FEW, "--out", tmp_path / "run")
    file = tmp_path / "run" / "moments.safetensors"
    line = ["basis", file, "--method", "path", *FEW, "--max-tokens", "500", "--out"]
    works(*line, tmp_path / "same")
    works(*line, tmp_path / "other", "--positions", "2:")
    data, collection = embedded.stories("train", 100), wpca.Collection.load(file)
    options = {"batch_size": 16, "max_tokens": 500, "progress": False}
    for out, first in (("same", 1), ("other", 2)):
        start, where = wpca.pca(collection[POINT]), slice(first, None)
        metric = wpca.path_metric(best_model, data, POINT, start, positions=where, **options)
        found = wpca.Basis.load(tmp_path / out / f"{POINT}.path.safetensors")
        expected = wpca.metric_pca(collection[POINT], metric)
        torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-4, atol=1e-7)
    collection.settings["positions"] = "[0, 3]"
    collection.save(tmp_path / "chosen.safetensors")
    line[1] = tmp_path / "chosen.safetensors"
    result = run(*line, tmp_path / "no")
    assert result.exit_code == 1 and "say which a further pass is to use" in plain(result.output)


def test_the_path_basis_has_a_centre_and_damping(steps, tmp_path, best_model):
    file = steps / "run" / "moments.loss.safetensors"
    line = ["basis", file, "--method", "path", *FEW, "--max-tokens", "300"]
    works(*line, "--center", "none", "--damping", "0.5", "--out", tmp_path / "path")
    moments = wpca.Collection.load(file)[POINT]
    metric = wpca.path_metric(
        best_model, embedded.stories("train", 100), POINT, wpca.pca(moments, center=False),
        batch_size=16, max_tokens=300, progress=False,
    )  # fmt: skip
    expected = wpca.metric_pca(moments, metric, center=False, damping=0.5)
    found = wpca.Basis.load(tmp_path / "path" / f"{POINT}.path.safetensors")
    assert not found.center.any()
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-4, atol=1e-7)


def test_a_second_round_goes_along_the_first_rounds_basis(steps, tmp_path, best_model):
    file = steps / "run" / "moments.fisher.safetensors"
    line = ["basis", file, "--method", "path", *FEW, "--max-tokens", "300"]
    works(*line, "--rounds", "2", "--damping", "0.1", "--out", tmp_path / "path")
    moments, data = wpca.Collection.load(file)[POINT], embedded.stories("train", 100)
    options = {"batch_size": 16, "max_tokens": 300, "progress": False}
    first = wpca.path_metric(best_model, data, POINT, wpca.pca(moments), **options)
    once = wpca.metric_pca(moments, first, damping=0.1)
    second = wpca.path_metric(best_model, data, POINT, once, **options)
    found = wpca.Basis.load(tmp_path / "path" / f"{POINT}.path.safetensors").eigenvalues
    expected = wpca.metric_pca(moments, first + second, damping=0.1).eigenvalues
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert (found - once.eigenvalues).abs().max() > 0.01 * found.max()


def test_the_joint_basis_is_of_each_objective(steps, tmp_path, best_model):
    line = ["--method", "joint", "--seed", "3", *FEW, *ON_CPU, "--max-tokens", "300"]
    works("basis", steps / "run", *line, "--out", tmp_path / "joint")
    data = embedded.stories("train", 100)
    asked = {"loss": wpca.next_token_loss, "fisher": wpca.sampled_token_loss(1, 3)}
    for label, objective in asked.items():
        moments = wpca.Collection.load(steps / "run" / f"moments.{label}.safetensors")[POINT]
        pairs = wpca.stream_pairs(
            best_model, data, POINT, objective=objective, batch_size=16, max_tokens=300
        )
        expected = wpca.joint_pca(moments, pairs, seed=3).encoder
        found = wpca.Basis.load(tmp_path / "joint" / f"{POINT}.joint-{label}.safetensors").encoder
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_trained_basis_starts_from_fisher_s(steps, tmp_path, best_model):
    line = ["--method", "trained", "--steps", "4", *FEW, *ON_CPU, "--max-tokens", "2500"]
    works("basis", steps / "run", *line, "--out", tmp_path / "trained")
    moments = wpca.Collection.load(steps / "run" / "moments.fisher.safetensors")[POINT]
    expected = wpca.optimize_basis(
        best_model, embedded.stories("train", 100), wpca.metric_pca(moments), steps=4, batch_size=16,
        max_tokens=2500, progress=False,
    )  # fmt: skip
    (file,) = (tmp_path / "trained").glob("*.safetensors")
    assert file.name == f"{POINT}.trained.safetensors"
    torch.testing.assert_close(wpca.Basis.load(file).encoder, expected.encoder)


def test_a_joint_basis_needs_gradients_that_can_be_had_again(tmp_path):
    works("collect", "--objective", "none", *FEW, "--hook", POINT, "--out", tmp_path / "run")
    line = ["basis", tmp_path / "run", "--method", "joint", *FEW, "--out", tmp_path / "no"]
    result = run(*line)
    assert result.exit_code == 1 and "no gradient statistics" in plain(result.output)
    assert "and an objective" in plain(result.output)

    def own_loss(run):
        return run.output.square().sum((-2, -1))

    model, data = embedded.load_model(device="cpu"), embedded.stories("train", 20)
    moments = wpca.collect(model, data, POINT, objective=own_loss, progress=False)
    moments.save(tmp_path / "own.safetensors")
    result = run("basis", tmp_path / "own.safetensors", *line[2:])
    assert result.exit_code == 1 and "of the same objective" in plain(result.output)


@pytest.mark.parametrize(
    ("method", "option", "value", "of"),
    [
        ("metric", "--max-tokens", "5", "path, joint or trained"),
        ("metric", "--positions", "1:", "path, joint or trained"),
        ("metric", "--batch-size", "5", "path, joint or trained"),
        ("metric", "--device", "cpu", "path, joint or trained"),
        ("metric", "--steps", "5", "trained"),
        ("path", "--steps", "5", "trained"),
        ("metric", "--rounds", "2", "path"),
        ("trained", "--rounds", "2", "path"),
        ("pca", "--damping", "0.1", "metric or path"),
        ("trained", "--damping", "0.1", "metric or path"),
    ],
)
def test_an_option_of_no_basis_that_is_made_is_refused(steps, tmp_path, method, option, value, of):
    line = ["basis", steps / "run", "--method", method, option, value]
    result = run(*line, "--out", tmp_path / "no")
    assert result.exit_code == 1
    assert f"{option} has no effect without --method {of}: leave it out" in plain(result.output)


def test_moments_are_not_ablated(steps, tmp_path):
    result = run("ablate", steps / "run", *FEW, "--out", tmp_path / "no")
    assert result.exit_code == 1 and "make bases of them first" in plain(result.output)
    result = run("collect", "--model", "embedded_slips", "--out", tmp_path / "no")
    assert result.exit_code == 1 and "did you mean 'embedded-slips'?" in plain(result.output)


def test_options_of_bases_arrive(steps, tmp_path):
    out = tmp_path / "bases"
    works(
        "basis", steps / "run" / "moments.loss.safetensors", "--method", "pca", "--center", "none",
        "--hook", "blocks.*", "--out", out,
    )  # fmt: skip
    assert not wpca.Basis.load(out / f"{POINT}.pca.safetensors").center.any()


def test_moments_without_gradients_make_the_bases_that_need_none(tmp_path):
    works("collect", "--objective", "none", *FEW, "--hook", POINT, "--out", tmp_path / "run")
    works("basis", tmp_path / "run", "--out", tmp_path / "bases")
    names = {file.name for file in (tmp_path / "bases").glob("*.safetensors")}
    assert names == {f"{POINT}.pca.safetensors", f"{POINT}.random.safetensors"}
    result = run("basis", tmp_path / "run", "--method", "weighted", "--out", tmp_path / "no")
    assert result.exit_code == 1 and "no weighted statistics" in plain(result.output)


def test_cards_tell_the_facts_of_the_stories(steps, tmp_path, monkeypatch):
    monkeypatch.setattr(cards_page, "ON_ONE_PAGE", 2)
    shown = works(
        "cards", steps / "bases" / f"{POINT}.pca.safetensors", "-n", "3", "--max-tokens", "6000",
        "--no-progress", "--out", tmp_path / "cards",
    )  # fmt: skip
    assert "3 cards of PCA" in shown
    page = (tmp_path / "cards" / "cards.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "https://" not in page.split("<body")[0]
    whole = (tmp_path / "cards" / "cards_whole.html").read_text()
    assert (page.count("<article"), whole.count("<article")) == (0, 3)
    facts = pd.read_csv(tmp_path / "cards" / "facts.csv")
    assert set(facts["fact"]) <= set(embedded.FACTS) and facts["eta_squared"].between(0, 1).all()


def test_cards_compare_with_another_basis_and_show_prompts(steps, tmp_path):
    basis, other = (steps / "bases" / f"{POINT}.{m}.safetensors" for m in ("pca", "metric-fisher"))
    texts = ["Long ago, Sam", "Once upon a time"]
    prompts = [part for text in texts for part in ("--prompt", text)]
    works(
        "cards", basis, "-n", "2", "--compare", other, *prompts, "--no-ablation", *FEW,
        "--out", tmp_path / "cards",
    )  # fmt: skip
    found = json.loads((tmp_path / "cards" / "cards.json").read_text())
    assert found["compared"] == "metric_pca(fisher)"
    for card in found["components"]:
        cosine = wpca.Basis.load(basis).decoder[card["component"]] @ (
            torch.nn.functional.normalize(wpca.Basis.load(other).decoder, dim=1).mT
        )
        near = {e["component"]: e for e in card["nearest"] if e["basis"] == found["compared"]}
        assert near[int(cosine.abs().argmax())]["cosine"] == pytest.approx(
            float(cosine[cosine.abs().argmax()])
        )
    said = ["".join(prompt["tokens"]) for prompt in found["prompts"]]
    assert all(text in told for text, told in zip(texts, said, strict=True))
    assert not (tmp_path / "cards" / "cards_whole.html").exists()
    page = (tmp_path / "cards" / "cards.html").read_text()
    assert "Compared with <code>metric_pca(fisher)" in page and page.count('by token">') == 2
    assert {str(basis), str(other)} <= set(read_manifest(tmp_path / "cards")["inputs"])


def test_svd_writes_the_singular_values_and_reads_a_head(tmp_path, best_model):
    shown = works("svd", "--head", "3.1", "--directions", "2", "--out", tmp_path / "svd")
    table = pd.read_csv(tmp_path / "svd" / "singular_values.csv")
    with wpca.use_linalg_svd():
        expected = best_model.OV.svdvals()[3, 1]
    found = table[(table["layer"] == 3) & (table["head"] == 1)]["singular_value"]
    torch.testing.assert_close(torch.tensor(found.to_numpy()).float(), expected)
    directions = pd.read_csv(tmp_path / "svd" / "directions.csv")
    assert list(directions["i"]) == ["1+", "1−", "2+", "2−"]
    assert directions["writes"][0] in shown
    works("svd", "--circuit", "QK", "--head", "0.0", "--out", tmp_path / "qk")


def test_ansatz_writes_its_table_and_pictures(tmp_path):
    shown = works("ansatz", "--layer", "1", *FEW, "--out", tmp_path / "ansatz")
    table = pd.read_csv(tmp_path / "ansatz" / "ansatz.csv")
    assert set(table["layer"]) == {1} and table["cosine"].between(0, 1).all()
    assert f"{table['cosine'][0]:.3g}" in shown
    assert {"cosines.png", "captured.png"} <= {f.name for f in (tmp_path / "ansatz").iterdir()}


def test_interaction_gives_bases_to_ablate(tmp_path):
    hooks = ["--hook", "blocks.1.hook_resid_post", "--hook", POINT]
    works(
        "interaction", *hooks, "--max-tokens", "600", "--edge-tokens", "200", "--no-progress",
        "--out", tmp_path / "lib",
    )  # fmt: skip
    edges = pd.read_csv(tmp_path / "lib" / "edges.csv")
    assert edges["share"].sum() >= 0.99 and (tmp_path / "lib" / "graph.png").exists()
    works("ablate", tmp_path / "lib", "--ranks", "0,64", *FEW, "--out", tmp_path / "ablation")
    table = pd.read_csv(tmp_path / "ablation" / "ablation.csv")
    assert set(table["hook_point"]) == {"blocks.1.hook_resid_post", POINT}
    assert table[table["rank"] == 64]["excess"].abs().max() < 1e-4


def test_dictionary_is_trained_and_evaluated(tmp_path):
    shown = works(
        "dictionary", "--features", "32", "--n-tokens", "3000", *FEW, "--out", tmp_path / "d"
    )
    table = pd.read_csv(tmp_path / "d" / "evaluation.csv", index_col="code")
    assert {"dictionary", "pca"} == set(table.index) and "loss_recovered" in shown
    trained = wpca.dictionary.SparseAutoencoder.load(tmp_path / "d" / "dictionary.safetensors")
    assert trained.n_features == 32 and trained.provenance.hook_point == POINT
    assert not list((tmp_path / "d").glob("checkpoint*"))
    terms = ("--penalty", "log", "--attribution", "0.001", "--unexplained", "0.02")
    works(
        "dictionary",
        "--features",
        "32",
        "--n-tokens",
        "3000",
        *FEW,
        *terms,
        "--out",
        tmp_path / "e",
    )
    other = wpca.dictionary.SparseAutoencoder.load(tmp_path / "e" / "dictionary.safetensors")
    assert not torch.equal(other.W_dec, trained.W_dec)


def test_ones_own_text_goes_all_the_way(tmp_path):
    (tmp_path / "notes.txt").write_text("\n\n".join(embedded.stories("heldout", 30)["text"]))
    own = ["--dataset", tmp_path / "notes.txt", *FEW]
    works("collect", *own, "--hook", "blocks.[12].hook_mlp_out", "--out", tmp_path / "run")
    works("basis", tmp_path / "run", "--out", tmp_path / "bases")
    works("ablate", tmp_path / "bases", *own, "--ranks", "8", "--out", tmp_path / "ablation")
    works(
        "cards", tmp_path / "bases" / "blocks.1.hook_mlp_out.pca.safetensors", *own, "-n", "2",
        "--no-ablation", "--out", tmp_path / "cards",
    )  # fmt: skip
    manifest = read_manifest(tmp_path / "run")
    assert list(manifest["inputs"]) == [str(tmp_path / "notes.txt")]
    assert set(pd.read_csv(tmp_path / "ablation" / "ablation.csv")["hook_point"]) == {
        "blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out",
    }  # fmt: skip


def test_words_unknown_to_the_model_are_told_and_too_many_refused(tmp_path):
    known = " ".join(embedded.stories("train", 1)["text"][0].split()[:60])
    for text, code in ((f"{known} Quarks gluons.", 0), ("Quarks and gluons. Once.", 1)):
        (tmp_path / "notes.txt").write_text(text)
        line = ["collect", "--dataset", tmp_path / "notes.txt", *FEW, "--out", tmp_path / str(code)]
        result = run(*line)
        assert result.exit_code == code, result.output
        assert "of the first tokens are words that the model does not know" in plain(result.stderr)
    advice = "pass text in its words, or the model that the text is for with --model"
    assert advice in plain(result.stderr)


OWN = ["txt", "jsonl", "parquet", "saved", "tokens"]


@pytest.mark.parametrize("form", OWN)
def test_bases_of_ones_own_text_are_judged_on_what_was_held_out_of_it(tmp_path, monkeypatch, form):
    """No text is both collected and scored, whoever names it; and every text is one of them."""
    told = [story for story in embedded.stories("train", 45)["text"] if story.isascii()]
    rows = datasets.Dataset.from_dict({"text": told})
    source = tmp_path / ("notes" if form in ("saved", "tokens") else f"notes.{form}")
    if form == "txt":
        source.write_text("\n\n".join(told))
    elif form == "tokens":
        embedded.stories("train", 45).select_columns(["input_ids"]).save_to_disk(source)
    else:
        {"jsonl": rows.to_json, "parquet": rows.to_parquet, "saved": rows.save_to_disk}[form](
            source
        )
    seen = {}

    def watched(name):
        module = f"tl_weighted_pca.{name}"
        real = importlib.import_module(module).batches

        def batches(data, *args, **options):
            for batch in real(data, *args, **options):
                for row in batch.inputs.tolist():
                    seen.setdefault(name, set()).add(tuple(token for token in row if token))
                yield batch

        monkeypatch.setattr(f"{module}.batches", batches)

    watched("streaming.one_pass")
    watched("ablation.scored_pass")
    all_of_it = ["--max-tokens", "100000", "--no-progress"]
    works("collect", "--dataset", source, "--hook", POINT, *all_of_it, "--out", tmp_path / "run")
    works("basis", tmp_path / "run", "--method", "pca", "--out", tmp_path / "bases")
    line = ["ablate", tmp_path / "bases", "--ranks", "8", *all_of_it]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(source)
    for i, named in enumerate(([], ["--dataset", source], ["--dataset", "link"])):
        if i == 2 and form not in ("saved", "tokens"):
            continue  # a link says no kind of file
        seen.pop("ablation.scored_pass", None)
        works(*line, *named, "--out", tmp_path / f"ablation{i}")
        collected, scored = seen["streaming.one_pass"], seen["ablation.scored_pass"]
        assert not collected & scored
        assert (len(collected), len(scored)) == (41, 4)
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(embedded.stories("heldout", 12)["text"]))
    seen.pop("ablation.scored_pass")
    works(*line, "--dataset", other, "--out", tmp_path / "of-other")
    assert len(seen["ablation.scored_pass"]) == 12


def test_one_long_text_is_held_out_by_the_sequence(tmp_path):
    (tmp_path / "notes.txt").write_text(" ".join(embedded.stories("train", 40)["text"]))
    (tmp_path / "short.txt").write_text("Once upon a time there lived a boy.")
    for name, code in (("notes", 0), ("short", 1)):
        text = ["--dataset", tmp_path / f"{name}.txt", "--context-length", "64"]
        works("collect", *text, "--hook", POINT, *FEW, "--out", tmp_path / name)
        works("basis", tmp_path / name, "--method", "pca", "--out", tmp_path / f"{name}.bases")
        line = ["ablate", tmp_path / f"{name}.bases", "--ranks", "8", *FEW]
        result = run(*line, "--out", tmp_path / f"{name}.ablation")
        assert result.exit_code == code, result.output
    assert "fewer than 10 sequences, and so none is held out: pass other text" in plain(
        result.stderr
    )
    result = run(*line, "--context-length", "32", "--out", tmp_path / "no")
    assert result.exit_code == 1 and "goes with --dataset" in plain(result.stderr)


@pytest.mark.parametrize("model_class", ["HookedTransformer", "TransformerBridge"])
def test_either_model_class(tmp_path, model_class):
    if model_class not in KINDS:
        result = run("collect", "--model-class", model_class, *FEW, "--out", tmp_path / "run")
        assert result.exit_code == 1 and f"no {model_class}" in plain(result.output)
        return
    works("collect", "--model-class", model_class, *FEW, "--out", tmp_path / "run")
    assert read_manifest(tmp_path / "run")["model"]["class"] == model_class


def test_the_model_of_stories_with_slips_reads_those(tmp_path):
    works("collect", "--model", "embedded-slips", "--hook", POINT, *FEW, "--out", tmp_path / "run")
    works("basis", tmp_path / "run", "--method", "pca", "--out", tmp_path / "bases")
    basis = tmp_path / "bases" / f"{POINT}.pca.safetensors"
    model = embedded.load_model(device="cpu", slips=True)
    got = wpca.Collection.load(tmp_path / "run" / "moments.safetensors")[POINT].activation
    assert read_manifest(tmp_path / "run")["model"]["name"] == "gpt2-slips"
    stories = embedded.stories("train", 100, slips=True)
    again = wpca.collect(model, stories, POINT, max_tokens=1500, progress=False)[POINT]
    torch.testing.assert_close(got.mean, again.activation.mean, rtol=1e-4, atol=1e-4)
    again = ["basis", tmp_path / "run", "--method", "joint"]
    for command in (["cards", basis, "-n", "2"], ["ablate", basis], again):
        result = run(*command, "--model", "embedded", *FEW, "--out", tmp_path / "other")
        assert result.exit_code == 1
        assert "made with (--model embedded-slips)" in plain(result.output)
        assert "or add --anywhere" in plain(result.output) or command[0] != "ablate"
    line = ["ablate", basis, "--model", "embedded", *FEW, "--ranks", "8", "--anywhere"]
    works(*line, "--out", tmp_path / "anywhere")


def test_a_local_folder_is_a_model(tmp_path):
    from tl_weighted_pca.embedded.vocabulary import MODEL_FOLDER

    shutil.copytree(MODEL_FOLDER, tmp_path / "mine")
    (tmp_path / "notes.txt").write_text("\n\n".join(embedded.stories("heldout", 5)["text"]))
    text = ["--dataset", tmp_path / "notes.txt", *FEW]
    works("collect", "--model", tmp_path / "mine", *text, "--hook", POINT, "--out", tmp_path / "a")
    works("collect", *text, "--hook", POINT, "--out", tmp_path / "b")
    a, b = (wpca.Collection.load(tmp_path / x / "moments.safetensors")[POINT] for x in "ab")
    torch.testing.assert_close(a.activation.second, b.activation.second, rtol=1e-4, atol=1e-3)
    assert read_manifest(tmp_path / "a")["model"]["name"] == "mine"


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(steps, tmp_path):
    line = shlex.split(read_manifest(steps / "run")["command"])[1:-1]  # all but the folder
    works(*line, tmp_path / "again")
    works(*line, tmp_path / "other", "--seed", "1")
    first, again, other = (
        wpca.Collection.load(folder / "moments.fisher.safetensors")[POINT].gradient.second
        for folder in (steps / "run", tmp_path / "again", tmp_path / "other")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# -- info -----------------------------------------------------------------------------------------


def test_info_tells_what_each_file_is(steps):
    assert "a run" in works("info", steps / "run")
    assert "a run" in works("info", steps / "run" / "manifest.json")
    moments = works("info", steps / "run" / "moments.loss.safetensors")
    assert "moments" in moments and "next_token_loss" in moments and POINT in moments
    basis = works("info", steps / "bases" / f"{POINT}.pca.safetensors")
    assert "a basis" in basis and "gpt2-stories" in basis and "100.0%" in basis


@pytest.mark.parametrize("name", ["run/moments.loss.safetensors", f"bases/{POINT}.pca.safetensors"])
def test_a_file_whose_header_lost_its_contents_is_one_sentence(steps, tmp_path, name):
    damaged = tmp_path / "damaged.safetensors"
    with safe_open(steps / name, "pt") as file:
        save_file({"x": torch.zeros(1)}, damaged, {"format": file.metadata()["format"]})
    result = run("info", damaged)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "damaged" in plain(result.output)
    load = wpca.Basis.load if name.startswith("bases") else wpca.Collection.load
    with pytest.raises(ValueError, match="is not readable as what"):
        load(damaged)


def test_info_tells_checkpoints_and_dictionaries(tmp_path, best_model, tokens):
    path = tmp_path / "c.safetensors"
    wpca.collect(best_model, tokens, POINT, batch_size=8, checkpoint=path, progress=False)
    shown = works("info", path)
    assert "a checkpoint of `collect`" in shown and "batches done │ 2" in shown
    wpca.dictionary.SparseAutoencoder(4, 9).save(tmp_path / "d.safetensors")
    shown = works("info", tmp_path / "d.safetensors")
    assert "a dictionary" in shown and "n features │ 9" in shown.replace("  ", " ")
    wpca.dictionary.train_dictionary(
        best_model, tokens, POINT, n_features=8, n_tokens=2048, checkpoint=tmp_path / "t.safetensors",
        progress=False,
    )  # fmt: skip
    assert "a checkpoint of `dictionary`" in works("info", tmp_path / "t.safetensors")
    stats = wpca.collect(best_model, tokens, POINT, progress=False)
    wpca.optimize_basis(
        best_model, tokens, wpca.pca(stats[POINT]), 8, steps=2, batch_size=8, progress=False,
        checkpoint=tmp_path / "b.safetensors",
    )  # fmt: skip
    shown = works("info", tmp_path / "b.safetensors")
    assert "a checkpoint of `optimize_basis`" in shown and "steps done │ 2" in shown


def test_info_knows_every_kind_of_file():
    from tl_weighted_pca.cli.info import _KINDS

    sources = (path.read_text("utf-8") for path in Path(wpca.__file__).parent.rglob("*.py"))
    marks = re.findall(r'^_FORMAT = "tl_weighted_pca\.(\S+)"', "\n".join(sources), re.MULTILINE)
    assert len(marks) > 6 and set(marks) == set(_KINDS)


# -- real processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("stream", [0, 1, 4])
def test_the_limit_is_of_all_shares_together(monkeypatch, stream, n):
    data = embedded.stories("train", 100).select_columns(["input_ids"])
    expected = [batch.sequence_index for batch in batches(data, max_tokens=n * 100)]
    if stream:
        data = data.to_iterable_dataset(num_shards=stream)
    found = []
    for rank in range(3):
        monkeypatch.setenv("WORLD_SIZE", "3")
        monkeypatch.setenv("RANK", str(rank))
        mine, limit = share(data, n * 100)
        assert limit is None
        found += [batch.sequence_index for batch in batches(mine, max_tokens=limit)]
    assert sorted(torch.cat(found).tolist()) == sorted(torch.cat(expected).tolist())


COMMAND = [sys.executable, "-m", "tl_weighted_pca"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def processes(command, **options):
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, check=False,
        env=ENVIRONMENT, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_torchrun_shares_the_data_out(tmp_path):
    (tmp_path / "notes.txt").write_text("\n\n".join(embedded.stories("heldout", 21)["text"]))
    line = [
        "collect", "--hook", POINT, "--dataset", tmp_path / "notes.txt", "--objective", "fisher",
        "--max-tokens", "1000", "--no-progress", "--out",
    ]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = processes([*launcher, "2", "-m", "tl_weighted_pca", *line, tmp_path / "two"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1
    assert read_manifest(tmp_path / "two")["processes"] == 2
    works(*line, tmp_path / "one")
    two, one = (
        wpca.Collection.load(tmp_path / name / "moments.safetensors")[POINT]
        for name in ("two", "one")
    )
    assert (two.n_tokens, two.n_sequences) == (one.n_tokens, one.n_sequences)
    assert 900 < one.n_tokens <= 1000 and one.n_sequences < 21
    for kind in ("activation", "gradient", "weighted"):
        x, y = (getattr(m, kind).about(one.activation.mean) for m in (two, one))
        assert float((x - y).norm()) < 1e-5 * float(y.norm())
    again = processes([*launcher, "2", "-m", "tl_weighted_pca", *line, tmp_path / "two"])
    assert again.returncode == 1
    # torchrun has its own to say about a process that failed; before that there are only sentences.
    told = again.stderr.split("elastic")[0]
    assert "exists already" in told and "Traceback" not in told, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_cut_short_goes_on_to_the_same_bits(tmp_path, how):
    line = [
        "collect", "--hook", POINT, "--max-tokens", "20000", "--batch-size", "4", "--no-progress",
        "--checkpoint-every", "3", "--out",
    ]  # fmt: skip
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    checkpoint = tmp_path / "cut.partial" / "checkpoint.0.safetensors"
    child = subprocess.Popen(
        [*COMMAND, *map(str, line), str(cut)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ours may ignore it
    )  # fmt: skip
    started = time.monotonic()
    while not checkpoint.exists() and time.monotonic() - started < 200:
        time.sleep(0.02)
    child.send_signal(how)
    _, told = child.communicate(timeout=100)
    assert child.returncode == (130 if how == signal.SIGINT else -how)
    assert checkpoint.exists() and not cut.exists()
    if how == signal.SIGINT:
        assert (
            plain(told)
            == f"Note: What was done is kept in {checkpoint.parent}: add --resume to go on."
        )
    refused = run(*line, cut)
    assert refused.exit_code == 1 and "--resume to go on" in plain(refused.output)
    other = run(*line, cut, "--resume", "--batch-size", "5")
    assert other.exit_code == 1 and "--batch-size 4, but this run has --batch-size 5" in plain(
        other.output
    )
    assert checkpoint.exists()
    works(*line, cut, "--resume")
    works(*line, whole)
    one, two = (wpca.Collection.load(f / "moments.safetensors")[POINT] for f in (cut, whole))
    for kind in ("activation", "gradient", "weighted"):
        assert torch.equal(getattr(one, kind).second, getattr(two, kind).second)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["cut", "whole"]
    assert json.loads((cut / "manifest.json").read_text())["finished"]
