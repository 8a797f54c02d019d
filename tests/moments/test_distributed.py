"""Processes that share the data out, and sum what they found."""

import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch

import tl_weighted_pca as wpca
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.data.sharding import shard

POINTS = ["blocks.0.hook_resid_post", "blocks.2.attn.hook_z"]


def close(a: wpca.Collection, b: wpca.Collection, tolerance: float) -> bool:
    """Whether all moments agree, centred, and all counts."""
    for name in b:
        if (a[name].n_tokens, a[name].n_sequences) != (b[name].n_tokens, b[name].n_sequences):
            return False
        center = b[name].activation.mean
        for kind in ("activation", "gradient", "weighted"):
            x, y = (getattr(c[name], kind).about(center) for c in (a, b))
            if float((x - y).norm()) > tolerance * float(y.norm()):
                return False
    return True


# -- shares ---------------------------------------------------------------------------------------

ROWS = torch.arange(7 * 3).view(7, 3)
COLUMNS = {"input_ids": ROWS.tolist()}
DATA = {
    "tensor": lambda: ROWS,
    "dataset": lambda: datasets.Dataset.from_dict(COLUMNS),
    "stream": lambda: datasets.Dataset.from_dict(COLUMNS).to_iterable_dataset(),
    "loader": lambda: torch.utils.data.DataLoader(ROWS, batch_size=2),
    "dicts": lambda: [{"input_ids": rows} for rows in ROWS.split(3)],
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_shares_make_up_the_data_and_sequences_keep_their_place(kind, world_size):
    found = {}
    for rank in range(world_size):
        for batch in batches(shard(DATA[kind](), rank=rank, world_size=world_size), 2):
            for row, index in zip(batch.inputs, batch.sequence_index.tolist(), strict=True):
                assert index not in found
                found[index] = row
    assert sorted(found) == list(range(7))
    assert all(torch.equal(found[i], ROWS[i]) for i in found)


def test_a_stream_in_files_gives_every_row_a_place_of_its_own():
    whole = datasets.Dataset.from_dict(COLUMNS).to_iterable_dataset(num_shards=2)
    shares = [list(batches(shard(whole, rank=rank, world_size=2), 2)) for rank in range(2)]
    found = [i for share in shares for batch in share for i in batch.sequence_index.tolist()]
    assert len(set(found)) == 7
    rows = torch.cat([batch.inputs for share in shares for batch in share])
    assert torch.equal(rows.sort(0).values, ROWS)


def test_without_processes_there_is_one_share():
    assert shard(ROWS).world_size == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "both rank and world_size"),
        ({"rank": 2, "world_size": 2}, "expected 0..1"),
    ],
)
def test_shares_that_are_none_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        shard(ROWS, **options)


def test_a_share_of_a_share_is_refused():
    with pytest.raises(ValueError, match="once"):
        shard(shard(ROWS, rank=0, world_size=2))


def test_several_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RuntimeError, match="init_process_group"):
        shard(ROWS)


