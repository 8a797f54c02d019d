"""What CI runs, in parts: `nox -s lint`, `nox -s "tests(transformer_lens='4.3')"`, …"""

from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests", "notebooks", "docs", "release"]
nox.options.reuse_existing_virtualenvs = True
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}


@nox.session
def lint(session: nox.Session) -> None:
    """The linter, the formatter and the type checker."""
    session.install("-e", ".[test]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
@nox.parametrize("transformer_lens", ["3.0", "3.9", "4.3"])
def tests(session: nox.Session, transformer_lens: str) -> None:
    """The suite on one TransformerLens: the oldest, the last with both model classes, the newest."""
    session.install("-e", ".[check]", f"transformer-lens=={transformer_lens}.*")
    session.run("pytest", "--numprocesses", "2", *session.posargs, env=ENVIRONMENT)


@nox.session(venv_backend="uv", python="3.10")
def lowest(session: nox.Session) -> None:
    """The suite on the lowest versions that pyproject.toml allows, of Python too."""
    # What checks the code may be of today; torch here is a build of 6 GB.
    session.install("--resolution", "lowest-direct", "-e", ".")
    session.install(
        *nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]["check"]
    )
    session.run("pytest", "--numprocesses", "2", *session.posargs, env=ENVIRONMENT)


@nox.session
def notebooks(session: nox.Session) -> None:
    """Every notebook, top to bottom."""
    session.install("-e", ".[test,notebooks]")
    session.run(
        "pytest", "--nbmake", "--nbmake-timeout=300", "--override-ini", "testpaths=notebooks",
        "notebooks", env=ENVIRONMENT,
    )  # fmt: skip


@nox.session
def docs(session: nox.Session) -> None:
    """The site, into site/; any warning is an error."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict")


@nox.session
def release(session: nox.Session) -> None:
    """Wheel and source distribution, into dist/, checked; and whether CITATION.cff is valid."""
    # cffconvert wants a jsonschema that Jupyter is too new for: it is in no extra.
    session.install("build", "twine", "cffconvert")
    session.run("python", "-m", "build", "--outdir", "dist")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    session.run("cffconvert", "--validate")
