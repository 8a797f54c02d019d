"""The package as a whole: what importing it costs, and what it promises."""

import pkgutil
import subprocess
import sys

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


def test_a_function_is_not_hidden_by_the_submodule_that_holds_it():
    """Importing a submodule binds it to its package, whichever of the two was there first."""
    submodules = {module.name for module in pkgutil.iter_modules(wpca.__path__)}
    shared = submodules & set(wpca.__all__)
    assert shared == set(wpca._OVER_SUBMODULES)
    checked = "; ".join(f"assert w.{n}.__name__ == '{n}' and callable(w.{n})" for n in shared)
    loaded = "; ".join(f"from tl_weighted_pca.{name} import {name}" for name in shared)
    imported(f"{loaded}; import tl_weighted_pca as w; {checked}")
    imported(f"import tl_weighted_pca as w; w.pca; {loaded}; {checked}")


def test_every_public_name_is_there():
    for name in wpca.__all__:
        assert getattr(wpca, name).__doc__ or name == "Run"
    assert wpca.embedded.FACTS
    assert callable(wpca.plots.plot_ablation_curves)
    assert set(wpca.__all__) <= set(dir(wpca))
    assert not {"Any", "sys", "importlib"} & set(dir(wpca))
