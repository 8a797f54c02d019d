"""Bad input to each command: one sentence, exit code 1 or 2, and nothing half-written."""

import json
import os
import resource
import signal
import subprocess

import datasets
import pytest
import torch
from command_line import FEW, POINT, plain, run, works
from matplotlib.figure import Figure

import tl_weighted_pca as wpca
from tl_weighted_pca.cli import app
from tl_weighted_pca.cli.text_options import DataOptions
from tl_weighted_pca.runs.manifest import FORMAT

TWO = ["--hook", "blocks.1.hook_resid_post", "--hook", POINT]
LINES = {
    "demo": [
        "demo",
        "--stories",
        "32",
        "--heldout",
        "4",
        "--ranks",
        "8",
        "--steps",
        "2",
        "--no-progress",
    ],
    "collect": ["collect", "--hook", POINT, *FEW],
    "basis": ["basis", "MOMENTS", "--method", "path", *FEW],
    "ablate": ["ablate", "BASIS", "--ranks", "8", *FEW],
    "cards": ["cards", "BASIS", "-n", "1", "--no-ablation", *FEW],
    "svd": ["svd"],
    "ansatz": ["ansatz", "--layer", "1", *FEW],
    "interaction": ["interaction", *TWO, *FEW, "--edge-tokens", "100", "--max-tokens", "300"],
    "dictionary": ["dictionary", "--features", "8", "--n-tokens", "1024", *FEW],
    "report": ["report", "RUN"],
    "map": [
        "map",
        "--hook",
        POINT,
        "--basis",
        "pca",
        "--shares",
        "0.5,1",
        "--heldout-tokens",
        "900",
        *FEW,
    ],
}
"""A small run of each command that works."""

