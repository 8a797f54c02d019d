"""A folder of results is there whole or not at all, and nothing that is not ours is touched."""

import errno
import json
import os
import resource
import shlex
import signal
from functools import partial
from pathlib import Path

import pytest

from tl_weighted_pca.runs.manifest import FORMAT, read_manifest, sha256
from tl_weighted_pca.runs.run_folder import RunFolder, partial_of


@pytest.fixture
def small_files():
    """Files may not grow beyond four kilobytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def made(path, text="one", **options):
    with RunFolder(path, ["basis", "a b", "--out", str(path)], {"seed": 3}, **options) as run:
        (run / "table.csv").write_text(text)
    return path


def fails(path, error, files=("table.csv",), **options):
    """A run that writes files, and then fails."""
    with RunFolder(path, **options) as run:
        for name in files:
            (run / name).write_text("half")
        raise error


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_folder_appears_when_it_is_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with RunFolder(out) as run:
        (run / "table.csv").write_text("1")
        assert not out.exists()
    assert names(out) == ["manifest.json", "table.csv"]
    assert names(out.parent) == ["out"]


def test_the_manifest_says_how_to_make_it_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "text.txt"
    source.write_text("hello")
    saved = tmp_path / "saved" / "deep"
    saved.mkdir(parents=True)
    (saved / "data").write_text("x")
    settings = {"seed": 3, "out": Path("out"), "hook": ("a", "b"), "split": None}
    with RunFolder("out", ["basis", "a b"], settings) as run:
        run.reads("text.txt")
        run.reads("saved")
        (run / "table.csv").write_text("1")
    manifest = read_manifest("out")
    assert shlex.split(manifest["command"]) == ["tl-weighted-pca", "basis", "a b"]
    assert manifest["folder"] == str(tmp_path)
    assert manifest["settings"] == {"seed": 3, "out": "out", "hook": ["a", "b"], "split": None}
    assert manifest["seed"] == 3
    # echo -n hello | sha256sum
    assert manifest["inputs"] == {
        "text.txt": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "saved/deep/data": sha256(saved / "data"),
    }
    assert manifest["outputs"] == {"table.csv": sha256("out/table.csv")}
    assert manifest["started"] <= manifest["finished"]
    assert {"python", "torch", "transformer-lens", "tl-weighted-pca"} <= set(manifest["versions"])


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    (tmp_path / "out").mkdir()
    assert names(made(tmp_path / "out")) == ["manifest.json", "table.csv"]


def test_a_folder_that_exists_is_refused_and_left_alone(tmp_path):
    out = made(tmp_path / "out")
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="exists already: choose another --out, or add --over"):
        made(out, "two")
    assert (out / "table.csv").read_text() == "one"
    assert (out / "manifest.json").read_bytes() == before
    assert names(tmp_path) == ["out"]


def test_overwriting_replaces_the_whole_folder(tmp_path):
    out = tmp_path / "out"
    with RunFolder(out) as run:
        (run / "more.csv").write_text("old")
    made(out, "two", overwrite=True)
    assert names(out) == ["manifest.json", "table.csv"]
    assert (out / "table.csv").read_text() == "two"
    assert names(tmp_path) == ["out"]


def test_the_old_folder_stays_until_the_new_one_is_whole(tmp_path):
    out = made(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        fails(out, KeyboardInterrupt, overwrite=True)
    assert (out / "table.csv").read_text() == "one"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_never_overwritten(tmp_path, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not made by this program" if overwrite else "exists"):
        made(tmp_path / "out", overwrite=overwrite)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="The file .* exists already: choose another --out"):
        made(tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ("notes.md", "notes.md"),
        ("pages/notes.md", "pages/notes.md"),
        ("pages/manifest.json", "pages/manifest.json"),
        ("checkpoint-best.safetensors", "checkpoint-best.safetensors"),
        ("prepared.safetensors", "prepared.safetensors"),
        ("mine/deep/notes.md", "mine"),
    ],
)
def test_what_was_added_to_a_folder_of_ours_is_not_overwritten(tmp_path, added, told):
    out = tmp_path / "out"

    def write(text):
        with RunFolder(out, overwrite=True) as run:
            (run / "pages").mkdir()
            (run / "pages" / "one.html").write_text(text)

    write("one")
    write("two")
    (out / added).parent.mkdir(parents=True, exist_ok=True)
    (out / added).write_text("mine")
    with pytest.raises(ValueError, match=f"out holds '{told}', not made by this program"):
        write("three")
    assert (out / added).read_text() == "mine"
    assert (out / "pages" / "one.html").read_text() == "two"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("place", ["out", "out.partial"])
def test_anothers_manifest_makes_a_folder_no_run(tmp_path, place):
    """A browser extension, say, whose manifest.json is of another kind."""
    (tmp_path / place).mkdir()
    (tmp_path / place / "manifest.json").write_text('{"name": "extension"}')
    with pytest.raises(ValueError, match="not made by this program"):
        made(tmp_path / "out", overwrite=True)
    assert names(tmp_path / place) == ["manifest.json"]


def test_what_was_added_while_a_run_went_on_is_not_overwritten(tmp_path):
    out = made(tmp_path / "out")
    run = RunFolder(out, overwrite=True)
    run.__enter__()
    (run / "table.csv").write_text("two")
    (out / "notes.md").write_text("mine")
    with pytest.raises(OSError, match="results are whole, but .*'notes.md'.*they are in .*partial"):
        run.__exit__(None, None, None)
    assert (out / "notes.md").read_text() == "mine"
    assert (run / "table.csv").read_text() == "two"


def test_the_current_folder_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the current one, which cannot be replaced: choose"):
        made(".")
    assert not names(tmp_path) and names(tmp_path.parent).count(f"{tmp_path.name}.partial") == 0


def test_an_empty_folder_that_cannot_be_replaced_is_refused_at_once(tmp_path, monkeypatch):
    """Such as a mount point."""

    def busy(path):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "rmdir", busy)
    with pytest.raises(ValueError, match="cannot be replaced .*busy.*: choose another --out"):
        made(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_whole_results_are_kept_where_they_are_if_they_cannot_be_moved(tmp_path, monkeypatch):
    out, partial = tmp_path / "out", tmp_path / "out.partial"

    def fails_to_rename(*paths):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails_to_rename)
        with pytest.raises(OSError, match=r"could not be moved to .*busy.* are in .*out\.partial"):
            made(out)
    assert names(partial) == ["manifest.json", "table.csv"]
    (partial / "checkpoint.safetensors").write_text("half")
    for options in ({}, {"resume": True}):
        with pytest.raises(ValueError, match="holds whole results that were not moved to"):
            made(out, **options)
    assert (partial / "table.csv").read_text() == "one"
    made(out, "two", overwrite=True)
    assert names(tmp_path) == ["out"] and names(out) == ["manifest.json", "table.csv"]


def test_results_go_where_a_link_points(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for overwrite in (False, True):
        made(tmp_path / "link", overwrite=overwrite)
        assert (tmp_path / "link").is_symlink()
        assert names(tmp_path / "disk") == ["manifest.json", "table.csv"]
        assert names(tmp_path) == ["disk", "link"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(28, "full")])
@pytest.mark.parametrize("path", ["out", "some/deep/out"])
def test_what_fails_leaves_nothing(tmp_path, path, error):
    with pytest.raises(type(error)):
        fails(tmp_path / path, error)
    assert not names(tmp_path)


def test_what_fails_leaves_folders_that_it_did_not_make_or_that_are_in_use(tmp_path):
    (tmp_path / "before").mkdir()
    with pytest.raises(ZeroDivisionError):
        fails(tmp_path / "before" / "deep" / "out", ZeroDivisionError)
    assert not names(tmp_path / "before")
    (tmp_path / "before" / "deep").mkdir()
    (tmp_path / "before" / "deep" / "theirs").write_text("mine")
    with pytest.raises(ZeroDivisionError):
        fails(tmp_path / "before" / "deep" / "out", ZeroDivisionError)
    assert names(tmp_path / "before" / "deep") == ["theirs"]


def test_a_folder_made_for_a_run_stays_if_something_else_is_in_it_by_then(tmp_path):
    theirs = tmp_path / "some" / "deep" / "theirs"
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        fails(tmp_path / "some" / "deep" / "out", error, ["table.csv", theirs])
    assert names(theirs.parent) == ["theirs"]


def test_a_full_disk_leaves_nothing(tmp_path, small_files):
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        made(tmp_path / "out", "x" * 50_000)
    assert not names(tmp_path)


def test_a_full_disk_is_told_before_any_work(tmp_path, small_files):
    run = RunFolder(tmp_path / "out", settings={"text": "x" * 50_000})
    with pytest.raises(OSError, match=r"Cannot write .*out\.partial.*too large"), run:
        pytest.fail("the work has begun")
    assert not names(tmp_path)


def test_only_checkpoints_outlive_a_failure_and_only_until_the_end(tmp_path):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    with pytest.raises(ZeroDivisionError):
        fails(out, ZeroDivisionError, ["checkpoint.0.safetensors", "half.csv"])
    assert names(partial) == ["checkpoint.0.safetensors", "manifest.json"]
    assert read_manifest(partial)["finished"] is None
    with pytest.raises(ValueError, match="--resume to go on, or --overwrite to start anew"):
        made(out)
    assert names(partial) == ["checkpoint.0.safetensors", "manifest.json"]
    started = read_manifest(partial)["started"]
    with RunFolder(out, resume=True) as run:
        assert (run / "checkpoint.0.safetensors").read_text() == "half"
        (run / "table.csv").write_text("done")
    assert names(out) == ["manifest.json", "table.csv"]
    assert names(tmp_path) == ["out"]
    assert read_manifest(out)["started"] == started


def test_a_resumed_run_that_is_refused_leaves_the_manifest(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fails(tmp_path / "out", ZeroDivisionError, ["checkpoint.safetensors"])
    manifest = tmp_path / "out.partial" / "manifest.json"
    before = manifest.read_bytes()
    with pytest.raises(ZeroDivisionError):
        fails(tmp_path / "out", ZeroDivisionError, [], settings={"other": 1}, resume=True)
    assert manifest.read_bytes() == before


def test_there_need_be_nothing_to_resume(tmp_path):
    assert names(made(tmp_path / "out", resume=True)) == ["manifest.json", "table.csv"]


def test_overwriting_starts_a_run_anew_that_was_cut_short(tmp_path):
    partial = tmp_path / "out.partial"
    with pytest.raises(ZeroDivisionError):
        fails(tmp_path / "out", ZeroDivisionError, ["checkpoint.safetensors"])
    with RunFolder(tmp_path / "out", overwrite=True) as run:
        assert names(partial) == ["manifest.json"]
        (run / "table.csv").write_text("two")
    assert names(tmp_path) == ["out"]


def test_a_run_that_was_killed_is_in_the_way_until_it_is_overwritten(tmp_path):
    child = os.fork()
    if not child:
        with RunFolder(tmp_path / "out") as run:
            (run / "table.csv").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert names(tmp_path) == ["out.partial"]
    with pytest.raises(ValueError, match="did not finish: add --overwrite"):
        made(tmp_path / "out")
    assert names(made(tmp_path / "out", overwrite=True)) == ["manifest.json", "table.csv"]


def test_a_partial_folder_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("mine")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match="not made by this program"):
            made(tmp_path / "out", **options)
    assert (tmp_path / "out.partial" / "mine").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="Cannot write to .*file"):
        made(tmp_path / "file" / "out")


def test_where_a_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert partial_of("a/b") == partial_of("a/b/") == tmp_path / "a/b.partial"
    assert partial_of(".") == tmp_path.with_name(tmp_path.name + ".partial")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', "\0"])
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="has no manifest"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="is no (readable )?manifest"):
        read_manifest(tmp_path)


def test_a_manifest_that_lost_its_contents_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    with pytest.raises(ValueError, match="is damaged: it does not tell the run's command"):
        read_manifest(tmp_path)


def test_a_manifest_is_json_that_keeps_its_letters(tmp_path):
    with RunFolder(tmp_path / "out", ["collect", "--dataset", "größe.txt"]):
        pass
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert "größe.txt" in text and json.loads(text)


# -- what is read and what is written --------------------------------------------------------------


def places(tmp_path):
    """An input and outputs that are it, hold it or lie in it, by whatever name."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "file").symlink_to(tmp_path / "in" / "deep" / "file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return [
        ("in", "in"),
        ("in", "in/new"),
        ("in", "in/deep"),
        ("in/deep/file", "in/deep/file"),
        ("in/deep/file", "in/deep"),
        ("in/deep", "in"),
        ("link", "in"),
        ("in", "link"),
        ("in", "link/new"),
        ("link/deep/file", "in"),
        ("links/file", "in/deep"),
        ("links", "in"),
        ("links", "in/deep"),
        ("./in/../in", "in"),
    ]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("early", [True, False])
