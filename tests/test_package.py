"""The package as a whole: what importing it costs, and what it promises."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import tl_weighted_pca as wpca


def imported(statement):
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def test_importing_brings_no_plots_no_command_line_and_no_model():
    modules = imported("import tl_weighted_pca")
    for heavy in (
        "matplotlib", "typer", "networkx", "tl_weighted_pca.plots", "tl_weighted_pca.cli",
        "tl_weighted_pca.embedded", "tl_weighted_pca.dictionary", "tl_weighted_pca.toy",
    ):  # fmt: skip
        assert heavy not in modules, heavy


def test_importing_waits_for_neither_torch_nor_transformer_lens():
    for statement in ("import tl_weighted_pca", "from tl_weighted_pca.cli import app"):
        assert not {"torch", "transformer_lens", "datasets"} & set(imported(statement))


def test_no_room_or_module_has_the_name_of_a_public_function():
    """Importing a submodule binds it to its package, in the place of a function of that name."""
    modules = [
        m for m in pkgutil.walk_packages(wpca.__path__, "tl_weighted_pca.") if ".cli." not in m.name
    ]
    assert not {module.name.rpartition(".")[2] for module in modules} & set(wpca.__all__)


def test_the_top_of_the_package_is_rooms():
    files = sorted(path.name for path in Path(wpca.__path__[0]).glob("*.py"))
    assert files == ["__init__.py", "__main__.py", "public.py"]


def test_every_public_name_is_there():
    for name in wpca.__all__:
        assert getattr(wpca, name).__doc__ or name == "Run"
    assert wpca.embedded.FACTS
    assert callable(wpca.plots.plot_ablation_curves)
    assert set(wpca.__all__) <= set(dir(wpca))
    assert not {"Any", "importlib", "TYPE_CHECKING"} & set(dir(wpca))
