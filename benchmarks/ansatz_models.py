"""The ansatz on many trained networks: does W Wᵀ look like the gradients beyond its controls?

    python benchmarks/ansatz.py --models --keep .cache/ansatz --page docs/feature_ansatz.md \\
        --picture docs/images/feature-ansatz-models.png
    python benchmarks/ansatz.py --models --families depth digits     # only these
    python benchmarks/ansatz.py --models --quick                     # two networks, seconds

Every network is trained and measured once, and its rows kept in a file: a run that was cut off goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from helpers.page import folded, made_on, write_between_marks

from tl_weighted_pca import embedded, logit_probe, next_token_loss
from tl_weighted_pca.ansatz import feature_ansatz
from tl_weighted_pca.models.pretrained import load_pretrained
from tl_weighted_pca.objectives import classification_loss, squared_error
from tl_weighted_pca.support.figure import PALETTE, new_figure, plain
from tl_weighted_pca.toy import HookedMLP, low_rank_regression, modular_addition, train
from tl_weighted_pca.toy import square_network as x_squared
from tl_weighted_pca.toy.square_network import wave

ACTIVATIONS = {"ReLU": torch.relu, "GELU": torch.nn.functional.gelu, "tanh": torch.tanh}
OPTIMIZERS = {
    "Adam": {},
    "weight decay": {"weight_decay": 0.1},
    "SGD": {
        "optimizer": partial(torch.optim.SGD, momentum=0.9),
        "learning_rate": 1e-2,
    },
}
CONTROLS = ["identity", "rotated", "replaced", "other_layers"]
SHOWN = ["cosine", *CONTROLS, "captured", "tight_before", "tight_after"]
QUICK = {"depth": "depth 2, ReLU", "x²": "seed 0"}
Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Inputs and targets to train on, then those to measure on."""


@dataclass(frozen=True)
class Network:
    """How to get one network's rows."""

    family: str
    name: str
    measure: Callable[[], pd.DataFrame]


def networks(keep: Path | None, stories: int) -> list[Network]:
    """All of them; the GPTs along training where `keep` has a folder `training` of theirs."""
    regression, labels, digits = _regression(), _labels(), _digits
    found = [
        Network("depth", f"depth {depth}, {name}", _mlp(regression, [64] * (depth - 1), name))
        for depth in (2, 3, 4, 6)
        for name in ACTIVATIONS
    ]
    found += [Network("width", f"width {w}", _mlp(regression, [w, w])) for w in (32, 128, 256, 512)]
    for loss, data in (("squared error", regression), ("cross-entropy", labels)):
        found += [
            Network("optimizer", f"{loss}, {name}", _mlp(data, [64, 64], **options))
            for name, options in OPTIMIZERS.items()
        ]
    found += [
        Network("rank of the target", f"rank {rank}", _mlp(_linear(rank), [64, 64]))
        for rank in (1, 4, 16)
    ]
    found += [
        Network("modular addition", name, _mlp(_modular(), [128], name, weight_decay=0.1))
        for name in ACTIVATIONS
    ]
    for loss in ("cross-entropy", "squared error"):
        found += [
            Network(
                "digits", f"{loss}, depth {depth}", _mlp(partial(digits, loss), [64] * (depth - 1))
            )
            for depth in (2, 3, 4)
        ]
    found += [Network("x²", f"seed {seed}", partial(_square, seed)) for seed in range(3)]
    for slips in (False, True):
        name = "noisy stories" if slips else "plain stories"
        found.append(Network("embedded GPT", name, partial(_embedded, slips, stories)))
    training = None if keep is None else keep / "training"
    kept = training.glob("step-*") if training and training.exists() else []
    for folder in sorted(kept, key=lambda each: int(each.name.removeprefix("step-"))):
        name = folder.name.replace("-", " ")
        found.append(Network("GPT in training", name, partial(_trained, folder, stories)))
    found.append(Network("SmolLM2-135M", "all 30 layers", _smollm2))
    found.append(Network("BERT encoder", "MiniLM, all 6 layers", _minilm))
    return found