def test_an_output_that_touches_an_input_is_refused(tmp_path, monkeypatch, overwrite, early):
    monkeypatch.chdir(tmp_path)
    for read, written in places(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        options = {"inputs": [read]} if early else {}
        told = pytest.raises(ValueError, match="one holds the other|exists already|not made")
        with told, RunFolder(written, overwrite=overwrite, **options) as run:
            run.reads(read)
        assert sorted(tmp_path.rglob("*")) == before, (read, written)
        assert (tmp_path / "in" / "deep" / "file").read_text() == "mine"


def test_inputs_in_a_folder_of_ours_survive_its_overwriting(tmp_path):
    """The case that lost data: what is read is a run's folder, and the output too."""
    out = made(tmp_path / "out")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "table.csv").symlink_to(out / "table.csv")
    for read in (out, out / "table.csv", tmp_path / "links", tmp_path / "links" / "table.csv"):
        with pytest.raises(
            ValueError, match="are one, or one holds the other: choose another --out"
        ):
            made(out, "two", overwrite=True, inputs=[read])
        assert (out / "table.csv").read_text() == "one"


def test_what_is_left_of_a_run_is_no_input_of_the_next_one_into_it(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fails(tmp_path / "out", ZeroDivisionError, ["checkpoint.safetensors"])
    left = tmp_path / "out.partial"
    for read in (left, left / "checkpoint.safetensors"):
        with pytest.raises(ValueError, match="are one, or one holds the other"):
            made(tmp_path / "out", overwrite=True, inputs=[read])
    assert (left / "checkpoint.safetensors").read_text() == "half"


def test_an_output_beside_an_input_is_fine(tmp_path):
    source = made(tmp_path / "run")
    for name in ("run2", "ru", "run.new"):
        made(tmp_path / name, inputs=[source, source / "table.csv", tmp_path / "nothing"])


# -- two runs, and runs that are killed ------------------------------------------------------------


def child(work):
    """A process that does some work, and how it ended."""
    number = os.fork()
    if not number:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return number


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_run_that_is_going_on_keeps_its_folder(tmp_path, options):
    out, ready, go = tmp_path / "out", os.pipe(), os.pipe()

    def work():
        with RunFolder(out) as run:
            (run / "checkpoint.safetensors").write_text("half")
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            (run / "table.csv").write_text("first")

    number = child(work)
    os.read(ready[0], 1)
    with pytest.raises(ValueError, match="Another run is writing to .*out now: wait for its end"):
        made(out, "second", **options)
    assert names(tmp_path / "out.partial") == ["checkpoint.safetensors", "manifest.json"]
    os.write(go[1], b"x")
    assert os.waitpid(number, 0)[1] == 0
    assert (out / "table.csv").read_text() == "first"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_of_many_runs_at_once_each_is_whole_or_refused(tmp_path, options):
    def work(text):
        with RunFolder(tmp_path / "deep" / "out", **options) as run:
            for i in range(20):
                (run / f"{i}.csv").write_text(text)

    for turn in range(5):
        numbers = [child(partial(work, f"{turn} {i}")) for i in range(6)]
        ends = [os.waitpid(number, 0)[1] for number in numbers]
        assert 0 in ends or (turn and not options)
        out = tmp_path / "deep" / "out"
        assert len({(out / f"{i}.csv").read_text() for i in range(20)}) == 1
        assert read_manifest(out)["outputs"].keys() == {f"{i}.csv" for i in range(20)}
        assert names(out.parent) == ["out"]


@pytest.mark.parametrize("at", range(1, 9))
def test_an_overwriting_that_is_killed_loses_neither_the_old_nor_the_new(tmp_path, at):
    """Killed at each change of the file system in turn, from the first file that is put in place."""
    out = made(tmp_path / "out")

    def work():
        count = 0

        def counted(real):
            def call(*args, **options):
                nonlocal count
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)

            return call

        for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        made(out, "two", overwrite=True)

    os.waitpid(child(work), 0)
    whole = [folder for folder in tmp_path.rglob("*") if (folder / "table.csv").exists()]
    texts = {folder: (folder / "table.csv").read_text() for folder in whole}
    assert "one" in texts.values() or texts.get(out) == "two"
    if not out.exists():  # between the two renames both are beside it
        assert set(texts.values()) == {"one", "two"}
        with pytest.raises(ValueError, match="holds whole results that were not moved"):
            made(out)
        os.rename(tmp_path / "out.partial", out)
    assert names(made(out, "three", overwrite=True)) == ["manifest.json", "table.csv"]
    assert (out / "table.csv").read_text() == "three"
