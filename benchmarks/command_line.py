"""Run the commands on docs/command_line.md, in order, and write what they print into it.

    python benchmarks/command_line.py [--check]

A block ```console holds commands, each after `$ ` and continued after a backslash, and what they print on
stdout (or, if they fail, on stderr). All run in one temporary folder, at 80 columns, with no network.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.page import made_on

PAGE = Path(__file__).parent.parent / "docs" / "command_line.md"
ENVIRONMENT = {"COLUMNS": "80", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "NO_COLOR": "1"}


def answered(page: str, folder: str) -> str:
    """The page with the answers of its commands."""

    def block(found: re.Match[str]) -> str:
        lines = ["```console"]
        for command in re.findall(r"^\$ ((?:.*\\\n)*.*)$", found[1], re.M):
            print("$", command, flush=True)
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                command, shell=True, cwd=folder, capture_output=True, text=True, check=False,
                env={**os.environ, **ENVIRONMENT, "PATH": path},
            )  # fmt: skip
            said = done.stderr if done.returncode else done.stdout
            lines += [f"$ {command}", *(line.rstrip() for line in said.strip("\n").splitlines())]
        return "\n".join([*lines, "```"])

    return re.sub(r"```console\n(.*?)```", block, page, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="Write nothing; fail if it would.")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        after = answered(before, folder)
    if check:
        sys.exit(before != after)
    PAGE.write_text(re.sub(r"^\*Made .*$", made_on(), after, flags=re.M), encoding="utf-8")


if __name__ == "__main__":
    main()
