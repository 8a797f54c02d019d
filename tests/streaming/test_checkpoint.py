"""A run that was stopped goes on to the same moments, to the bit; a file is whole or not there."""

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader

import tl_weighted_pca as wpca
from tl_weighted_pca.streaming import one_pass
from tl_weighted_pca.support.digest import digest_of
from tl_weighted_pca.support.files import write_atomically

POINTS = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]


class Stop(Exception):
    pass


def identical(a: wpca.Collection, b: wpca.Collection) -> bool:
    return all(
        torch.equal(getattr(getattr(a[name], kind), part), getattr(getattr(b[name], kind), part))
        for name in a
        for kind in ("activation", "gradient", "weighted")
        for part in ("weight", "shifted_first", "shifted_second", "shift")
    ) and all((a[n].n_tokens, a[n].n_sequences) == (b[n].n_tokens, b[n].n_sequences) for n in a)


def stopping_after(batches: int):
    """The next-token loss, and an exception when it is asked once more."""
    calls = 0

    def next_token_loss(run):
        nonlocal calls
        calls += 1
        if calls > batches:
            raise Stop
        return wpca.next_token_loss(run)

    # It is as good as ours, and says so: what it closes over is of the test alone.
    next_token_loss.name = "next_token_loss"
    return next_token_loss


def run(model, tokens, path=None, **options):
    options = {"batch_size": 2, "progress": False, "checkpoint_every": 2} | options
    return wpca.collect(model, tokens, POINTS, checkpoint=path, **options)


@pytest.fixture
def stopped(model, tokens, tmp_path):
    """A checkpoint of two batches out of five: the third was done, but not written."""
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        run(model, tokens, path, objective=stopping_after(3))
    return path


def test_goes_on_to_the_same_bits(model, tokens, stopped):
    with safe_open(stopped, "pt") as file:
        assert '"n_batches": 2' in file.metadata()["position"]
        assert file.metadata()["package_version"]
    done = stopping_after(3)  # three batches are left, so no fourth is asked for
    assert identical(run(model, tokens, stopped, objective=done), run(model, tokens))


def test_a_finished_run_is_read_and_not_repeated(model, tokens, tmp_path):
    path = tmp_path / "run.safetensors"
    first = run(model, tokens, path)
    assert identical(first, run(model, tokens, path, objective=stopping_after(0)))


def test_a_finished_run_that_is_read_again_lies_where_the_model_does(mlp, tmp_path):
    """Else bases made of it on another device would differ in their last bits."""
    options = {"objective": lambda run: run.output.square().sum((1, 2)), "progress": False}
    path, data = tmp_path / "run.safetensors", [torch.randn(2, 3, 5, dtype=torch.float64)]
    wpca.collect(mlp, data, ["hook_hidden"], checkpoint=path, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_pass, "device_of", lambda model: torch.device("meta"))
        found = wpca.collect(mlp, data, ["hook_hidden"], checkpoint=path, **options)
    assert found["hook_hidden"].activation.packed_second.flat.is_meta
    assert found["hook_hidden"].activation.shift.is_meta


def test_more_data_of_the_same_go_on(model, tokens, tmp_path):
    path = tmp_path / "run.safetensors"
    run(model, tokens[:6], path)
    assert identical(run(model, tokens, path), run(model, tokens))


def test_several_objectives_heads_and_activations_alone(model, tokens, tmp_path):
    cases = [
        {"objective": {"a": stopping_after(4), "b": wpca.sampled_token_loss(2)}, "per_head": True},
        {"objective": None},
    ]
    points = "blocks.1.attn.hook_z"
    for i, case in enumerate(cases):
        path, common = tmp_path / f"{i}.safetensors", {"batch_size": 2, "progress": False}
        whole = dict(
            case, objective=case["objective"] and dict(case["objective"], a=stopping_after(9))
        )
        expected = wpca.collect(model, tokens, points, **common, **whole)
        data = iter([tokens[k : k + 2] if k < 6 else None for k in range(0, 10, 2)])
        with pytest.raises((Stop, ValueError, TypeError)):
            wpca.collect(model, data, points, **common, **case, checkpoint=path, checkpoint_every=1)
        found = wpca.collect(model, tokens, points, **common, **whole, checkpoint=path)
        for key in ("a", "b") if i == 0 else (None,):
            a, b = (x[points] if key is None else x[key][points] for x in (found, expected))
            assert torch.equal(a.activation.second, b.activation.second)
            if key:
                assert a.weighted.second.ndim == 3
                assert torch.equal(a.weighted.second, b.weighted.second)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions": slice(1, None)}, "positions"),
        ({"row_metric": "diagonal"}, "row_metric"),
        ({"batch_size": 3}, "batch_size"),
        ({"objective": wpca.sampled_token_loss()}, "objective"),
        ({"max_tokens": 60}, "max_tokens"),
    ],
)
def test_other_settings_are_refused_and_the_file_left_alone(model, tokens, stopped, change, words):
    before = stopped.read_bytes()
    with pytest.raises(ValueError, match=f"was made with {words}="):
        run(model, tokens, stopped, **change)
    assert stopped.read_bytes() == before


