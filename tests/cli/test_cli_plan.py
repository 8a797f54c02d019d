"""`collect --plan`: what it tells, and that it writes nothing."""

import re

from command_line import FEW, ON_CPU, plain, run, works

import tl_weighted_pca as wpca


def test_the_plan_is_told_and_nothing_written(tmp_path):
    options = ["--hook", "blocks.1.hook_resid_post", "--batch-size", "2", *FEW, *ON_CPU]
    said = works("collect", "--plan", *options, "--out", tmp_path / "run")
    assert not list(tmp_path.iterdir())
    works("collect", *options, "--out", tmp_path / "run")
    stats = wpca.Collection.load(tmp_path / "run" / "moments.safetensors")
    moments = stats["blocks.1.hook_resid_post"]
    parts = (moments.activation, moments.gradient, moments.weighted)
    held = sum(part.packed_second.flat.nbytes for part in parts) / 1000
    assert f"sums at 1 hook point {held:.3g} kB cpu" in said
    assert re.search(r"graph of a batch, 2 × 128 tokens [\d.]+ MB cpu", said)
    assert re.search(r"[\d,]+ tokens a second, so 1,500 tokens take about \d+ seconds", said)


def test_the_configuration_alone(tmp_path):
    options = ["--dtype", "bfloat16", "--sums-dtype", "float32", "--out", tmp_path / "run"]
    said = works("collect", "--plan", "--device", "meta", "--recompute", *options)
    assert re.search(r"weights \d+ kB meta", said) and "together" in said and "second," not in said
    result = run("collect", "--device", "meta", *FEW, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "On the device meta there are no weights: it goes with collect --plan" in plain(
        result.output
    )
