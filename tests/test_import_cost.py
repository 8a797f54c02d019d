"""What importing the package adds to importing TransformerLens, which whoever uses it has done."""

import json
import subprocess
import sys

import pytest

# CPU time, as a share of what TransformerLens takes in the same process: the machine drops out.
MEASURE = """
import json, sys, time
start = time.process_time()
import transformer_lens
theirs, before = time.process_time() - start, set(sys.modules)
import tl_weighted_pca
tl_weighted_pca.collect  # the first name that is used brings the public ones
ours = time.process_time() - start - theirs
print(json.dumps([ours / theirs, sorted(set(sys.modules) - before)]))
"""


@pytest.fixture(scope="module")
def cost():
    """CPU time over TransformerLens's, and the modules imported."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def test_it_adds_little_to_importing_transformer_lens(cost):
    assert cost[0] < 0.15  # 0.03 on TransformerLens 3.9, 0.06 on 4.3


def test_it_brings_nothing_that_only_some_need(cost):
    _, modules = cost
    heavy = (
        "matplotlib", "typer", "rich", "networkx", "jinja2", "tl_weighted_pca.plots", "tl_weighted_pca.cli",
        "tl_weighted_pca.embedded", "tl_weighted_pca.dictionary", "tl_weighted_pca.feature_cards.page",
    )  # fmt: skip
    assert not [m for m in modules if any(m == h or m.startswith(f"{h}.") for h in heavy)]
    assert "tl_weighted_pca.streaming.one_pass" in modules