def _mlp(
    data: Data | Callable[[], Data], hidden: Sequence[int], activation: str = "ReLU", **options: Any
) -> Callable[[], pd.DataFrame]:
    def measure() -> pd.DataFrame:
        x, y, fresh, target = data() if callable(data) else data
        labels = not y.is_floating_point()
        outputs = int(y.max()) + 1 if labels else y.shape[1]
        model = HookedMLP([x.shape[1], *hidden, outputs], ACTIVATIONS[activation], scale=0.7)
        settings = {"steps": 600, "batch_size": 128, "learning_rate": 3e-3, **options}
        loss = train(model, x, y, **settings)
        objective = classification_loss(target) if labels else squared_error(target)
        return _table(model, fresh, objective, batch_size=1000).assign(training_loss=loss)

    return measure


def _table(model: Any, data: Any, loss: Any, **options: Any) -> pd.DataFrame:
    objectives = {"output": logit_probe(), "loss": loss}
    return feature_ansatz(model, data, objective=objectives, progress=False, **options).to_pandas()


def _regression() -> Data:
    x, y = low_rank_regression(3000)
    return x[:2000], y[:2000], x[2000:], y[2000:]


def _labels() -> Data:
    """Eight classes: the signs of three directions of 32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 32, generator=generator)
    u = torch.linalg.qr(torch.randn(32, 3, generator=generator)).Q
    y = ((x @ u > 0) * torch.tensor([1, 2, 4])).sum(1)
    return x[:2000], y[:2000], x[2000:], y[2000:]


def _linear(rank: int) -> Data:
    """Sixteen outputs, a linear map of that rank of 32 inputs."""
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(3000, 32, generator=generator)
    factors = [torch.randn(n, rank, generator=generator) / n**0.5 for n in (32, 16)]
    y = x @ factors[0] @ factors[1].T
    return x[:2000], y[:2000], x[2000:], y[2000:]


def _modular() -> Data:
    x, y = modular_addition()
    return x, y, x, y


def _digits(loss: str) -> Data:
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = (x / 16).float()[order], y.long()[order]
    y = y if loss == "cross-entropy" else torch.nn.functional.one_hot(y).float()
    return x[:1400], y[:1400], x[1400:], y[1400:]


def _square(seed: int) -> pd.DataFrame:
    network = x_squared(seed=seed, steps=1000, second=wave)
    table = _table(network.model, network.x, squared_error(network.y), batch_size=600)
    return table.assign(training_loss=network.error)


def _embedded(slips: bool, stories: int) -> pd.DataFrame:
    return _gpt(embedded.load_model(slips=slips), embedded.stories("heldout", stories, slips=slips))


def _trained(folder: Path, stories: int) -> pd.DataFrame:
    return _gpt(load_pretrained(str(folder), device="cpu"), embedded.stories("heldout", stories))


def _gpt(model: Any, data: Any) -> pd.DataFrame:
    return _table(model, data, next_token_loss, batch_size=32)


def _smollm2() -> pd.DataFrame:
    """Six layers at a time, for memory: the other layers of a control are the other five."""
    from real_model import sequences, smollm2

    model = smollm2()
    _, heldout = sequences(model.tokenizer, 128)
    options = {"batch_size": 4, "max_width": 2048}
    six = [list(range(first, first + 6)) for first in range(0, 30, 6)]
    tables = [_table(model, heldout[:40], next_token_loss, layers=each, **options) for each in six]
    return pd.concat(tables, ignore_index=True)


def _minilm() -> pd.DataFrame:
    """Its output is an embedding, and it has no loss of its own."""
    from helpers.encoder import EmbeddingProbe, minilm
    from real_model import sequences

    model = minilm()
    _, heldout = sequences(model.tokenizer, 128)
    found = feature_ansatz(
        model, heldout[:40], objective={"output": EmbeddingProbe()}, layers=list(range(6)),
        batch_size=4, progress=False,
    )  # fmt: skip
    return found.to_pandas()


def measured(keep: Path | None, families: Sequence[str], quick: bool, stories: int) -> pd.DataFrame:
    """The rows of all networks asked for; those that are kept are not made again."""
    tables = []
    for network in networks(keep, stories):
        if quick and QUICK.get(network.family) != network.name:
            continue
        if families and network.family not in families:
            continue
        name = f"{network.family}, {network.name}".replace(" ", "-").replace(",", "")
        file = None if keep is None or quick else keep / f"{name}.csv"
        if file is not None and file.exists():
            tables.append(pd.read_csv(file))
            continue
        began = time.process_time()
        table = network.measure().assign(family=network.family, network=network.name)
        tables.append(table)
        print(f"{network.family}, {network.name}: {time.process_time() - began:.1f} s", flush=True)
        if file is not None:
            keep.mkdir(parents=True, exist_ok=True)
            table.to_csv(file.with_suffix(".partial"), index=False)
            file.with_suffix(".partial").rename(file)
    return pd.concat(tables, ignore_index=True)


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with a pre-activation of their own, and whether their cosine is above every control's."""
    table = table[table["replaced"].notna()]
    beyond = table["cosine"] > table[CONTROLS].max(axis=1)
    # With K ∝ I, as at the outputs under their own gradient or for one output, AGOP ∝ W Wᵀ for any W.
    trivial = (table["tight_before"] > 0.98) | (table["d_in"] == 1)
    return table[~trivial].assign(beyond=beyond)


