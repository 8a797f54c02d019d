"""Pages in a real browser, offline, every complaint kept; skipped where there is no Chromium."""

import os
import shutil
from pathlib import Path

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip

SCREENS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


def too_wide(page):
    """How many pixels must be scrolled sideways, once the page has had time to follow its window."""
    for _ in range(50):
        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if over <= 0:
            break
        page.wait_for_timeout(100)  # ms
    return over


def on_each_screen(page):
    """Show a page at each width and in each scheme."""
    for width, scheme in SCREENS:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        yield width, scheme


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Open a file offline; what the console says and what is asked of the network is in `complaints`."""
    contexts = []

    def open_page(path, width=1200, height=900, **options):
        context = browser.new_context(
            viewport={"width": width, "height": height}, offline=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: page.complaints.append(f"dialog {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:"))
                or page.complaints.append(request.url)
            ),
        )
        page.goto(Path(path).resolve().as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def axe():
    """axe-core's findings of some weight on a page; the path of axe.min.js is in AXE_CORE."""
    source = os.environ.get("AXE_CORE")
    if not source:
        pytest.skip("no axe-core: npm install axe-core, and AXE_CORE=…/axe.min.js")
    script = Path(source).read_text(encoding="utf-8")

    def findings(page):
        page.evaluate(script)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            (each["id"], each["impact"], [node["html"][:120] for node in each["nodes"][:3]])
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]

    return findings