READING_FILES = {
    "basis": ["basis", "FILE"],
    "ablate": ["ablate", "FILE"],
    "cards": ["cards", "FILE"],
    "dictionary": ["dictionary", "--start", "FILE"],
    "info": ["info", "FILE"],
}
READING_TEXT = ["collect", "basis", "ablate", "cards", "ansatz", "interaction", "dictionary", "map"]
LOADING_MODELS = [*READING_TEXT, "svd"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files that earlier steps left: what RUN, MOMENTS and BASIS stand for."""
    folder = tmp_path_factory.mktemp("made")
    works(*LINES["collect"], "--out", folder / "run")
    works("basis", folder / "run", "--method", "pca", "--out", folder / "bases")
    return {
        "RUN": folder / "run",
        "MOMENTS": folder / "run" / "moments.safetensors",
        "BASIS": folder / "bases" / f"{POINT}.pca.safetensors",
    }


@pytest.fixture
def line(made):
    return lambda name: [made.get(part, part) for part in LINES[name]]


def refused(arguments, words, *, code=1):
    """The command fails with one sentence that has these words; what it told."""
    result = run(*arguments)
    told = plain(result.output)
    assert result.exit_code == code, told
    assert "Traceback" not in told
    if code == 1:
        sentences = [part for part in result.stderr.splitlines() if not part.startswith("Note:")]
        assert len(sentences) == 1 and sentences[0].startswith("Error: "), result.stderr
        assert not result.stdout
    assert words in told
    return told


def test_each_command_is_here():
    names = {command.callback.__name__ for command in app.registered_commands}
    assert names == {*LINES, "info"}


@pytest.mark.parametrize("name", READING_FILES)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no file"),
        (b"", "safetensors file"),
        (bytes(range(256)) * 8, "safetensors file"),
        ("truncated", ""),
        ("foreign", ""),
    ],
    ids=["missing", "empty", "binary", "truncated", "foreign"],
)
def test_a_file_that_is_none_of_ours(tmp_path, made, name, content, words):
    file = tmp_path / "x.safetensors"
    if content == "truncated":
        file.write_bytes(made["BASIS"].read_bytes()[:-100])
    elif content == "foreign":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(2)}, file)
    elif content is not None:
        file.write_bytes(content)
    arguments = [file if part == "FILE" else part for part in READING_FILES[name]]
    out = [] if name == "info" else ["--out", tmp_path / "out"]
    told = refused([*arguments, *out], "")
    # Before 0.6 safetensors wrote HeaderTooSmall.
    assert "".join(words.lower().split()) in "".join(told.lower().split())
    assert {path.name for path in tmp_path.iterdir()} <= {"x.safetensors"}


@pytest.mark.parametrize("name", [*READING_FILES, "report", "--dataset"])
def test_a_picture(tmp_path, name):
    """Which lies beside what is meant, in every run folder."""
    picture = tmp_path / "picture.png"
    Figure(figsize=(1, 1)).savefig(picture)
    line = {"report": ["report", "FILE"], "--dataset": ["collect", "--dataset", "FILE"]}
    line = [picture if part == "FILE" else part for part in (READING_FILES | line)[name]]
    out = [] if name == "info" else ["--out", tmp_path / "out"]
    told = refused([*line, *out], "picture.png")
    assert any(
        words in told for words in ("safetensors file", "is a file: pass a folder", "ends in .png")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("name", [*READING_FILES, "--dataset"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    """Opening one that nobody writes to takes for ever."""
    os.mkfifo(tmp_path / "pipe.txt")
    line = READING_FILES.get(name, ["collect", "--dataset", "FILE"])
    line = [tmp_path / "pipe.txt" if part == "FILE" else part for part in line]
    refused([*line, *([] if name == "info" else ["--out", tmp_path / "out"])], "pipe.txt")
    with pytest.raises(ValueError, match="is no ordinary file"):
        wpca.Basis.load(tmp_path / "pipe.txt")


@pytest.mark.parametrize("name", READING_TEXT)
@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "There is no file"), (b"", "is empty: pass text"), (bytes(256), "is a binary file")],
    ids=["missing", "empty", "binary"],
)
def test_text_that_is_none(tmp_path, line, name, content, words):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    refused([*line(name), "--dataset", text, "--out", tmp_path / "out"], words)
    assert {path.name for path in tmp_path.iterdir()} <= {"text.txt"}


@pytest.mark.parametrize("name", LOADING_MODELS)
def test_an_unknown_model_with_no_network(tmp_path, line, name):
    (tmp_path / "text.txt").write_text("Once upon a time")
    text = [] if name == "svd" else ["--dataset", tmp_path / "text.txt"]
    refused(
        [*line(name), *text, "--model", "gpt2-smal", "--out", tmp_path / "out"],
        "Check the name (near it: gpt2-small",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["collect", "--hook", "blocks.*.hook_resid_pst"], "the nearest are blocks."),
        (["collect", "--hook", "zzz*"], "No hook point of the model matches 'zzz*'"),
        (["collect", "--hook", "blocks.9.hook_resid_post"], "The model has no hook point"),
        (["interaction", "--hook", "blocks.*.hook_resid_pst"], "the nearest are blocks."),
        (["interaction", "--hook", POINT], "Only 'blocks.2.hook_resid_post' was given"),
        (["dictionary", "--hook", "blocks.9.hook_resid_post"], "The model has no hook point"),
        (["demo", "--hook", "blocks.9.hook_resid_post"], "The model has no hook point"),
        (["dictionary", "--hook", "blocks.*.hook_resid_post"], "matches 4 hook points, and one is"),
        (["demo", "--hook", "blocks.*.hook_resid_post"], "matches 4 hook points, and one is"),
        (["basis", "MOMENTS", "--hook", "blocks.3.*"], "has no hook point that matches"),
        (["svd", "--head", "4.0"], "There is no head 4.0: the model has layers 0..3"),
        (["svd", "--head", "one"], "--head is 'one'; expected LAYER.HEAD"),
        (["ansatz", "--layer", "9"], "9"),
    ],
)
def test_a_place_that_is_not_in_the_model(tmp_path, made, arguments, words):
    arguments = [made.get(part, part) for part in arguments]
    refused([*arguments, "--out", tmp_path / "out"], words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", LINES)
def test_an_output_folder_that_exists(tmp_path, line, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    arguments = [*line(name), "--out", tmp_path / "out"]
    refused(arguments, "exists already: choose another --out, or add --overwrite")
    refused([*arguments, "--overwrite"], "was not made by this program")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", LINES)
def test_no_space_left(tmp_path, line, name):
    """Files may not grow beyond four kilobytes: the manifest has room, and what is found has not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        result = run(*line(name), "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert result.exit_code == 1, result.output
    (sentence,) = (part for part in result.stderr.splitlines() if part.startswith("Error:"))
    assert "File too large" in sentence
    assert "Traceback" not in result.output and "Written to" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        refused([*LINES["collect"], "--out", disk / "out"], "No space left on device")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["collect", "--device", "abacus"], 1, "There is no device 'abacus'"),
        (["collect", "--dtype", "float8"], 2, "float8"),
        (["collect", "--positions", "first"], 1, "--positions is 'first'; expected a Python slice"),
        (["collect", "--objective", "none", "--objective", "loss"], 1, "name no other beside it"),
        (["collect", "--context-length", "1"], 2, "--context-length"),
        (["collect", "--dataset", "TEXT", "--context-length", "512"], 1, "at most 128 tokens"),
        (["collect", "--model", "gpt2"], 1, "pass a text file or a data set with --dataset"),
        (["collect", "--split", "test"], 1, "unknown split 'test'"),
        (["basis", "MOMENTS", "--method", "ica"], 2, "ica"),
        (["ablate", "BASIS", "--ranks", "80"], 1, "ranks [80] are outside 0..64"),
        (["ablate", "BASIS", "BASIS"], 1, "Two bases at blocks.2.hook_resid_post are called 'pca'"),
        (["dictionary", "--n-tokens", "10"], 1, "--n-tokens is 10, less than one batch"),
        (["cards", "BASIS", "-n", "0"], 2, "-n"),
        (["cards", "FOLDER"], 1, "is a folder: pass one of the files in it"),
        (["dictionary", "--start", "FOLDER"], 1, "is a folder: pass one of the files in it"),
        (["collect", "--positions", "::0"], 1, "--positions is '::0'; expected a Python slice"),
        (["collect", "--device", "meta"], 1, "there are no weights: it goes with collect --plan"),
        (["collect", "--device", "hpu"], 1, "torch cannot use hpu here; use 'cpu'"),
        (["collect", "--device", "vulkan"], 1, "torch cannot use vulkan here; use 'cpu'"),
        (["collect", "--resume", "--checkpoint-every", "0"], 1, "--resume needs checkpoints"),
        (["collect", "--dataset", "TEXT", "--split", "dev"], 1, "--split is for a folder of sev"),
        (["collect", "--dataset", "TEXT", "--dataset-config", "en"], 1, "is for a data set on the"),
        (
            ["collect", "--text-column", "body"],
            1,
            "--text-column is for text of yours, not for the",
        ),
        (
            ["collect", "--sample-by", "line"],
            1,
            "--sample-by is for a .txt file, not for the stories",
        ),
        (
            ["collect", "--context-length", "64"],
            1,
            "--context-length is for text of yours, not for",
        ),
        (["collect", "--dataset-config", "en"], 1, "is for a data set on the hub, not for the"),
        (["dictionary", "--text-column", "body"], 1, "--text-column is for text of yours"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, made, arguments, code, words):
    (tmp_path / "text.txt").write_text("Once upon a time")
    files = {**made, "TEXT": tmp_path / "text.txt", "FOLDER": made["BASIS"].parent}
    arguments = [files.get(part, part) for part in arguments]
    refused([*arguments, "--out", tmp_path / "out"], words, code=code)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_an_out_folder_must_be_named():
    result = run("collect")
    assert result.exit_code == 2 and "--out" in plain(result.output)


@pytest.mark.parametrize("where", ["before", "after"])
def test_debug_shows_the_traceback(tmp_path, where):
    arguments = ["ablate", tmp_path / "nothing", "--out", tmp_path / "out"]
    line = ["--debug", *arguments] if where == "before" else [*arguments, "--debug"]
    result = run(*line)
    assert isinstance(result.exception, ValueError)
    assert result.exception.__traceback__ is not None


@pytest.mark.parametrize("option", [["--split", "train"], ["--sample-by", "line"]])
@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
def test_options_that_a_text_has_no_use_for(tmp_path, form, option):
    rows, source = (
        datasets.Dataset.from_dict({"text": ["Once upon a time"]}),
        tmp_path / f"x.{form}",
    )
    {"jsonl": rows.to_json, "parquet": rows.to_parquet, "folder": rows.save_to_disk}[form](source)
    line = ["collect", "--dataset", source, *option, "--out", tmp_path / "out"]
    refused(line, f"{option[0]} is for ")


def test_rows_of_tokens_longer_than_the_context(tmp_path):
    rows = datasets.Dataset.from_dict({"input_ids": [[5] * 20, [6] * 200]})
    rows.save_to_disk(tmp_path / "rows")
    line = ["collect", "--dataset", tmp_path / "rows", "--out", tmp_path / "out", *FEW]
    refused(line, "sequences of 200 tokens, but the model takes at most 128")


def test_more_words_than_there_are(tmp_path):
    works("svd", "--head", "0.0", "--directions", "1", "--words", "5000", "--out", tmp_path / "out")


def test_a_heldout_text_that_is_none_is_known_before_the_training(tmp_path, monkeypatch):
    def train(*args, **options):
        pytest.fail("the training has begun")

    monkeypatch.setattr(wpca.dictionary, "train_dictionary", train)
    (tmp_path / "x.jsonl").write_text('{"body": "Once"}\n')
    line = ["dictionary", "--heldout", tmp_path / "x.jsonl", *FEW, "--out", tmp_path / "out"]
    refused(line, "has no column 'text'")


@pytest.mark.parametrize("heldout", [[], ["--heldout", "b.txt"]])
def test_a_text_is_hashed_once(tmp_path, monkeypatch, heldout):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("Once upon a time")
    hashed = []
    monkeypatch.setattr(
        "tl_weighted_pca.runs.run_folder.sha256", lambda file: hashed.append(str(file))
    )
    line = ["dictionary", "--dataset", "a.txt", *heldout, "--model", "gpt2-smal", "--out", "out"]
    refused(line, "Check the name")
    assert hashed == ["a.txt", *heldout[1:]]


@pytest.mark.parametrize("command", ["info", "basis"])
def test_moments_of_nothing(tmp_path, command):
    file = tmp_path / "moments.safetensors"
    wpca.Collection({}).save(file)
    out = [] if command == "info" else ["--out", tmp_path / "out"]
    refused([command, file, *out], "holds no hook point")


def test_moments_of_different_hook_points_are_no_one_run(tmp_path):
    moments = wpca.MomentAccumulator().update(*torch.randn(2, 2, 3, 4)).result()
    (tmp_path / "run").mkdir()
    for name in ("one", "two"):
        wpca.Collection({name: moments}).save(tmp_path / "run" / f"moments.{name}.safetensors")
    line = ["basis", tmp_path / "run", "--method", "pca", "--out", tmp_path / "out"]
    refused(line, "are of different hook points")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("manifest.json", {"format": FORMAT}, "is damaged: it does not tell the run's command"),
        ("other.json", {"a": 1}, "other.json is no readable safetensors file"),
    ],
)
def test_what_is_no_manifest(tmp_path, name, content, words):
    (tmp_path / name).write_text(json.dumps(content))
    refused(["info", tmp_path / name], words)


