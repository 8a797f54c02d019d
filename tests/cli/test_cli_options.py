"""No option of a command is dropped on its way to the function that does the work."""

import inspect
from functools import reduce
from importlib import import_module

import pytest
from command_line import FEW, POINT, run, works
from typer.main import get_command

from tl_weighted_pca.cli import app
from tl_weighted_pca.dictionary import Recipe

COMMANDS = get_command(app).commands
ABOUT_THE_FOLDER = {"out", "overwrite", "resume", "debug"}
"""Tested with the folder itself."""
MODEL = {
    "model": "gpt2", "model_class": "TransformerBridge", "device": "cuda:5", "dtype": "bfloat16",
}  # fmt: skip
TEXT = {
    "dataset": "some/where", "split": "validation", "dataset_config": "en", "text_column": "body",
    "sample_by": "line", "context_length": "77",
}  # fmt: skip
LIMITED = ["--batch-size", "5", "--max-tokens", "333", "--no-progress"]
SLICED = [*LIMITED, "--positions", "2:"]
COUNTED = [*SLICED, "--outliers", "30"]
ARRIVED = {"batch_size": 5, "max_tokens": 333, "progress": False, "positions": slice(2, None)}
WHOLE = {**ARRIVED, "outliers": 30.0}


class Arrived(BaseException):
    """Where the work would begin."""


@pytest.fixture
def arguments_of(monkeypatch):
    """What a function is called with by a command line, which then ends."""

    def call(line, target):
        module, _, path = target.partition(":")
        *owners, name = path.split(".")
        owner = reduce(getattr, owners, import_module(f"tl_weighted_pca.{module}"))
        signature, found = inspect.signature(getattr(owner, name)), {}

        def stop(*args, **options):
            bound = signature.bind(*args, **options)
            found.update(bound.arguments | bound.arguments.pop("options", {}))
            raise Arrived

        monkeypatch.setattr(owner, name, stop)
        with pytest.raises(Arrived):
            run(*line)
        return found

    return call


