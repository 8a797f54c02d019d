"""Options in company: in whatever form the same sequences come, the moments are those of each alone."""

import random

import datasets
import pytest
import torch
from conftest import KINDS

import tl_weighted_pca as wpca

POSITIONS = (
    None,
    slice(1, None),
    slice(8, None),
    slice(-2, None),
    [0, 3],
    [-1],
    slice(None, None, 2),
)


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    # In float64, so that no rounding makes a position an outlier in one form and not in another.
    return wpca.embedded.load_model(request.param, device="cpu", dtype=torch.float64)


def padded(rows, side, size):
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), 5)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest) if side == "left" else slice(len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    parts = zip(ids.split(size), mask.split(size), strict=True)
    return [{"input_ids": x, "attention_mask": m} for x, m in parts]


@pytest.mark.filterwarnings("ignore:In the first batch")  # of outliers, which are asked for here
@pytest.mark.parametrize("seed", range(16))
def test_the_form_of_the_data_changes_nothing(model, seed):
    draw = random.Random(seed)
    rows = [
        [draw.randrange(3, model.cfg.d_vocab) for _ in range(draw.choice([1, 2, 3, 5, 9, 14]))]
        for _ in range(draw.choice([9, 30, 140]))
    ] + [list(range(3, 23))]  # long enough for all positions
    hook_point = draw.choice(["blocks.1.hook_resid_post", "blocks.2.attn.hook_z"])
    options = {
        "positions": draw.choice(POSITIONS), "outliers": draw.choice([None, 1.3]),
        "objective": draw.choice([None, "loss"]), "row_metric": draw.choice(["gradient", "diagonal"]),
        "per_head": hook_point.endswith("hook_z") and draw.random() < 0.5, "progress": False,
    }  # fmt: skip
    table, size = datasets.Dataset.from_dict({"input_ids": rows}), draw.choice([2, 7, 50])
    forms = [table, padded(rows, "left", size), padded(rows, "right", size)]
    alone, *others = (
        wpca.collect(model, data, hook_point, batch_size=batch_size, **options)[hook_point]
        for data, batch_size in zip([table, *forms], [1, 2, 16, 16], strict=True)
    )
    for other in others:
        assert other.n_tokens == alone.n_tokens > 0
        for kind in ("activation", "gradient", "weighted"):
            mine, theirs = getattr(other, kind), getattr(alone, kind)
            assert (mine is None) == (theirs is None)
            if mine is not None:  # at the last position the loss has no gradient
                size = float(theirs.second.abs().max())
                assert (mine.second - theirs.second).abs().max() <= 1e-9 * size, (kind, options)
