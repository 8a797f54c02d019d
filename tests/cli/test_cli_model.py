"""Which model a command runs: the one that is named, or the one that its input was made with."""

import shutil

import pytest
from command_line import FEW, POINT, plain, run, works

from tl_weighted_pca import embedded
from tl_weighted_pca.embedded.vocabulary import MODEL_FOLDER
from tl_weighted_pca.runs.manifest import read_manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Moments and bases of the model of stories with slips, in float64, on the bridge."""
    folder = tmp_path_factory.mktemp("made")
    model = [
        "--model",
        "embedded-slips",
        "--model-class",
        "TransformerBridge",
        "--dtype",
        "float64",
    ]
    works("collect", *model, "--hook", POINT, *FEW, "--out", folder / "run")
    works(
        "basis", folder / "run", "--method", "pca", "--method", "metric", "--out", folder / "bases"
    )
    return folder


def model_of(folder):
    manifest = read_manifest(folder)
    return manifest["model"]["name"], manifest["model"]["class"], manifest["settings"]["dtype"]


SLIPS = ("gpt2-slips", "TransformerBridge", "float64")


def test_later_commands_run_the_model_of_their_input(made, tmp_path):
    basis = made / "bases" / f"{POINT}.pca.safetensors"
    for line, out in (
        (["cards", basis, "-n", "2"], "cards"),
        (["ablate", made / "bases", "--ranks", "8"], "ablation"),  # two steps from `collect`
        (["basis", made / "run", "--method", "joint"], "joint"),
        (["ablate", tmp_path / "joint", basis, "--ranks", "8"], "both"),
    ):
        works(*line, *FEW, "--out", tmp_path / out)
        assert model_of(tmp_path / out) == SLIPS


def test_what_is_given_counts_before_it(made, tmp_path):
    basis = made / "bases" / f"{POINT}.pca.safetensors"
    works("cards", basis, "-n", "2", "--dtype", "float32", *FEW, "--out", tmp_path / "a")
    assert model_of(tmp_path / "a") == (*SLIPS[:2], "float32")
    # The input's model by its name is that model, of its class and dtype.
    named = ["--model", "embedded-slips"]
    works("cards", basis, "-n", "2", *named, *FEW, "--out", tmp_path / "named")
    assert model_of(tmp_path / "named") == SLIPS
    # Another model is another model: of the input's class and dtype nothing is left.
    line = ["ablate", basis, "--model", "embedded", "--ranks", "8", "--anywhere"]
    works(*line, *FEW, "--out", tmp_path / "b")
    name, _, dtype = model_of(tmp_path / "b")
    assert (name, dtype) == ("gpt2-stories", "float32")


def test_the_demo_says_it_otherwise(tmp_path):
    line = ["--slips", "--ranks", "8", "--stories", "20", "--heldout", "10"]
    works("demo", *line, "--no-progress", "--out", tmp_path / "demo")
    works(
        "ablate",
        tmp_path / "demo" / "pca.safetensors",
        *FEW,
        "--ranks",
        "8",
        "--out",
        tmp_path / "a",
    )
    assert model_of(tmp_path / "a")[0] == "gpt2-slips"


def test_inputs_of_two_models_leave_the_choice_to_the_user(made, tmp_path):
    works("collect", "--hook", POINT, *FEW, "--objective", "none", "--out", tmp_path / "plain")
    works("basis", tmp_path / "plain", "--method", "random", "--out", tmp_path / "random")
    both = [made / "bases", tmp_path / "random" / f"{POINT}.random.safetensors"]
    result = run("ablate", *both, *FEW, "--out", tmp_path / "no")
    assert result.exit_code == 1
    said = plain(result.output)
    assert "made with embedded-slips and embedded: pass one with --model" in said
    assert not (tmp_path / "no").exists()


def test_a_folder_is_found_from_elsewhere(tmp_path, monkeypatch):
    """`--model mine` was said where `mine` is; the next command may run somewhere else."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    shutil.copytree(MODEL_FOLDER, tmp_path / "here" / "mine")
    text = tmp_path / "notes.txt"
    text.write_text("\n\n".join(embedded.stories("heldout", 12)["text"]))
    monkeypatch.chdir(tmp_path / "here")
    mine = ["--model", "mine", "--dtype", "float64", "--dataset", text]
    works("collect", *mine, *FEW, "--hook", POINT, "--out", "../run")
    monkeypatch.chdir(tmp_path / "there")
    works("basis", "../run", "--method", "pca", "--out", "../bases")
    works("ablate", "../bases", "--dataset", text, *FEW, "--ranks", "8", "--out", "../ablation")
    manifest = read_manifest(tmp_path / "ablation")
    assert manifest["model"]["name"] == "mine"
    assert manifest["settings"]["model"] == str(tmp_path / "here" / "mine")
    # And its text, of which a part was held out.
    named = ["--model", "../here/mine"]
    works("ablate", "../bases", *named, *FEW, "--ranks", "8", "--out", "../own")
    assert read_manifest(tmp_path / "own")["settings"]["dtype"] == "float64"
    assert read_manifest(tmp_path / "own")["text"]["dataset"] == str(text)
    # The stories would be another model's text: they are not taken for its own.
    result = run("collect", "--model", tmp_path / "here" / "mine", *FEW, "--out", "../no")
    assert result.exit_code == 1
    assert "The stories are for the embedded models" in plain(result.output)


def test_without_a_manifest_it_is_the_embedded_one(made, tmp_path):
    shutil.copy(made / "bases" / f"{POINT}.pca.safetensors", tmp_path / "mine.safetensors")
    for note in (None, "{}", "no JSON"):  # a manifest of somebody else's is none of ours
        if note is not None:
            (tmp_path / "manifest.json").write_text(note)
        result = run("ablate", tmp_path / "mine.safetensors", *FEW, "--out", tmp_path / "no")
        assert result.exit_code == 1
        assert "name the model that it was made with (--model embedded-slips)" in plain(
            result.output
        )


def test_bases_left_out_for_want_of_gradients_are_told(made, tmp_path):
    works("collect", "--hook", POINT, *FEW, "--objective", "none", "--out", tmp_path / "run")
    said = works("basis", tmp_path / "run", "--out", tmp_path / "bases")
    assert "no gradients, and so no weighted and no metric PCA are made" in said
    said = works("basis", tmp_path / "run", "--method", "pca", "--out", tmp_path / "pca")
    assert "no gradients" not in said
    assert "no gradients" not in works("basis", made / "run", "--out", tmp_path / "all")
