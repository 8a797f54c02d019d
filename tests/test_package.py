"""The package as a whole: what importing it costs, and what it promises."""

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


def test_every_public_name_is_there():
    for name in wpca.__all__:
        assert getattr(wpca, name).__doc__ or name == "Run"
    assert wpca.embedded.FACTS
    assert callable(wpca.plots.plot_ablation_curves)
