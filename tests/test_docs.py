"""What the pages say, run: every Python block that needs no network and no GPU; and how long they are."""

import os
import re
from pathlib import Path
from unittest.mock import patch

import matplotlib as mpl
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Seconds of training on one thread, where the others take a few.
SLOW = {"dictionaries"}
SYBIL = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])


def runnable(page):
    return re.search(r"^ *```python", page.read_text(), re.M)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
        for page in PAGES
        if runnable(page)
    ],
)
def test_the_code_on_the_page_runs(page, tmp_path, monkeypatch):
    """In the page's order and one namespace; `<!-- skip: next -->` leaves a block out."""
    monkeypatch.chdir(tmp_path)
    # A page may set variables for torch.distributed, and switch things on.
    with patch.dict(os.environ), mpl.rc_context({"backend": "Agg"}):
        for example in SYBIL.parse(page).examples():
            example.evaluate()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 600


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_prose_is_short_and_code_narrow(page):
    """At most 1,500 words beside code, tables and formulas; code and commands at most 80 columns."""
    text = page.read_text()
    fenced = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
    for indent, language, code in fenced.findall(text):
        for line in code.splitlines():
            if language in ("python", "bash", "text") or line.startswith("$ "):
                assert len(line.removeprefix(indent)) <= 80, line
    left = re.sub(r"<!--.*?-->|\$\$.*?\$\$|\$[^$\n]+\$", " ", fenced.sub("", text), flags=re.S)
    lines = [line for line in left.splitlines() if not line.lstrip().startswith("|")]
    assert len(" ".join(lines).split()) <= 1500