def test_a_damaged_embedded_model_is_one_sentence(tmp_path, monkeypatch):
    def damaged(*args, **options):
        raise OSError("no file named model.safetensors\nfound")

    monkeypatch.setattr("tl_weighted_pca.models.pretrained.load_model", damaged)
    refused(["svd", "--out", tmp_path / "out"], "came with this package: install that again")


def test_what_data_cannot_give_is_said(tmp_path, capfd):
    some = DataOptions(split="heldout", max_tokens=10**6).load(None, "train")
    assert len(some) == 1000
    assert "There are 1,000 heldout stories" in plain(capfd.readouterr().err)
    DataOptions(max_tokens=10**4).load(None, "train")
    assert not capfd.readouterr().err
    line = [*LINES["dictionary"], "--split", "heldout", "--out", tmp_path / "out"]
    assert "The scores are of text that it was trained on" in plain(run(*line).stderr)


# -- a run that is resumed ------------------------------------------------------------------------


@pytest.fixture
def cut_short(tmp_path, monkeypatch):
    """What a run leaves that was cut short after its checkpoint, and the command line that made it."""
    line = [*LINES["collect"], "--checkpoint-every", "1", "--out", tmp_path / "out"]

    def full(*args):
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(wpca.Collection, "save", full)
        told = run(*line).stderr
    assert "add --resume to go on" in told
    return line


