"""1e6 for a count, as a large one is often written: every place where one is taken says what to write."""

import inspect

import pytest
import torch
from command_line import plain, run

import tl_weighted_pca as wpca
from tl_weighted_pca import dictionary, embedded, toy
from tl_weighted_pca.cli import app

HOOK = "blocks.1.hook_resid_post"
COMMANDS = {command.callback.__name__: command.callback for command in app.registered_commands}


@pytest.fixture(scope="module")
def given(best_model, tokens):
    stats = wpca.collect(best_model, tokens, HOOK, progress=False)
    m = stats[HOOK]
    a, b = wpca.pca(m), wpca.gradient_pca(m)
    curves = wpca.ablation_curves(best_model, tokens, [a, b], ranks=[8, 32], progress=False)
    pairs = list(wpca.stream_pairs(best_model, tokens, HOOK))
    return {
        "model": best_model,
        "x": tokens,
        "m": m,
        "a": a,
        "b": b,
        "curves": curves,
        "pairs": pairs,
    }


PASS = ("batch_size", "max_tokens")
CALLS = {
    "collect": (lambda g, **k: wpca.collect(g["model"], g["x"], HOOK, **k), PASS),
    "a checkpoint of collect": (
        lambda g, **k: wpca.collect(g["model"], g["x"], HOOK, checkpoint="/nowhere/x", **k),
        ("checkpoint_every",),
    ),
    "ablation_curves": (lambda g, **k: wpca.ablation_curves(g["model"], g["x"], g["a"], **k), PASS),
    "cards": (
        lambda g, **k: wpca.cards(g["model"], g["x"], g["a"], **k),
        ("contexts", "n_promoted", *PASS),
    ),
    "stream_pairs": (lambda g, **k: next(wpca.stream_pairs(g["model"], g["x"], HOOK, **k)), ("skip", *PASS)),
    "path_metric": (lambda g, **k: wpca.path_metric(g["model"], g["x"], g["a"], **k), PASS),
    "optimize_basis": (
        lambda g, **k: wpca.optimize_basis(g["model"], g["x"], g["a"], **k),
        ("k", "steps", "seed", *PASS),
    ),
    "dimension_map": (
        lambda g, **k: wpca.dimension_map(g["model"], g["x"], HOOK, heldout=g["x"], **k),
        ("heldout_tokens", *PASS),
    ),
    "joint_pca": (
        lambda g, **k: wpca.joint_pca(g["m"], g["pairs"], **k),
        ("max_pairs", "steps", "batch_size", "seed", "n_components"),
    ),
    "shard": (lambda g, **k: wpca.shard(g["x"], **{"rank": 0, "world_size": 2} | k), ("rank", "world_size")),
    "pca": (lambda g, **k: wpca.pca(g["m"], **k), ("n_components",)),
    "random_basis": (lambda g, **k: wpca.random_basis(g["m"], **k), ("n_components", "seed")),
    "subspace_overlap": (lambda g, **k: wpca.subspace_overlap(g["a"], g["b"], **k), ("k",)),
    "truncate": (lambda g, **k: g["a"].truncate(**k), ("k",)),
    "an interval": (lambda g, **k: g["curves"].excess("pca", **k), ("seed",)),
    "sampled_token_loss": (lambda g, **k: wpca.sampled_token_loss(**k), ("n_samples", "seed")),
    "logit_probe": (lambda g, **k: wpca.logit_probe(**k), ("n_probes", "seed")),
    "train_dictionary": (
        lambda g, **k: dictionary.train_dictionary(
            g["model"], g["x"], HOOK, **{"n_features": 8, "n_tokens": 4096} | k
        ),
        ("n_features", "n_tokens", "buffer_tokens"),
    ),
    "Recipe": (
        lambda g, **k: dictionary.Recipe(**k),
        ("batch_size", "resample_times", "seed"),
    ),
    "SparseAutoencoder": (
        lambda g, **k: dictionary.SparseAutoencoder(**{"width": 8, "n_features": 8} | k),
        ("width", "n_features", "seed"),
    ),
    "HookedMLP": (lambda g, **k: toy.HookedMLP([3, 2], **k), ("seed",)),
    "square_network": (lambda g, **k: toy.square_network(**k), ("hidden", "steps", "seed")),
    "low_rank_regression": (lambda g, **k: toy.low_rank_regression(**k), ("n", "width", "seed")),
    "modular_addition": (lambda g, **k: toy.modular_addition(**k), ("p",)),
    "stories": (lambda g, **k: embedded.stories(**k), ("n",)),
    "a factored matrix": (
        lambda g, **k: wpca.FactoredMatrix(torch.ones(3, 1), torch.ones(1, 3)).truncate(**k),
        ("k",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_in_python(given, name):
    call, counts = CALLS[name]
    for count in counts:
        with pytest.raises(ValueError, match=r"whole|choose k from 0 to") as caught:
            call(given, **{count: 1e6})
        assert "1000000.0" in str(caught.value), count
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_on_the_command_line(name, tmp_path):
    """Nothing is read or written before."""
    for parameter in inspect.signature(COMMANDS[name]).parameters.values():
        kind = getattr(parameter.annotation, "__origin__", parameter.annotation)
        if "int" in str(kind):
            option = "-n" if parameter.name == "n" else f"--{parameter.name.replace('_', '-')}"
            result = run(name, option, "1e6", "--out", tmp_path / "out")
            told = plain(result.output)
            assert (result.exit_code, "valid integer" in told) == (2, True), (option, told)
            assert f"'{option}'" in told
    assert not list(tmp_path.iterdir())
