"""Dictionaries at one hook point of one model: rows cached once, then any kind trained and scored on them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tl_weighted_pca as wpca
from helpers.dictionary_references import Reference, reference
from helpers.page import made_on
from tl_weighted_pca.ablation.scores import Scorer
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.dictionary import Recipe, SparseAutoencoder, Trainer, Units
from tl_weighted_pca.dictionary.scores import CodeSums
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.moments.second_moment import Moments, SecondMoment

POSITIONS = slice(1, None)


class Bench:
    """A model, its activations and gradients at a hook point, and how to train and score on them.

    Args:
        model: the model.
        hook_point: where.
        train: sequences to train on.
        heldout: others, to score on: one batch of the model.
        features: of every dictionary.
        steps: of every training.
        batch_size: sequences a batch, while rows are made.
        keep: files for the rows of both, which are then made once.
    """

    def __init__(
        self,
        model: Any,
        hook_point: str,
        train: Any,
        heldout: Any,
        *,
        features: int,
        steps: int,
        batch_size: int = 32,
        keep: tuple[Path | None, Path | None] = (None, None),
    ) -> None:
        self.model, self.hook_point = model, hook_point
        self.features, self.steps = features, steps
        self.x, self.g = self._rows(train, batch_size, keep[0])
        self.held_x, self.held_g = self._rows(heldout, batch_size, keep[1])
        self.moments = Moments(_second(self.x), _second(self.g), None, len(self.x), len(train))
        self.units = Units.of(self.moments)
        with quiet(model, gradients=False):
            self.downstream = Downstream(model, hook_point, POSITIONS)
            (batch,) = batches(heldout, len(heldout))
            self.run = self.downstream.start(batch)
            self.clean = self._scored("loss", lambda x: x)
            self.ablated, self.ablated_kl = (
                self._scored(what, lambda x: self.units.center.expand_as(x))
                for what in ("loss", "kl")
            )

    def _rows(self, data: Any, batch_size: int, file: Path | None) -> tuple[Tensor, Tensor]:
        if file is not None and file.exists():
            kept = load_file(file)
            return kept["x"], kept["g"]
        options: dict[str, Any] = {"positions": POSITIONS, "batch_size": batch_size}
        stream = wpca.stream_pairs(self.model, data, self.hook_point, **options)
        rows = [pairs[self.hook_point].rows() for pairs in stream]
        x, g = torch.cat([x for x, _ in rows]), torch.cat([g[0] for _, g in rows])
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"x": x, "g": g}, file)
        return x, g

    def _scored(self, what: str, edit: Callable[[Tensor], Tensor]) -> float:
        with quiet(self.model, gradients=False):
            total, terms = torch.stack(Scorer(what)(self.run, self.downstream.resume(edit))).sum(1)
        return float(total / terms)

    def measure(self, run: dict[str, Any], batch_size: int) -> dict[str, Any]:
        """Train one dictionary, as `plan` writes it down, and score it."""
        settings = {k: v for k, v in run.items() if k not in ("part", "kind", "name")}
        if "level" in run:
            return self.score(self._reference(run["kind"], **settings, batch_size=batch_size))
        trained = self.train(run["kind"], Recipe(**settings, batch_size=batch_size))
        scores = self.score(trained)
        scores["negative"] = float((trained.biases < 0).float().mean())
        if run["part"] == "frontier" and run["seed"] == 0:
            scores["biases"] = trained.biases.tolist()
        return scores

    def _reference(
        self, kind: str, level: float, seed: int, learning_rate: float, batch_size: int
    ) -> Reference:
        generator = torch.Generator().manual_seed(seed)

        def draw() -> Tensor:
            return self.x[torch.randint(len(self.x), (batch_size,), generator=generator)]

        unit = self.units.scale / self.x.shape[1] ** 0.5
        return reference(
            kind, level, draw, self.units.center, unit,
            features=self.features, steps=self.steps, batch_size=batch_size, seed=seed,
            learning_rate=learning_rate,
        )  # fmt: skip

    def train(self, kind: str, recipe: Recipe) -> SparseAutoencoder:
        start = SparseAutoencoder(self.x.shape[1], self.features, kind, seed=recipe.seed)
        trainer = Trainer(start, recipe, self.units, self.steps)
        generator = torch.Generator().manual_seed(recipe.seed)
        for _ in range(self.steps):
            rows = torch.randint(len(self.x), (recipe.batch_size,), generator=generator)
            trainer.step(self.x[rows], self.g[rows] if recipe.needs_gradients else None)
        return trainer.finished()

    def score(self, code: Any) -> dict[str, Any]:
        """As `evaluate_dictionary` does it, on the cached rows."""
        sums = CodeSums(code)
        sums.add(self.held_x, self.held_g[None])
        recovered = (self.ablated - self._scored("loss", code)) / (self.ablated - self.clean)
        kl = self._scored("kl", code)
        with torch.no_grad():
            guess = code(self.held_x)
        return vars(sums.scores(recovered, kl)) | {
            "kl_recovered": 1 - kl / self.ablated_kl,
            "relative_reconstruction_bias": float(
                guess.square().sum() / (guess * self.held_x).sum()
            ),
        }


def _second(rows: Tensor) -> SecondMoment:
    wide = rows.double()
    return SecondMoment.about_zero(torch.tensor(len(wide)), wide.sum(0), wide.T @ wide)


def run_all(
    runs: Sequence[dict[str, Any]], out: Path, make: Callable[[], Bench], batch_size: int
) -> None:
    """Do the runs that the file of results does not have yet, and add a line for each."""
    lines = out.read_text().splitlines() if out.exists() else []
    done = [json.loads(line)["run"] for line in lines]
    todo = [run for run in runs if run not in done]
    if not todo:
        return
    bench = make()
    for number, run in enumerate(todo, 1):
        began = time.monotonic()
        scores = bench.measure(run, batch_size)
        with out.open("a") as file:
            file.write(json.dumps({"run": run, "scores": scores, "made": made_on()}) + "\n")
        print(
            f"{number}/{len(todo)} {time.monotonic() - began:5.1f} s  {run}  L0 {scores['l0']:.1f}  "
            f"loss recovered {scores['loss_recovered']:.4f}  attribution L0 "
            f"{scores['attribution_l0']:.2f}",
            flush=True,
        )