def test_a_refused_resume_leaves_all_as_it_was(tmp_path, cut_short):
    before = {f.name: f.read_bytes() for f in (tmp_path / "out.partial").iterdir()}
    refused([*cut_short, "--resume", "--seed", "1", "--batch-size", "5"], "but this run has")
    assert "add --resume" not in run(*cut_short, "--resume", "--batch-size", "5").stderr
    assert {f.name: f.read_bytes() for f in (tmp_path / "out.partial").iterdir()} == before


def test_a_finished_run_needs_no_resuming(tmp_path, cut_short):
    works(*cut_short, "--resume")
    manifest = tmp_path / "out" / "manifest.json"
    before = manifest.stat()
    assert "is finished already." in works(*cut_short, "--resume")
    refused([*cut_short, "--resume", "--batch-size", "5"], "exists already: choose another --out")
    after = manifest.stat()  # but for the time of the last reading
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (tmp_path / "out" / "moments.safetensors").unlink()
    refused([*cut_short, "--resume"], "exists already: choose another --out")


def test_a_dictionary_goes_on_without_collecting_its_units_anew(tmp_path, monkeypatch):
    line = ["dictionary", "--features", "8", "--n-tokens", "20000", *FEW, "--out", tmp_path / "out"]

    def full(*args):
        raise OSError(28, "full")

    def again(*args):  # their last bits are those of a number of threads, and of a machine
        raise AssertionError("collected anew")

    with monkeypatch.context() as patch:
        patch.setattr("tl_weighted_pca.dictionary.SparseAutoencoder.save", full)
        assert "add --resume to go on" in run(*line).stderr
    refused([*line, "--resume", "--positions", "1:"], "but this run has")
    monkeypatch.setattr("tl_weighted_pca.moments.accumulator.MomentAccumulator.commit", again)
    works(*line, "--resume")
    assert not list((tmp_path / "out").glob("[cp]*.safetensors"))


