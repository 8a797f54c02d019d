"""A training that is cut off and goes on, and one that several processes share."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tl_weighted_pca as wpca
from tl_weighted_pca.fitted.training import Training

HOOK = "blocks.1.hook_resid_post"
OPTIONS = {"steps": 24, "batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def stories():
    return wpca.embedded.stories("train", 48)


@pytest.fixture(scope="module")
def start(best_model, stories):
    labels = wpca.sampled_token_loss()
    stats = wpca.collect(best_model, stories, HOOK, objective=labels, progress=False)
    return wpca.metric_pca(stats[HOOK])


class CutOff(Exception):
    pass


@pytest.fixture
def cut_off(monkeypatch):
    """Let the training fail at a step; None lets it run again."""
    real = Training.step

    def at(number):
        def step(self, run, i):
            if i == number:
                raise CutOff
            real(self, run, i)

        monkeypatch.setattr(Training, "step", step)

    return at


@pytest.mark.parametrize("k", [None, 16])
def test_cut_off_and_resumed_it_is_the_same_to_the_bit(
    best_model, stories, start, cut_off, tmp_path, k
):
    whole = wpca.optimize_basis(best_model, stories, start, k, **OPTIONS)
    assert whole.method == "optimize_basis"
    options = OPTIONS | {"checkpoint": tmp_path / "training", "checkpoint_every": 5}
    for number in (
        3,
        5,
        13,
        19,
    ):  # before the first file, just after it, after an evaluation, twice more
        cut_off(number)
        with pytest.raises(CutOff):
            wpca.optimize_basis(best_model, stories, start, k, **options)
    cut_off(None)
    resumed = wpca.optimize_basis(best_model, stories, start, k, **options)
    again = wpca.optimize_basis(best_model, stories, start, k, **options)  # of a file that is done
    for basis in (resumed, again):
        for name in ("encoder", "decoder", "center", "eigenvalues"):
            assert torch.equal(getattr(basis, name), getattr(whole, name))


@pytest.mark.filterwarnings("ignore:No training")  # was better in so few steps
def test_resumed_after_batches_that_were_no_steps(
    best_model, start, cut_off, tmp_path, monkeypatch
):
    rows = torch.arange(16 * 12).view(16, 12) * 7919 % best_model.cfg.d_vocab
    masks = torch.ones_like(rows)
    masks[:8, 1:] = 0  # one real token each, and so nothing to predict
    data = [
        {"input_ids": x, "attention_mask": mask}
        for x, mask in zip(rows.split(2), masks.split(2), strict=True)
    ]
    options = {"steps": 12, "loss": "loss", "seed": 0, "progress": False}
    found, real = [], Training.basis

    def basis(training):
        (moves, _) = training.bottleneck.parameters.values()
        found.append((moves.detach().clone(), int(training.optimiser.state[moves]["step"])))
        return real(training)

    monkeypatch.setattr(Training, "basis", basis)
    wpca.optimize_basis(best_model, data, start, **options)
    options |= {"checkpoint": tmp_path / "run", "checkpoint_every": 1}
    cut_off(7)
    with pytest.raises(CutOff):
        wpca.optimize_basis(best_model, data, start, **options)
    cut_off(None)
    wpca.optimize_basis(best_model, data, start, **options)
    (whole, counted), (resumed, again) = found
    assert torch.equal(whole, resumed) and counted == again
    assert 0 < counted < 12  # some batches were steps, and some were not


@pytest.mark.filterwarnings("ignore:No training")  # was better in such small steps
def test_another_loss_of_the_same_name_is_refused(best_model, stories, start, tmp_path):
    def trained(factor):
        def loss(run):
            return factor * wpca.next_token_loss(run)

        options = OPTIONS | {"steps": 4, "lr": np.float32(1e-12), "k": np.int64(8)}
        path = tmp_path / "training"
        wpca.optimize_basis(best_model, stories, start, loss=loss, checkpoint=path, **options)

    trained(1.0)
    trained(1.0)
    with pytest.raises(ValueError, match="with another loss of the same name"):
        trained(2.0)


def test_other_settings_or_data_are_refused(best_model, stories, start, tmp_path):
    rows = torch.tensor([row[:24] for row in stories["input_ids"]])
    options = OPTIONS | {"steps": 4, "checkpoint": tmp_path / "training"}
    with pytest.warns(UserWarning, match="the start is returned"):
        wpca.optimize_basis(best_model, stories, start, lr=1e-12, **options)
    with pytest.raises(ValueError, match="was made with lr=1e-12, but this run has lr=None"):
        wpca.optimize_basis(best_model, stories, start, **options)
    with pytest.raises(ValueError, match="was made with data="):
        wpca.optimize_basis(best_model, stories.select(range(40)), start, lr=1e-12, **options)
    masks = [{"input_ids": x, "attention_mask": x > 1} for x in rows.split(8)]
    options["checkpoint"] = tmp_path / "masked"
    with pytest.warns(UserWarning, match="the start is returned"):
        wpca.optimize_basis(best_model, list(rows.split(8)), start, lr=1e-12, **options)
    with pytest.raises(ValueError, match="was made with data="):
        wpca.optimize_basis(best_model, masks, start, lr=1e-12, **options)
    options["checkpoint"] = tmp_path / "training"
    (tmp_path / "training").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not readable as what optimize_basis"):
        wpca.optimize_basis(best_model, stories, start, lr=1e-12, **options)


WORKER = """
import os, sys
import torch, torch.distributed as dist
import tl_weighted_pca as wpca
from tl_weighted_pca.fitted.training import Training
folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
model = wpca.embedded.load_model(device="cpu").double()
rows = torch.load(f"{folder}/rows")
start = wpca.Basis.load(f"{folder}/start")
mine, file = f"{folder}/trained{rank}", f"{folder}/checkpoint{rank}"

