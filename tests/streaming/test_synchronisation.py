"""A pass asks for a number as often with many hook points as with one: a GPU is waited for each time.

Counted are the operators that bring a tensor's values, or a shape that depends on them, to Python: on the CPU
the same ones run.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tl_weighted_pca as wpca

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default,
    aten._unique2.default, aten.unique_dim.default, aten.masked_select.default,
}  # fmt: skip
ONE = ["blocks.1.hook_resid_post"]
PLACES = ("hook_resid_post", "attn.hook_z", "hook_mlp_out")
MANY = [f"blocks.{i}.{name}" for i in range(4) for name in PLACES]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of few tokens, of outliers


class Waits(TorchDispatchMode):
    """Counts them, boolean masks as indices and copies to the CPU too."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        masks = args[1] if function is aten.index.Tensor else ()
        by_mask = any(mask is not None and mask.dtype == torch.bool for mask in masks)
        result = function(*args, **(kwargs or {}))
        fetched = function is aten._to_copy.default and result.is_cpu and not args[0].is_cpu
        if function in WAITS or by_mask or fetched:
            self.found[str(function)] += 1
        return result


def per_batch(run, batches):
    """What the second half of the batches adds: the first one finds out about the model."""
    n = len(batches) // 2
    counts = []
    for some in (batches[:n], batches):
        with Waits() as waits:
            run(some)
        counts.append(waits.found)
    return counts[1] - counts[0]


@pytest.fixture(scope="module")
def lent(device):
    return wpca.embedded.load_model().to(device)


@pytest.fixture(scope="module", params=["whole", "padded"])
def batches(request, tokens):
    rows = list(tokens[:8].split(2))
    if request.param == "whole":
        return rows
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 15:] = False
    return [{"input_ids": x, "attention_mask": mask} for x in rows]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positions": [1, 3, 5]},
        {"objective": None},
        {"objective": wpca.sampled_token_loss(2)},
        {"row_metric": "diagonal", "sums_dtype": "float32", "per_head": True},
        {"recompute": True},
    ],
    ids=lambda options: ", ".join(options) or "defaults",
)
def test_collect_waits_as_often_for_many_hook_points_as_for_one(lent, batches, options):
    def run(hook_points):
        return lambda data: wpca.collect(lent, data, hook_points, progress=False, **options)

    one, many = (per_batch(run(hook_points), batches) for hook_points in (ONE, MANY))
    assert one.total() > 0  # the finite check, at least
    assert many == one


def test_pairs_wait_as_often_for_many_hook_points_as_for_one(lent, batches):
    def run(hook_points):
        return lambda data: list(wpca.stream_pairs(lent, data, hook_points))

    one, many = (per_batch(run(hook_points), batches) for hook_points in (ONE, MANY))
    assert many == one


def test_an_accumulator_waits_once_a_batch(device):
    accumulator, (F, g) = wpca.MomentAccumulator(), torch.randn(2, 3, 5, 8, device=device)
    accumulator.update(F, g)
    with Waits() as waits:
        accumulator.update(F, g)
    assert waits.found == {"aten._local_scalar_dense.default": 1}