@pytest.mark.parametrize("world_size", [2, 3])
def test_labels_drawn_do_not_depend_on_the_number_of_processes(best_model, tokens, world_size):
    options = {"objective": wpca.sampled_token_loss(2), "progress": False, "batch_size": 2}
    whole = wpca.collect(best_model, tokens, POINTS, **options)
    parts = [
        wpca.collect(best_model, shard(tokens, rank=r, world_size=world_size), POINTS, **options)
        for r in range(world_size)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert close(total, whole, 1e-5)


def test_an_empty_share_is_an_empty_collection_that_adds_nothing(best_model, tokens, tmp_path):
    options = {"progress": False, "checkpoint": tmp_path / "empty"}
    empty = wpca.collect(best_model, shard(tokens, rank=11, world_size=12), POINTS, **options)
    assert [empty[n].n_tokens for n in POINTS] == [0, 0]
    whole = wpca.collect(best_model, tokens, POINTS, progress=False)
    assert close(whole + empty, whole, 0) and close(empty + whole, whole, 0)
    empty.save(tmp_path / "saved")
    assert close(wpca.Collection.load(tmp_path / "saved") + whole, whole, 0)
    with pytest.raises(ValueError, match="no tokens|no activation"):
        wpca.pca(empty[POINTS[0]])


def test_without_processes_the_sum_is_the_collection(best_model, tokens):
    whole = wpca.collect(best_model, tokens, POINTS, progress=False)
    assert whole.all_reduce() is whole


# -- processes ------------------------------------------------------------------------------------

# One process imports what is needed and then forks into the ranks.
PREFACE = """
import os, sys, time, torch, torch.distributed as dist
from datetime import timedelta
import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.data.sharding import shard
torch.set_num_threads(1)
out, size, argument = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = embedded.load_model()
children = []
for rank in range(size):
    if not (child := os.fork()):
        break
    children.append(child)
else:
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(*codes)
    os._exit(0)
dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=size,
                        timeout=timedelta(seconds=60))
"""

COLLECT = """
points = ["blocks.0.hook_resid_post", "blocks.2.attn.hook_z"]
tokens = torch.arange(7 * 12).view(7, 12) * 7919 % model.cfg.d_vocab
options = dict(batch_size=2, progress=False, row_metric="gradient")
share = shard(tokens[:argument])
mine = wpca.collect(model, share, points, checkpoint=f"{out}.{rank}", checkpoint_every=1, **options)
total = mine.all_reduce()
again = wpca.collect(model, share, points, checkpoint=f"{out}.{rank}", **options).all_reduce()
assert torch.equal(total[points[0]].weighted.second, again[points[0]].weighted.second)
if rank == size - 1:  # the sum is in every process, and this is the one with least
    total.save(out)
"""

SAME_PAIRS = """
g = torch.Generator().manual_seed(0)
F, G = torch.randn(2, 12, 16, 24, generator=g)
F += 100
share = shard(F)
acc, rows = wpca.MomentAccumulator("gradient"), share.rows(len(F))
acc.update(F[rows.start:rows.stop], G[rows.start:rows.stop])
told = {"outliers": 9.0, "left_out": {"x": {"7": rank + 1, str(rank): 1}}}
wpca.Collection({"x": acc.result()}, told).all_reduce().save(f"{out}.{rank}")
"""

DIES = """
moments = wpca.MomentAccumulator().update(*torch.randn(2, 2, 3, 4)).result()
mine = wpca.Collection({"x": moments})
if rank == 1:
    os._exit(1)  # as if killed
try:
    mine.all_reduce(timeout=5)
except RuntimeError as error:
    assert "has died, or did not arrive in time" in str(error), error
    open(f"{out}.{rank}", "w").close()
    os._exit(0)
"""

DIFFERENT_HOOK_POINTS = """
mine = wpca.Collection({f"x{rank}": wpca.MomentAccumulator().update(torch.randn(2, 3, 4)).result()})
try:
    mine.all_reduce()
except ValueError as error:
    assert "same hook points" in str(error)
    open(f"{out}.{rank}", "w").close()
"""

DIFFERENT_POSITIONS = """
options = dict(objective=None, progress=False)
mine = wpca.collect(model, torch.arange(24).view(2, 12), "blocks.0.hook_resid_post",
                    positions=slice(rank, None), **options)
try:
    mine.all_reduce()
except ValueError as error:
    assert "at positions=slice(0, None, None) and at positions=slice(1, None" in str(error), error
    open(f"{out}.{rank}", "w").close()
"""


def launch(script: str, world_size: int, out: Path, argument: int = 0) -> list[int]:
    """Run a script in processes that torch.distributed joins; their exit codes."""
    # A fork that runs to the end of the script must not run what its parent registered at exit.
    command = [sys.executable, "-c", PREFACE + script + "\nos._exit(0)\n"]
    command += [str(out), str(world_size), str(argument)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    return [int(code) for code in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "n"), [(1, 7), (2, 7), (3, 7), (3, 2)])
def test_any_number_of_processes_gives_the_same_moments(best_model, tmp_path, world_size, n):
    assert launch(COLLECT, world_size, tmp_path / "out", n) == [0] * world_size
    tokens = torch.arange(7 * 12).view(7, 12) * 7919 % best_model.cfg.d_vocab
    whole = wpca.collect(best_model, tokens[:n], POINTS, batch_size=3, progress=False)
    assert close(wpca.Collection.load(tmp_path / "out"), whole, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_same_pairs_give_the_same_moments(tmp_path, world_size):
    assert launch(SAME_PAIRS, world_size, tmp_path / "out") == [0] * world_size
    g = torch.Generator().manual_seed(0)
    activations, gradients = torch.randn(2, 12, 16, 24, generator=g)
    activations += 100
    whole = wpca.MomentAccumulator("gradient").update(activations, gradients).result()
    for rank in range(world_size):
        total = wpca.Collection.load(tmp_path / f"out.{rank}")
        assert close(total, wpca.Collection({"x": whole}), 1e-6)
        once = {str(each): 1 for each in range(world_size)}
        assert total.settings["left_out"] == {"x": {"7": sum(range(world_size + 1)), **once}}


@pytest.mark.slow
def test_a_process_that_dies_makes_the_others_fail_in_time(tmp_path):
    start = time.monotonic()
    codes = launch(DIES, 3, tmp_path / "out")
    assert time.monotonic() - start < 60
    assert codes == [0, 1, 0]
    assert {path.name for path in tmp_path.glob("out.[0-9]")} == {"out.0", "out.2"}


@pytest.mark.slow
@pytest.mark.parametrize("script", [DIFFERENT_HOOK_POINTS, DIFFERENT_POSITIONS])
def test_different_collections_are_refused_in_every_process(tmp_path, script):
    launch(script, 2, tmp_path / "out")
    assert {path.name for path in tmp_path.glob("out.[0-9]")} == {"out.0", "out.1"}