def page(table: pd.DataFrame) -> list[str]:
    """A line a family and gradient, and folded away a line a network."""
    table = judged(table)
    by_family = _markdown(table, ["family", "objective"], networks=True)
    return [
        *by_family,
        *folded("By network", _markdown(table, ["family", "network", "objective"])),
        "",
        made_on(),
    ]


def _markdown(table: pd.DataFrame, by: list[str], *, networks: bool = False) -> list[str]:
    heads = [*by, *(["networks"] if networks else []), "weights", *SHOWN, "beyond controls"]
    lines = [
        "| " + " | ".join(h.replace("_", " ") for h in heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for key, rows in table.groupby(by, sort=False):
        counts = [str(rows["network"].nunique())] if networks else []
        figures = ["–" if pd.isna(v) else f"{v:.2f}" for v in rows[SHOWN].mean()]
        beyond = f"{rows['beyond'].sum()} of {len(rows)}"
        lines.append("| " + " | ".join([*key, *counts, str(len(rows)), *figures, beyond]) + " |")
    return lines


def picture(table: pd.DataFrame) -> Any:
    """Cosine against the replacement's, a dot a weight."""
    table = judged(table)
    figure = new_figure((8.6, 4.0))
    families = list(dict.fromkeys(table["family"]))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, objective in zip(panels, ("output", "loss"), strict=True):
        plain(ax)
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for i, family in enumerate(families):
            rows = table[(table["family"] == family) & (table["objective"] == objective)]
            ax.scatter(
                rows["replaced"], rows["cosine"], s=22, alpha=0.75, label=family,
                color=PALETTE[i % len(PALETTE)], marker="o^"[i // len(PALETTE)], linewidths=0,
            )  # fmt: skip
        ax.set(title=f"gradients of the {objective}", xlabel="cosine of a random W̃ of W's spectrum")
    panels[0].set_ylabel("cosine of W Wᵀ and the AGOP")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def run(arguments: Any) -> None:
    """`--models`."""
    table = measured(arguments.keep, arguments.families, arguments.quick, arguments.stories)
    lines = page(table)
    print("\n".join(lines))
    if arguments.page:
        write_between_marks(arguments.page, "models", lines)
    if arguments.picture:
        picture(table).savefig(arguments.picture, dpi=150)
