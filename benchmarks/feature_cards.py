"""The picture of docs/feature_cards.md, a card of the embedded model in Chromium; and what cards cost.

pip install playwright                          # and a Chromium: apt-get install chromium
python benchmarks/feature_cards.py              # writes docs/images/feature_cards.png, under a minute
python benchmarks/feature_cards.py --page cards.html --component 3 --picture card.png
python benchmarks/feature_cards.py --cost 100000    # CPU seconds of 64 cards of so many tokens
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch

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


def cost(n_tokens: int) -> None:
    """Print the CPU seconds of one thread for 64 cards without ablations, and for their page."""
    torch.set_num_threads(1)
    model = wpca.embedded.load_model()
    stories = wpca.embedded.stories("train", max(300, n_tokens // 70))
    stats = wpca.collect(model, stories.select(range(300)), HOOK_POINT, progress=False)
    basis, start = wpca.pca(stats[HOOK_POINT]), time.process_time()
    made = wpca.cards(
        model, stories, basis, 64, facts=wpca.embedded.FACTS, score=None, max_tokens=n_tokens,
        positions=slice(1, None), batch_size=32, progress=False,
    )  # fmt: skip
    read = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "cards.html")
        size = (Path(folder) / "cards.html").stat().st_size
    print(
        f"{made.n_tokens} tokens: cards {read - start:.1f} s, page {time.process_time() - read:.1f} s, "
        f"{size / 1e6:.2f} MB"
    )


def photograph(page: Path, component: int, picture: Path) -> None:
    from playwright.sync_api import sync_playwright

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
    parser.add_argument("--cost", type=int, help="print what 64 cards of so many tokens cost")
    options = parser.parse_args()
    if options.cost:
        cost(options.cost)
        raise SystemExit
    with tempfile.TemporaryDirectory() as folder:
        page = options.page or Path(folder) / "cards.html"
        cards(options.component + 1).save(page)
        photograph(page, options.component, options.picture)
