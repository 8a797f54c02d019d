"""The documentation as a reader sees it: built without a warning, opened in a browser, no network."""

import functools
import http.server
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tl_weighted_pca as wpca

ROOT = Path(__file__).parent.parent


def test_every_public_name_has_its_place_in_the_reference():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    documented = re.findall(r"^::: [\w.]+\.(\w+)$", pages, re.M)
    assert len(documented) == len(set(documented))
    assert set(wpca.__all__) <= set(documented)


def test_every_page_of_the_readme_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the site, strictly built and served on this machine."""
    for module in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter"):
        pytest.importorskip(module, reason="pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    handler = functools.partial(_Quiet, directory=out)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pages = sorted(page.relative_to(out).as_posix() for page in out.rglob("*.html"))
        yield f"http://127.0.0.1:{server.server_port}/", pages
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 360], ids=["desktop", "phone"])
def test_pages_typeset_their_mathematics_complain_of_nothing_and_fetch_nothing(
    site, browser, width
):
    (home, pages), formulas = site, 0
    with browser.new_page(viewport={"width": width, "height": 800}) as page:
        complaints: list[str] = []
        page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda r: r.url.startswith((home, "data:", "blob:")) or complaints.append(r.url),
        )
        for path in pages:
            if "notebooks/" in path:  # the badge is Colab's
                continue
            page.goto(home + path)
            page.wait_for_function("!!(window.document$ && window.renderMathInElement)")
            marked, typeset, wrong, wide = page.evaluate(
                """[
                    document.querySelectorAll(".arithmatex").length,
                    document.querySelectorAll(".arithmatex .katex").length,
                    document.querySelectorAll(".katex-error").length,
                    document.documentElement.scrollWidth - innerWidth,
                ]"""
            )
            assert (typeset, wrong) == (marked, 0), path
            assert wide <= 0, f"{path} is wider than the screen"
            assert complaints == [], f"{path}: {complaints}"
            formulas += marked
    assert formulas > 100