def train(**options):
    data = wpca.shard(list(rows.split(4)))
    return wpca.optimize_basis(model, data, start, steps=12, progress=False, **options)

train().save(mine)
# Process 1 is killed before it writes step 4 that process 0 has written, then loses its file.
real = Training.step
for stop, is_lost in ((3, False), (5, True), (8, False)):
    before = open(file, "rb").read() if os.path.exists(file) else None
    def step(self, run, number):
        if number == stop:
            raise InterruptedError
        real(self, run, number)
    Training.step = step
    try:
        train(checkpoint=file, checkpoint_every=2)
    except InterruptedError:
        pass
    if rank == 1 and before is not None:
        os.unlink(file) if is_lost else open(file, "wb").write(before)
Training.step = real
train(checkpoint=file, checkpoint_every=2).save(mine + "resumed")
dist.destroy_process_group()
"""


@pytest.mark.filterwarnings("ignore:No training")  # was better in two steps
@pytest.mark.parametrize("version", [1, 2])
def test_a_checkpoint_of_an_earlier_format_is_refused(
    best_model, stories, start, tmp_path, monkeypatch, version
):
    path, options = tmp_path / "run", {"steps": 2, "batch_size": 8, "progress": False}
    with monkeypatch.context() as before:
        module = "tl_weighted_pca.fitted.training_checkpoint"
        before.setattr(f"{module}._FORMAT", f"tl_weighted_pca.Training/{version}")
        wpca.optimize_basis(best_model, stories, start, checkpoint=path, **options)
    with pytest.raises(ValueError, match=f"/{version}', expected 'tl_weighted_pca.Training/3'"):
        wpca.optimize_basis(best_model, stories, start, checkpoint=path, **options)


def test_two_processes_train_what_one_trains_on_the_same_batches(stories, tmp_path):
    # In float64: Adam's first steps are the signs of gradients, also of those that are rounding.
    model = wpca.embedded.load_model(device="cpu").double()
    rows = torch.tensor([row[:24] for row in stories["input_ids"]])
    labels = wpca.sampled_token_loss()
    start = wpca.metric_pca(wpca.collect(model, rows, HOOK, objective=labels, progress=False)[HOOK])
    # Batch t of process p is that of one process, its rows 4p to 4p + 3.
    alone = wpca.optimize_basis(model, list(rows.split(8)), start, steps=12, progress=False)
    assert alone.method == "optimize_basis"
    torch.save(rows, tmp_path / "rows")
    start.save(tmp_path / "start")
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    running = [
        subprocess.Popen(
            [sys.executable, worker, tmp_path, str(rank)], cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    first, second = (wpca.Basis.load(tmp_path / f"trained{rank}") for rank in range(2))
    for rank in range(2):
        resumed = wpca.Basis.load(tmp_path / f"trained{rank}resumed")
        for name in ("encoder", "decoder", "center", "eigenvalues"):
            assert torch.equal(getattr(resumed, name), getattr(first, name))
    assert torch.equal(first.encoder, second.encoder)
    scale = float(alone.encoder.abs().max())
    torch.testing.assert_close(first.encoder, alone.encoder, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(first.eigenvalues, alone.eigenvalues, rtol=1e-4, atol=1e-7)