def made(folder, *model):
    """Moments and a basis, by what the lines of tests call them."""
    works("collect", "--hook", POINT, *FEW, *model, "--out", folder / "run")
    works("basis", folder / "run", "--method", "pca", "--out", folder / "bases")
    return {
        "MOMENTS": folder / "run" / "moments.safetensors",
        "BASIS": folder / "bases" / f"{POINT}.pca.safetensors",
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return made(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def files_of_slips(tmp_path_factory):
    return made(tmp_path_factory.mktemp("files"), "--model", "embedded-slips")


BASIS = ["basis", "MOMENTS", "--hook", POINT, "--center", "none"]
CASES = [
    (
        [
            "collect", *COUNTED, "--hook", POINT, "--objective", "fisher", "--objective", "logits",
            "--samples", "3", "--row-metric", "diagonal", "--per-head", "--recompute",
            "--checkpoint-every", "7", "--seed", "11", "--sums-dtype", "float32", "--sums-device", "cpu",
            "--precision", "tf32",
        ],
        "streaming.one_pass:collect",
        {
            **WHOLE, "hook_points": [POINT], "row_metric": "diagonal", "per_head": True,
            "recompute": True, "checkpoint_every": 7, "sums_dtype": "float32", "sums_device": "cpu",
            "precision": "tf32",
            "objective": "{'fisher': sampled_token_loss(n_samples=3, seed=11), "
            "'logits': logit_probe(n_probes=3, seed=11)}",
        },
    ),
    (
        ["collect", "--plan", "--hook", POINT, "--batch-size", "3", "--context-length", "9"],
        "streaming.plan:plan",
        {"shape": (3, 9)},
    ),
    ([*BASIS, "--method", "pca"], "bases.principal_components:pca", {"center": False}),
    ([*BASIS, "--method", "weighted"], "bases.principal_components:weighted_pca", {"center": False}),
    ([*BASIS, "--method", "gradient"], "bases.principal_components:gradient_pca", {"center": False}),
    (
        [*BASIS, "--method", "metric", "--damping", "0.5"],
        "bases.principal_components:metric_pca",
        {"center": False, "damping": 0.5},
    ),
    (
        [*BASIS, "--method", "random", "--seed", "11"],
        "bases.principal_components:random_basis",
        {"center": False, "seed": 11},
    ),
    ([*BASIS, "--method", "path", "--rounds", "2", *COUNTED], "fitted.path_gradients:path_metric", WHOLE),
    (
        [*BASIS, "--method", "joint", "--seed", "11", *SLICED],
        "fitted.joint:joint_pca",
        {"center": False, "seed": 11},
    ),
    (
        [*BASIS, "--method", "joint", "--seed", "11", *COUNTED],
        "streaming.pairs:stream_pairs",
        {"hook_points": POINT, **{k: v for k, v in WHOLE.items() if k != "progress"}},
    ),
    (
        [*BASIS, "--method", "trained", "--steps", "9", "--seed", "11", *COUNTED],
        "fitted.trained:optimize_basis",
        {**WHOLE, "k": None, "steps": 9, "seed": 11},
    ),
    (
        ["ablate", "BASIS", *COUNTED, "--ranks", "3,9", "--score", "kl", "--anywhere"],
        "ablation.node_ablation:ablation_curves",
        {**WHOLE, "ranks": [3, 9], "score": "kl", "hook_point": POINT, "anywhere": True},
    ),
    (
        [
            "cards", "BASIS", *COUNTED, "-n", "3", "--contexts", "5", "--no-ablation", "--seed", "11",
            "--compare", "BASIS", "--prompt", "Once upon",
        ],
        "feature_cards:cards",
        {**WHOLE, "n": 3, "contexts": 5, "score": None, "seed": 11},
    ),
    (
        ["svd", "--circuit", "QK", "--head", "1.2", "--directions", "3", "--words", "5"],
        "cli.svd:_read",
        {"circuit": "QK", "layer": 1, "number": 2, "directions": 3, "words": 5},
    ),
    (
        [
            "ansatz", *SLICED, "--layer", "2", "--objective", "fisher", "--samples", "3",
            "--folded", "--seed", "11",
        ],
        "ansatz.model_ansatz:feature_ansatz",
        {
            **ARRIVED, "layers": [2], "folded": True, "objective": "sampled_token_loss(n_samples=3, seed=11)",
        },
    ),
    (
        [
            "interaction", *SLICED, "--hook", "blocks.1.hook_resid_post", "--hook", POINT,
            "--probes", "3", "--seed", "11",
        ],
        "interaction.local_basis:local_interaction_basis",
        {
            **ARRIVED, "hook_points": ["blocks.1.hook_resid_post", POINT], "n_probes": 3, "seed": 11,
        },
    ),
    (
        [
            "interaction", *SLICED, "--hook", "blocks.[12].hook_resid_post", "--probes", "1",
            "--edge-tokens", "99", "--seed", "11",
        ],
        "interaction.local_basis:interaction_edges",
        {**ARRIVED, "max_tokens": 99, "seed": 11},
    ),
    (
        [
            "interaction", *SLICED, "--hook", "blocks.[12].hook_resid_post", "--probes", "1",
            "--edge-tokens", "99", "--share", "0.5",
        ],
        "interaction.graph:InteractionGraph.to_pandas",
        {"share": 0.5},
    ),
    (
        [
            "dictionary", *SLICED, "--hook", "blocks.1.hook_resid_post", "--features", "32",
            "--n-tokens", "3000", "--kind", "relu", "--sparsity", "0.2", "--attribution", "0.3",
            "--unexplained", "0.4", "--penalty", "log", "--seed", "11",
        ],
        "dictionary:train_dictionary",
        {
            **ARRIVED, "max_tokens": None, "hook_point": "blocks.1.hook_resid_post",
            "n_features": 32, "n_tokens": 3000, "kind": "relu", "basis": None,
            "recipe": Recipe(
                sparsity=0.2, attribution=0.3, unexplained=0.4, penalty="log", seed=11
            ),
        },
    ),
    (
        [
            "dictionary", *SLICED, "--features", "8", "--n-tokens", "1024", "--start", "BASIS",
            "--heldout", "HELDOUT",
        ],
        "dictionary:evaluate_dictionary",
        {**ARRIVED, "progress": None},
    ),
    (
        [
            "map", *COUNTED, "--hook", POINT, "--basis", "random", "--tolerance", "0.3", "--shares", "0.5,1",
            "--score", "kl", "--heldout-tokens", "99", "--checkpoint-every", "7",
        ],
        "model_map.measurement:dimension_map",
        {
            **WHOLE, "hook_points": [POINT], "bases": ["random"], "tolerance": 0.3, "shares": [0.5, 1.0],
            "score": "kl", "heldout_tokens": 99, "checkpoint_every": 7,
        },
    ),
    (
        ["map", *SLICED, "--hook", POINT, "--heldout", "HELDOUT"],
        "model_map.measurement:dimension_map",
        ARRIVED,
    ),
    (
        [
            "demo", "--hook", "blocks.1.hook_resid_post", "--stories", "9", "--heldout", "4",
            "--ranks", "3,9", "--batch-size", "5", "--seed", "11", "--slips", "--no-progress", "--all",
            "--steps", "7",
        ],
        "cli.demo_run:run_demo",
        {
            "hook_point": "blocks.1.hook_resid_post", "ranks": [3, 9], "batch_size": 5, "seed": 11,
            "progress": False, "every": True, "steps": 7,
        },
    ),
]  # fmt: skip


def options_of(name):
    """A command's options, by what the command calls them."""
    return {p.name: p for p in COMMANDS[name].params if p.name not in ABOUT_THE_FOLDER}


@pytest.mark.parametrize(
    ("line", "target", "expected"), CASES, ids=[f"{line[0]}-{t}" for line, t, _ in CASES]
)
def test_an_option_arrives(tmp_path, files, arguments_of, line, target, expected):
    (tmp_path / "x.txt").write_text("\n\n".join(["Once upon a time there lived a boy."] * 9))
    files = {**files, "HELDOUT": tmp_path / "x.txt"}
    line = [files.get(part, part) for part in line]
    found = arguments_of([*line, "--out", tmp_path / "out"], target)
    for name, value in expected.items():
        arrived = found.get(name)
        assert (str(arrived) if isinstance(value, str) else arrived) == value, name


def test_lines_above_have_every_option():
    for name in {*COMMANDS} - {"info"}:
        used = {part for line, _, _ in CASES if line[0] == name for part in line}
        for option in options_of(name).values():
            given = {*option.opts, *option.secondary_opts} & used
            shared = (
                option.name in {*MODEL, *TEXT, "interactive"}
                or option.param_type_name == "argument"
            )
            assert given or shared, (name, option.name)


@pytest.mark.parametrize("name", [n for n in COMMANDS if "model_class" in options_of(n)])
def test_a_model_arrives(tmp_path, files, arguments_of, name):
    import torch

    line = next(line for line, _, _ in reversed(CASES) if line[0] == name and "HELDOUT" not in line)
    line = [files.get(part, part) for part in line]
    if name == "basis":
        line = ["basis", files["MOMENTS"], "--method", "path"]
    mine = {key: MODEL[key] for key in MODEL if key in options_of(name)}
    if "dataset" in options_of(name):
        line += ["--dataset", "some/where"]
    for key, value in mine.items():
        line += [f"--{key.replace('_', '-')}", value]
    found = arguments_of([*line, "--out", tmp_path / "out"], "models.pretrained:load_pretrained")
    expected = {"model_class": "TransformerBridge"}
    if "model" in mine:
        expected |= {"name": "gpt2", "device": "cuda:5", "dtype": torch.bfloat16}
    assert expected.items() <= found.items()


def line_of(name, files):
    """The least that a command which reads text asks for."""
    inputs = {
        "basis": [files["MOMENTS"], "--method", "path"],
        "ablate": [files["BASIS"]],
        "cards": [files["BASIS"]],
    }
    return [name, *inputs.get(name, [])]


@pytest.mark.parametrize("name", [n for n in COMMANDS if "dataset" in options_of(n)])
def test_text_arrives(tmp_path, files, arguments_of, name):
    line = line_of(name, files)
    for key, value in TEXT.items():
        if key != "sample_by":  # which is refused, for the hub
            line += [f"--{key.replace('_', '-')}", value]
    found = arguments_of([*line, "--out", tmp_path / "out"], "data.text:tokenized_text")
    assert found["source"] == "some/where" and found["split"] == "validation"
    assert found["config"] == "en" and found["column"] == "body"
    assert found["context_length"] == 77


@pytest.mark.parametrize("name", [n for n in COMMANDS if "dataset" in options_of(n)])
def test_the_model_of_stories_with_slips_reads_those(tmp_path, files_of_slips, arguments_of, name):
    line = line_of(name, files_of_slips)
    line += ["--model", "embedded-slips", "--out", tmp_path / "out"]
    assert arguments_of(line, "embedded:stories")["slips"] is True


def test_what_makes_a_text_arrives(tmp_path, arguments_of):
    (tmp_path / "x.txt").write_text("Once")
    line = ["collect", "--dataset", tmp_path / "x.txt", "--sample-by", "line", "--out", "out"]
    assert arguments_of(line, "data.text:tokenized_text")["sample_by"] == "line"
