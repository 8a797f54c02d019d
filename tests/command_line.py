"""What the tests of the command line share: it, called in this process."""

import re

from typer.testing import CliRunner

from tl_weighted_pca.cli import app

POINT = "blocks.2.hook_resid_post"
FEW = ["--max-tokens", "1500", "--no-progress"]
"""Of data: enough to go through every line of code."""
ON_CPU = ["--device", "cpu"]
"""For what is compared with a model there."""


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", " ".join(text.split()))


def works(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return plain(result.output)