def scaled_loss(factor):
    def loss(run):
        return factor * wpca.next_token_loss(run)

    return loss


def scaled_metric(factor):
    return lambda F, g: factor * g @ g.mT


def test_callables_of_the_same_name_that_do_something_else_are_refused(model, tokens, tmp_path):
    """An edited objective or row metric, not its name, is what a checkpoint is of."""
    cases = [("objective", scaled_loss), ("row metric", scaled_metric)]
    for what, made in cases:
        path, key = tmp_path / what, what.replace(" ", "_")
        whole = run(model, tokens, path, **{key: made(2)})
        assert identical(run(model, tokens, path, **{key: made(2)}), whole)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=f"made with another {what} of the same name"):
            run(model, tokens, path, **{key: made(3)})
        assert path.read_bytes() == before
    mixed = {"a": scaled_loss(2), "b": wpca.next_token_loss}
    run(model, tokens, tmp_path / "several", objective=mixed)
    with pytest.raises(ValueError, match="made with another objective a of the same name"):
        run(model, tokens, tmp_path / "several", objective=mixed | {"a": scaled_loss(3)})


def test_a_callable_that_cannot_be_told_from_another_needs_a_name(model, tokens, tmp_path):
    lock = threading.Lock()

    def objective(run):
        with lock:
            return wpca.next_token_loss(run)

    path = tmp_path / "run"
    with pytest.raises(ValueError, match="reads a _thread.lock, .* give it an attribute `name`"):
        run(model, tokens, path, objective=objective)
    assert not path.exists()
    objective.name = "locked"
    found = run(model, tokens, path, objective=objective)
    assert found[POINTS[0]].provenance.objective == "locked"
    objective.name = "otherwise locked"
    with pytest.raises(ValueError, match="was made with objective="):
        run(model, tokens, path, objective=objective)


def test_other_weights_are_refused(mlp, tmp_path):
    data, path = torch.randn(6, 5, dtype=torch.float64), tmp_path / "mlp.safetensors"
    options = {"objective": None, "progress": False, "checkpoint": path}
    wpca.collect(mlp, data, "hook_hidden", **options)
    mlp.first.weight.data.mul_(1.5)
    with pytest.raises(ValueError, match="weights"):
        wpca.collect(mlp, data, "hook_hidden", **options)


def test_other_or_shorter_or_shuffled_data_are_refused(model, tokens, stopped):
    before = stopped.read_bytes()
    shuffled = DataLoader(tokens.flip(0), batch_size=2)
    for data in (tokens.flip(0), shuffled):
        with pytest.raises(ValueError, match="are not those"):
            run(model, data, stopped)
    with pytest.raises(ValueError, match="the data end"):
        run(model, tokens[:2], stopped)
    assert stopped.read_bytes() == before
    assert identical(run(model, DataLoader(tokens, batch_size=2), stopped), run(model, tokens))


