"""The picture of docs/feature_cards.md: one card of the embedded model, as Chromium shows it.

pip install playwright                          # and a Chromium: apt-get install chromium
python benchmarks/feature_cards.py              # writes docs/images/feature_cards.png, under a minute
python benchmarks/feature_cards.py --page cards.html --component 3 --picture card.png
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import tl_weighted_pca as wpca

HOOK_POINT = "blocks.2.hook_resid_post"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def cards(n: int) -> wpca.FeatureCards:
    model = wpca.embedded.load_model()
    train, heldout = wpca.embedded.stories("train", 300), wpca.embedded.stories("heldout", 300)
    stats = wpca.collect(model, train, HOOK_POINT, batch_size=32, progress=False)
    return wpca.cards(
        model, heldout, wpca.pca(stats[HOOK_POINT]), n, facts=wpca.embedded.FACTS, contexts=4,
        positions=slice(1, None), batch_size=32, progress=False,
    )  # fmt: skip


def photograph(page: Path, component: int, picture: Path) -> None:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise SystemExit(f"No browser: install one of {', '.join(BROWSERS)}.")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1000, "height": 900}, device_scale_factor=1.25)
        view.goto(f"{page.resolve().as_uri()}#c{component}")  # which opens it
        view.wait_for_selector(f"#c{component} > details[open]")
        view.locator("article").nth(component).screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--page", type=Path, help="keep the page here")
    parser.add_argument("--component", type=int, default=4)
    parser.add_argument("--picture", type=Path, default="docs/images/feature_cards.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = options.page or Path(folder) / "cards.html"
        cards(options.component + 1).save(page)
        photograph(page, options.component, options.picture)
