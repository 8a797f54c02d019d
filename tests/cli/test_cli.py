"""The command line as a user meets it: the demo, help, errors and what may not be left behind."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
from command_line import FEW, plain, run
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

import tl_weighted_pca as wpca
from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.cli import app
from tl_weighted_pca.cli.console import show
from tl_weighted_pca.cli.errors import OneSentenceGroup
from tl_weighted_pca.cli.in_options import in_options
from tl_weighted_pca.cli.tables import ablation_table, table
from tl_weighted_pca.runs.manifest import read_manifest

SMALL = ["--stories", "40", "--heldout", "20", "--steps", "4", "--no-progress"]


def test_the_demo_prints_a_table_and_writes_what_it_says(tmp_path):
    result = run("demo", "--all", "--out", tmp_path / "out", *SMALL)
    assert result.exit_code == 0, result.output
    assert "Fisher-" in result.output
    assert "Keeping 24 of 64 directions at blocks.2.hook_resid_post" in plain(result.output)
    table = pd.read_csv(tmp_path / "out" / "ablation.csv")
    assert set(table["rank"]) == {0, 8, 16, 24, 32, 40, 48, 56, 64}
    assert len(set(table["basis"])) == 9 and {"joint PCA", "trained basis"} < set(table["basis"])
    full = table[table["rank"] == 64]["excess"]
    assert full.abs().max() < 1e-5
    assert (tmp_path / "out" / "ablation.png").read_bytes()[:4] == b"\x89PNG"
    basis = wpca.Basis.load(tmp_path / "out" / "weighted_pca_uncentred.safetensors")
    assert basis.method == "weighted_pca"
    assert basis.center.abs().max() == 0
    assert wpca.Basis.load(tmp_path / "out" / "joint_pca.safetensors").method == "joint_pca"


@pytest.mark.slow
def test_the_demo_of_stories_with_slips(tmp_path):
    options = ["--ranks", "24,64", *SMALL]
    losses = {}
    for slips in ([], ["--slips"]):
        out = tmp_path / ("slips" if slips else "plain")
        result = run("demo", *slips, "--out", out, *options)
        assert result.exit_code == 0, result.output
        assert (out / "trained_basis.safetensors").exists() and not (
            out / "joint_pca.safetensors"
        ).exists()
        losses[out.name] = pd.read_csv(out / "ablation.csv").set_index(["basis", "rank"])["score"]
        assert read_manifest(out)["model"]["name"] == ("gpt2-slips" if slips else "gpt2-stories")
    # Of its own stories, which have twice the entropy.
    assert 1.1 < losses["slips"]["PCA", 64] < 1.4
    assert 0.5 < losses["plain"]["PCA", 64] < 0.7


@pytest.mark.slow
def test_same_seed_same_numbers(tmp_path):
    for folder in ("one", "two"):
        run("demo", "--out", tmp_path / folder, "--seed", "3", "--ranks", "8,32", *SMALL)
    one, two = (pd.read_csv(tmp_path / folder / "ablation.csv") for folder in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--hook", "blocks.2.hook_resid_pst"], 1, "Error: The model has no hook point"),
        (["--ranks", "8,80"], 1, r"Error: ranks \[80\] are outside 0\.\.64"),
        (["--ranks", "eight"], 1, "Error: --ranks is 'eight'; expected whole numbers with commas"),
        (["--hook", "blocks.2.attn.hook_pattern"], 1, "Error: .* carries an attention pattern"),
        (["--model-class", "GPT"], 2, "'GPT' is not one of"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, arguments, code, message):
    result = run("demo", "--out", tmp_path / "out", *SMALL, *arguments)
    assert result.exit_code == code
    assert re.search(message, plain(result.output))
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def failing(error):
    """A program of one command that fails with an error."""
    program = typer.Typer(cls=OneSentenceGroup)
    program.callback()(lambda: None)

    @program.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(program, ["fail"])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        # A shape such as [batch, pos] is a style tag to rich, which would swallow it.
        (ValueError("expected [batch, pos] or [/bold]"), "expected [batch, pos] or [/bold]"),
        (ValueError("on two\n  lines"), "on two lines"),
        (OSError(28, "No space left on device", "/x/y"), "No space left on device: /x/y"),
        (FileNotFoundError("the folder"), "the folder"),
        (ValueError(), "ValueError"),
        (ImportError("install it"), "install it"),
        (MemoryError(), "There is not enough memory for this: try a smaller --batch-size."),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory"),
            "There is not enough memory for this: try a smaller --batch-size.",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "There is not enough memory for this: try a smaller --batch-size.",
        ),
    ],
)
def test_an_error_is_told_on_one_line_as_it_is(error, told):
    result = failing(error)
    assert (result.exit_code, result.stderr, result.stdout) == (1, f"Error: {told}\n", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pass outliers=20 to leave such positions out, or choose positions=.",
         "pass --outliers 20 to leave such positions out, or choose --positions."),
        ("positions=slice(9, None, None) selects no token", "--positions 9: selects no token"),
        ("positions=slice(None, -1, 2) selects no token", "--positions :-1:2 selects no token"),
        ("raise batch_size, or leave sums_dtype at 'float64'.",
         "raise --batch-size, or leave --sums-dtype at 'float64'."),
        ("for sums_dtype='float32' or sums_device='cpu'.",
         "for --sums-dtype float32 or --sums-device cpu."),
        ("recompute=True works block by block", "--recompute works block by block"),
        ("outliers is 0.5; expected a number above 1, such as 10.0",
         "--outliers is 0.5; expected a number above 1, such as 10.0"),
        # Of functions, of the library alone, and no argument at all.
        ("ask with ablation_curves(…, positions=slice(1, None))",) * 2,
        ("set the recipe's batch_size, or statistics='activation'",) * 2,
        ("There is no file /a/max_tokens/positions=1.txt, and none batch_size.txt",) * 2,
        ("these positions and that model is another",) * 2,
    ],
)  # fmt: skip
def test_arguments_are_told_as_options(text, told):
    assert in_options(text, get_command(app).commands["collect"].params) == told


def test_memory_that_is_short_says_what_the_library_advises(tmp_path, monkeypatch):
    monkeypatch.setattr("tl_weighted_pca.moments.memory.free_memory", lambda device: 10)
    told = run("collect", *FEW, "--out", tmp_path / "run").stderr
    assert "ask for fewer hook points" in told and "or for --sums-dtype float32" in told


@pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("other")])
def test_a_fault_of_the_program_itself_is_no_users_error(error):
    assert failing(error).exception is error


def test_ctrl_c_is_quiet():
    result = failing(KeyboardInterrupt())
    assert (result.exit_code, result.output) == (130, "")


def test_ctrl_c_while_a_module_is_loaded_is_quiet():
    class Interrupting:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt

    with pytest.raises(
        (KeyboardInterrupt, RuntimeError)
    ) as caught:  # the latter before Python 3.12
        type("Loading", (), {"entry": Interrupting()})
    result = failing(caught.value)
    assert (result.exit_code, result.output) == (130, "")


COMMANDS = [command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_in_help_are_commands_that_parse(name):
    command = get_command(app).commands[name]
    _, examples = command.help.split("Example", 1)
    lines = examples.replace("\\\n", " ").splitlines()[1:]
    assert lines
    for line in lines:
        before, _, arguments = line.partition(f" {name} ")
        assert before.split()[0] in ("tl-weighted-pca", "torchrun")
        command.make_context(name, shlex.split(arguments))
    assert "Example" in run(name, "--help").output


def test_the_commands_on_the_page_parse():
    page = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text().replace("\\\n", " ")
    program = r"^(?:\$ )?(?:tl-weighted-pca|torchrun .*-m tl_weighted_pca) ([a-z]+) (.*)$"
    lines = re.findall(program, page, re.M)
    assert {name for name, _ in lines} == {*COMMANDS} - {"demo"}
    for name, arguments in lines:
        get_command(app).commands[name].make_context(
            name, shlex.split(re.split(r"2>|\|", arguments)[0])
        )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal_of_80_columns(name):
    """rich keeps line ends where it is asked to: a command that it had to break could not be pasted."""
    lines = get_command(app).commands[name].help.splitlines()
    assert max(map(len, lines)) <= 78


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name):
    for parameter in get_command(app).commands[name].params:
        assert parameter.help, parameter.name


def completed(words):
    """What bash offers for the last of the words."""
    line = f"tl-weighted-pca {words}"
    environment = {
        **os.environ, "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1),
        "_TL_WEIGHTED_PCA_COMPLETE": "complete_bash",
    }  # fmt: skip
    program = "from tl_weighted_pca.cli import app; app(prog_name='tl-weighted-pca')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


def test_the_shell_completes_commands_and_methods():
    assert completed("ba") == ["basis"]
    assert completed("basis run --method w") == ["weighted"]
    assert completed("collect --model-class H") == ["HookedTransformer"]
    assert "--overwrite" in completed("ablate bases --o")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown(shell):
    # Typer looks for the shell among the parent processes, where a test may have none, unless told not to.
    told = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tl_weighted_pca", "--show-completion", shell],
        capture_output=True, text=True, check=False, env=told,
    )  # fmt: skip
    signs = {"bash": "complete -o default", "zsh": "#compdef", "fish": "complete --command"}
    assert signs[shell] in done.stdout, done.stderr


def test_help_completion_and_version_do_not_wait_for_torch():
    code = (
        "import sys; from tl_weighted_pca.cli import app\n"
        "for line in (['--help'], ['collect', '--help'], ['--version']):\n"
        "    app(line, standalone_mode=False)\n"
        "assert not {'torch', 'transformer_lens', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_eight_bases_fit_into_eighty_columns_with_their_names_whole():
    names = [
        "PCA", "PCA, uncentred", "weighted PCA", "weighted PCA, uncentred", "Fisher-metric PCA",
        "path-metric PCA", "joint PCA", "random",
    ]  # fmt: skip
    scores = {name: torch.linspace(10, 1, 3).double()[:, None].expand(3, 4) for name in names}
    curves = AblationCurves(
        [0, 8, 64], 64, scores, torch.ones(4).double() / 2, torch.ones(4).double()
    )
    console = Console(width=80, file=io.StringIO())
    console.print(ablation_table(curves, to="PCA"))
    printed = console.file.getvalue()
    assert not set(" ".join(names).replace("-", "- ").split()) - set(printed.split())
    assert max(map(len, printed.splitlines())) <= 80 and "10.000" in printed


def test_counts_are_shown_whole_beside_other_numbers():
    shown = io.StringIO()
    Console(file=shown).print(table(pd.DataFrame({"x": [20_000.0, 0.123456, 1e300, float("nan")]})))
    numbers = shown.getvalue().replace("│", "").partition("└")[0].split()
    assert numbers[-4:] == ["20000", "0.1235", "1e+300", "n/a"]
    assert "n/a: not defined" in plain(shown.getvalue())


# -- a terminal that does not take all ------------------------------------------------------------


@pytest.fixture
def stdout(monkeypatch):
    """A file descriptor as stdout, for `show` to print to."""

    def set_to(descriptor, encoding="utf-8"):
        stream = os.fdopen(descriptor, "w", encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return set_to


def test_a_closed_pipe_ends_nothing(stdout, capfd):
    reads, writes = os.pipe()
    os.close(reads)
    stream = stdout(writes)
    show("one", "two")
    show("three")
    stream.close()
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
def test_a_full_disk_is_told_and_ends_nothing(stdout, capfd):
    stream = stdout(os.open("/dev/full", os.O_WRONLY))
    show("one")
    stream.close()
    assert capfd.readouterr().err == "Note: Not all could be printed: No space left on device.\n"


def test_a_letter_that_the_encoding_lacks_ends_nothing(stdout, tmp_path):
    file = tmp_path / "shown"
    stream = stdout(os.open(file, os.O_WRONLY | os.O_CREAT), "cp1252")
    show("W Wᵀ é ␣away", table(pd.DataFrame({"λ": ["−"]})))
    stream.close()
    shown = file.read_text("cp1252")
    assert shown.startswith("W W? é ?away\n") and "|" in shown


@pytest.mark.slow
def test_results_are_whole_though_nobody_reads_them(tmp_path):
    line = [sys.executable, "-m", "tl_weighted_pca", "svd", "--out", str(tmp_path / "svd")]
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(line, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, "")
    assert {file.name for file in (tmp_path / "svd").iterdir()} == {
        "manifest.json", "singular_values.csv", "singular_values.png",
    }  # fmt: skip


# -- pictures and ratios -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://nowhere.backend", "nonsense", "tkagg"])
def test_the_environments_backend_is_not_drawn_with(tmp_path, backend):
    line = [sys.executable, "-m", "tl_weighted_pca", "svd", "--out", str(tmp_path / "svd")]
    done = subprocess.run(
        line, env=os.environ | {"MPLBACKEND": backend}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "svd" / "singular_values.png").read_bytes()[:4] == b"\x89PNG"


LINES_THAT_DRAW = {
    "demo": ["demo", *SMALL, "--ranks", "8"],
    "svd": ["svd"],
    "ansatz": ["ansatz", "--layer", "1", *FEW],
    "interaction": ["interaction", "--hook", "blocks.[12].hook_resid_post", *FEW, "--edge-tokens", "99"],
    "dictionary": ["dictionary", "--features", "8", "--n-tokens", "1024", *FEW],
    "basis": ["basis", "RUN", "--method", "pca"],
    "ablate": ["ablate", "RUN.bases", "--ranks", "8", *FEW],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES_THAT_DRAW)
def test_a_picture_that_fails_costs_no_number(tmp_path, monkeypatch, name):
    def fails(*args, **options):
        raise RuntimeError("no canvas")

    run("collect", "--hook", "blocks.1.hook_resid_post", *FEW, "--out", tmp_path / "RUN")
    run("basis", tmp_path / "RUN", "--method", "pca", "--out", tmp_path / "RUN.bases")
    line = [tmp_path / part if part.startswith("RUN") else part for part in LINES_THAT_DRAW[name]]
    whole = run(*line, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    found = run(*line, "--out", tmp_path / "without")
    assert found.exit_code == 0, found.output
    files = {f: {p.name for p in (tmp_path / f).iterdir()} for f in ("whole", "without")}
    missing = files["whole"] - files["without"]
    assert missing and all(name.endswith(".png") for name in missing)
    for picture in missing:
        assert f"Note: {picture} was not drawn (no canvas): the numbers are there." in plain(
            found.stderr
        )
    for numbers in (tmp_path / "whole").glob("*.csv"):
        assert (tmp_path / "without" / numbers.name).read_text() == numbers.read_text()


def curves_of(**excess):
    """Curves with an unablated loss of 1 and these excesses at ranks 8, 16 and 32 of 64."""
    noise = torch.linspace(-1e-3, 1e-3, 5).double()
    scores = {name: (1 + torch.tensor(e).double())[:, None] + noise for name, e in excess.items()}
    ones = torch.ones(5).double()
    return AblationCurves([8, 16, 32], 64, scores, ones.clone(), ones)


def test_a_ratio_of_nothing_is_not_a_number_and_says_why_once(recwarn):
    curves = curves_of(pca=[-0.1, -0.2, -0.3], random=[0.5, 0.4, 0.3], fisher=[-0.1, 0.1, 0.2])
    console = Console(width=80, file=io.StringIO())
    console.print(ablation_table(curves, to="pca"))
    shown = console.file.getvalue()
    assert shown.count("n/a") == 4 and shown.count("has no ratio") == 1
    assert "±" not in shown.split("ratio")[1].split("area:")[0]
    assert not recwarn.list
    with pytest.warns(UserWarning, match="of pca is not positive at any of the ranks"):
        assert curves.relative_excess("random", to="pca") != curves.relative_excess(
            "random", to="pca"
        )
    console.print(ablation_table(curves, to="random"))
    told = console.file.getvalue().removeprefix(shown)
    assert told.count("n/a") == 2 and "1.00" in told  # PCA, and the reason; fisher has two ranks
