"""What is handed to others: the wheel, the source distribution, and the files that speak for them."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import tl_weighted_pca as wpca

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The wheel and the source distribution, built from this checkout."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_holds_the_package_and_nothing_else(distributions):
    wheel, _ = distributions
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "tl_weighted_pca",
        f"tl_weighted_pca-{wpca.__version__}.dist-info",
    }
    tracked = subprocess.run(
        ["git", "ls-files", "tl_weighted_pca"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert set(tracked) <= set(names)  # weights, stories, templates and py.typed among them
    for model in ("gpt2-stories", "gpt2-slips"):
        assert any(name.endswith(f"{model}/model.safetensors") for name in names)
    assert wheel.stat().st_size < 6e6


def test_the_source_distribution_can_be_tested_and_documented(distributions):
    _, source = distributions
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in (
        "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "noxfile.py", "mkdocs.yml",
        "tests/conftest.py", "benchmarks/svd.py", "notebooks/svd.ipynb", "docs/one_idea.md",
    ):  # fmt: skip
        assert needed in names
    assert not [name for name in names if name.startswith((".ci", "docs/notebooks/", "site/"))]


def test_pypi_would_take_them(distributions):
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)]
    found = subprocess.run(check, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo(distributions, tmp_path):
    """In an environment of its own, whose dependencies are this one's, away from the checkout.

    The notebooks are run so by `.ci/run`.
    """
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    name = "venv" if "venv" in sysconfig.get_scheme_names() else "posix_prefix"  # Python 3.10
    scheme = sysconfig.get_paths(name, vars={"base": str(home), "platbase": str(home)})
    # A plain path in a .pth file: the .pth files in *that* folder, such as this checkout's, stay unread.
    dependencies = Path(scheme["purelib"]) / "dependencies.pth"
    dependencies.write_text(sysconfig.get_path("purelib") + "\n")
    scripts = Path(scheme["scripts"])
    install = [
        scripts / "python",
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        distributions[0],
    ]
    subprocess.run(install, check=True, capture_output=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"COLUMNS": "200"}

    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(scripts / "python", "-c", "import tl_weighted_pca as w; print(w.__file__)")
    assert Path(where.strip()).is_relative_to(home)
    shown = run(
        scripts / "tl-weighted-pca", "demo", "--stories", "40", "--heldout", "20",
        "--ranks", "8,32", "--no-progress",
    )  # fmt: skip
    assert "the trained basis leaves the lowest loss" in shown
    assert (tmp_path / "demo-out" / "ablation.png").stat().st_size > 10_000


def code_cells(path):
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_opens_in_colab_and_switches_to_gpt2_by_one_variable(path):
    cells = json.loads(path.read_text())["cells"]
    top = "".join(cells[0]["source"])
    badge = re.search(r"\(https://colab\.research\.google\.com/github/([^)]*)\)", top)
    assert badge, "the first cell has the badge"
    assert badge[1].endswith(f"/blob/main/notebooks/{path.name}")
    code = code_cells(path)
    installs = [cell for cell in code if "%pip install" in cell or "!pip install" in cell]
    assert installs == [code[0]], "one cell installs, and it is the first"
    assert badge[1].split("/blob/")[0] in installs[0]
    switch = re.findall(r'^MODEL = "(.*?)"', "\n".join(code), re.M)
    assert switch == ["embedded"], "one variable chooses the model, and it is set once"
    rest = "\n".join(code)
    assert '"gpt2"' in rest or "(MODEL" in rest
    assert "load_dataset(" in rest or ".stories(" not in rest, "a hub dataset, where there are data"
    # Gone in TransformerLens 4.
    assert "transformer_lens.utils" not in rest


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {wpca.__version__}\n" in text
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{wpca.__version__}"\n' in project
