"""What importing the package adds to importing TransformerLens, which whoever uses it has done."""

import json
import subprocess
import sys

import pytest

# CPU time: a busy machine makes others wait, and this process no slower by much.
MEASURE = """
import json, sys, time
import transformer_lens
before, start = set(sys.modules), time.process_time()
import tl_weighted_pca
tl_weighted_pca.collect  # the first name that is used brings the public ones
seconds = time.process_time() - start
print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
"""


@pytest.fixture(scope="module")
def cost():
    """CPU seconds, the best of up to five runs, and the modules imported."""
    best = None
    for _ in range(5):
        run = subprocess.run(
            [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
        )
        seconds, modules = json.loads(run.stdout.splitlines()[-1])
        best = (min(seconds, best[0]) if best else seconds, modules)
        if best[0] < 0.2:
            break
    return best


def test_it_adds_under_a_fifth_of_a_second(cost):
    assert cost[0] < 0.2


def test_it_brings_nothing_that_only_some_need(cost):
    _, modules = cost
    heavy = (
        "matplotlib", "typer", "rich", "networkx", "jinja2", "tl_weighted_pca.plots", "tl_weighted_pca.cli",
        "tl_weighted_pca.embedded", "tl_weighted_pca.dictionary", "tl_weighted_pca.feature_cards.page",
    )  # fmt: skip
    assert not [m for m in modules if any(m == h or m.startswith(f"{h}.") for h in heavy)]
    assert "tl_weighted_pca.streaming.one_pass" in modules