def test_a_finished_run_of_other_text_is_no_finished_run(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there lived a boy named Noah.")
    line = [*LINES["collect"], "--dataset", text, "--resume", "--out", tmp_path / "out"]
    works(*line)
    text.write_text("Once upon a time there lived a girl named Emma.")
    refused(line, "exists already: choose another --out")


@pytest.mark.parametrize("line", [
    ["basis", "WRONG"], ["ablate", "RIGHT", "WRONG"], ["cards", "WRONG"],
    ["cards", "RIGHT", "--compare", "WRONG"], ["dictionary", "--start", "WRONG"],
])  # fmt: skip
def test_what_is_no_input_is_not_hashed(tmp_path, monkeypatch, line):
    """It may be huge, and a wrong path is to be told at once."""
    right, wrong = tmp_path / "right.safetensors", tmp_path / "wrong.safetensors"
    wpca.pca(wpca.MomentAccumulator().update(*torch.randn(2, 2, 3, 4)).result()).save(right)
    with wrong.open("wb") as file:
        file.truncate(2**40)  # sparse
    hashed = []
    monkeypatch.setattr(
        "tl_weighted_pca.runs.run_folder.sha256", lambda file: hashed.append(str(file))
    )
    files = {"RIGHT": right, "WRONG": wrong}
    refused(
        [*(files.get(word, word) for word in line), "--out", tmp_path / "out"], "wrong.safetensors"
    )
    assert str(wrong) not in hashed