def test_truncated_and_foreign_files_are_refused_and_left_alone(model, tokens, stopped, tmp_path):
    whole = stopped.read_bytes()
    foreign = tmp_path / "foreign.safetensors"
    write_atomically(foreign, {"x": torch.ones(2)}, {"format": "pt"})
    collection = tmp_path / "collection.safetensors"
    run(model, tokens).save(collection)
    torn, text = tmp_path / "torn.safetensors", tmp_path / "text"
    torn.write_bytes(whole[: len(whole) // 2])
    text.write_text("a note of mine, and no checkpoint")
    for path in (foreign, collection, torn, text):
        before = path.read_bytes()
        with pytest.raises(ValueError, match="not a checkpoint|damaged or foreign"):
            run(model, tokens, path)
        assert path.read_bytes() == before


def test_checkpoint_every_must_be_a_number_of_batches(model, tokens, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every"):
        run(model, tokens, tmp_path / "x", checkpoint_every=0)


def test_a_folder_that_is_not_there_is_told_before_the_work(model, tokens, tmp_path):
    with pytest.raises(OSError, match="Cannot write to the folder"):
        run(model, tokens, tmp_path / "no" / "run.safetensors", objective=stopping_after(0))


def test_a_read_only_folder_is_told_before_the_work(model, tokens, tmp_path):
    folder = Path("/proc") if os.geteuid() == 0 else tmp_path  # root may write anywhere else
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Cannot write to the folder"):
        run(model, tokens, folder / "run.safetensors", objective=stopping_after(0))


def test_a_folder_is_no_target(model, tokens, tmp_path):
    with pytest.raises(ValueError, match="is a folder: pass the path of a file in it"):
        run(model, tokens, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_disk_full_keeps_the_last_checkpoint(model, tokens, stopped):
    whole = stopped.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limit[1]))
    try:
        with pytest.raises(OSError, match=r"Cannot write .*run\.safetensors") as caught:
            run(model, tokens, stopped)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.collection[POINTS[0]].n_sequences == 8  # nothing collected is lost
    assert stopped.read_bytes() == whole
    assert list(stopped.parent.iterdir()) == [stopped]
    assert identical(run(model, tokens, stopped), run(model, tokens))


# One process loads the model and then forks, run after run: to load it anew each time takes longer than
# to run it.
TRIALS = """
import os, random, signal, sys, time, torch
import tl_weighted_pca as wpca
from safetensors import safe_open
from tl_weighted_pca import embedded
torch.set_num_threads(1)
folder, number, trials = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = embedded.load_model()
tokens = torch.arange(64 * 24).view(64, 24) * 7919 % model.cfg.d_vocab
flags = [p.requires_grad for p in model.parameters()]
# What a run loads is loaded here: before Python 3.12 a Ctrl-C while a class is made is a RuntimeError.
wpca.collect(model, tokens[:1], "blocks.0.hook_resid_post", checkpoint=f"{folder}/first", progress=False)

def run(name, out):
    ready, tell = os.pipe()
    if pid := os.fork():
        os.read(ready, 1)
        return pid
    try:
        os.write(tell, b"!")
        wpca.collect(model, tokens, ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"],
                     batch_size=1, progress=False, checkpoint=f"{folder}/{name}", checkpoint_every=1
                     ).save(f"{folder}/{out}")
        os._exit(0)
    except KeyboardInterrupt:
        hooks = sum(len(p.fwd_hooks) for p in model.hook_dict.values())
        same = flags == [p.requires_grad for p in model.parameters()]
        os._exit(130 if same and not hooks else 1)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(2)

start = time.monotonic()
assert os.waitpid(run("whole.checkpoint", "whole"), 0)[1] == 0
lasts, draw, ended = time.monotonic() - start, random.Random(0), []
for _ in range(trials):
    pid = run("run", "resumed")
    time.sleep(draw.uniform(0.01, 0.25) * lasts)
    os.kill(pid, number)
    status = os.waitpid(pid, 0)[1]
    ended.append(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
    if os.path.exists(f"{folder}/run"):
        with safe_open(f"{folder}/run", "pt") as file:  # readable, whatever the moment
            for key in file.keys():
                file.get_tensor(key)
    if number == signal.SIGINT:
        assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]
assert os.waitpid(run("run", "resumed"), 0)[1] == 0
print(*ended)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_stopped_at_ten_random_moments(tmp_path, number, code):
    command = [sys.executable, "-c", TRIALS, str(tmp_path), str(int(number)), "10"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ours may ignore it
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ended = [int(word) for word in done.stdout.split()]
    assert set(ended) <= {code, 0} and ended.count(code) >= 4  # the last may have found it all done
    whole, resumed = (wpca.Collection.load(tmp_path / name) for name in ("whole", "resumed"))
    assert identical(whole, resumed)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_digest_is_of_values_and_not_of_how_torch_keeps_them():
    x = torch.randn(3, 4, dtype=torch.complex64)
    assert digest_of(x.conj()) == digest_of(x.conj().resolve_conj()) != digest_of(x)
    assert digest_of(x.conj().imag) == digest_of(x.conj().imag.resolve_neg())
    assert digest_of(x.T) == digest_of(x.T.contiguous())


def test_leftovers_are_removed_and_those_of_others_are_not(best_model, tokens, tmp_path):
    mine, others = tmp_path / ".run.abcd1234.tmp", tmp_path / ".run.fisher.abcd1234.tmp"
    for file in (mine, others):
        file.write_text("")
    wpca.collect(
        best_model, tokens, "blocks.1.hook_resid_post", checkpoint=tmp_path / "run", progress=False
    )
    assert not mine.exists() and others.exists()
