"""Training a dictionary on a model's stream of activations and gradients."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.data.batches import is_one_shot
from tl_weighted_pca.data.positions import Positions
from tl_weighted_pca.data.progress import progress_bar
from tl_weighted_pca.dictionary.autoencoder import Kind, SparseAutoencoder, check_settings
from tl_weighted_pca.dictionary.recipe import Recipe, Units
from tl_weighted_pca.dictionary.shuffle_buffer import PairStream, Place, Rows, shuffled_blocks
from tl_weighted_pca.dictionary.trainer import Trainer
from tl_weighted_pca.models.fingerprint import fingerprint, made_at
from tl_weighted_pca.models.frozen import device_of
from tl_weighted_pca.models.hook_points import resolve_one
from tl_weighted_pca.moments.second_moment import Moments, Provenance
from tl_weighted_pca.objectives.losses import (
    Objective,
    ObjectiveName,
    checked_objective,
    objective_name,
)
from tl_weighted_pca.streaming.one_pass import collect
from tl_weighted_pca.support.callables import check_code, codes_of
from tl_weighted_pca.support.files import check_writable, reading, write_atomically

_FORMAT = "tl_weighted_pca.DictionaryCheckpoint/1"
_DEFAULT = Recipe()
_TOKENS_FOR_UNITS = 2**15
"""Enough for scales: second moments of so many tokens are good to about a percent."""


@torch.inference_mode(False)
def train_dictionary(
    model: Any,
    data: Any,
    hook_point: str,
    recipe: Recipe = _DEFAULT,
    *,
    n_features: int,
    n_tokens: int,
    kind: Kind = "prolu_relu",
    tied: bool = True,
    relu_where_positive: bool = False,
    basis: Basis | None = None,
    moments: Moments | None = None,
    objective: Objective | ObjectiveName = "loss",
    positions: Positions = None,
    batch_size: int = 16,
    buffer_tokens: int = 2**16,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> SparseAutoencoder:
    """argmin E[‖x − x̂‖² + λ₁ Σ_i p(f_i) + λ_a Σ_i p(a_i) + λ_u (g·(x − x̂))²] over dictionaries, by Adam.

    x are activations at the hook point and g the objective's gradients there, streamed from the model
    into a shuffle buffer: memory is flat in `n_tokens`. Without λ_a and λ_u no gradients are
    taken and the model runs only as far as the hook point. The terms and their units are
    those of `Recipe`. Inference mode, if the caller is in it, is left for the duration.

    Args:
        model: as for `collect`; left as it was.
        data: as for `collect`; gone through again where it is shorter than `n_tokens`, and a warning
            where that cannot be.
        hook_point: one name. [batch, pos, head, d_head] is one space of head·d_head.
        recipe: weights of the terms, and the schedule.
        n_features: m, of the dictionary.
        n_tokens: tokens to train on, which sets the length of the schedule.
        kind: "relu", "prolu_ste" or "prolu_relu".
        tied: whether the bias before the encoder is the decoder's.
        relu_where_positive: for ProLU, take ReLU where the bias is positive.
        basis: to start from, such as `pca` or `metric_pca` (see `SparseAutoencoder`).
        moments: of this hook point, for the units; by default collected from the data's beginning.
        objective: what gradients are of.
        positions: which positions to train on.
        batch_size: sequences a batch of the model (the recipe's batches are of tokens).
        buffer_tokens: rows to shuffle together.
        checkpoint: a file, written after each buffer and read, if there is one, to go on from there:
            the result is the same, to the bit, as of a run that never stopped.
        progress: show a progress bar.

    Returns:
        The dictionary, in the model's units.

    Raises:
        ValueError: for what `collect`, `Recipe` and `SparseAutoencoder` refuse; for one-shot data
            without `moments`, or with less than a batch of tokens; for a basis or moments of another
            hook point or model, or moments that lack the gradients which the recipe needs; for a
            checkpoint of another run (other settings, weights, basis or moments), or a damaged one.
        OSError: if the checkpoint cannot be written, before anything is trained or later, then with the
            dictionary so far as its attribute `dictionary`.
        NonFiniteError: on NaN or infinity, naming the hook point and the batch.
    """
    hook_point = resolve_one(model, hook_point)
    check_settings(kind, n_features=n_features, n_tokens=n_tokens, buffer_tokens=buffer_tokens)
    n_steps = n_tokens // recipe.batch_size
    if n_steps < 1:
        raise ValueError(
            f"n_tokens is {n_tokens}, less than one batch of {recipe.batch_size} tokens: train on more, "
            "or set the recipe's batch_size."
        )
    gradients = recipe.needs_gradients
    objective = checked_objective(objective)
    what = objective_name(objective) if gradients else ""
    provenance = made_at(model, hook_point, what)
    if basis is not None:
        basis.check_place(provenance)
    if moments is not None:
        _check_moments(moments, provenance)
    # What a checkpoint must agree with. The data itself is the user's word.
    run = {
        "recipe": asdict(recipe), "n_features": n_features, "n_tokens": n_tokens, "kind": kind,
        "tied": tied, "relu_where_positive": relu_where_positive,
        "provenance": asdict(replace(provenance, weights="")),
        "positions": repr(positions), "batch_size": batch_size, "buffer_tokens": buffer_tokens,
        "weights": fingerprint(model), "basis": None if basis is None else basis.digest,
    }  # fmt: skip
    if checkpoint is not None:
        run["code"] = codes_of({"objective": objective} if gradients else {})
    saved = _read(checkpoint, run)
    if checkpoint is not None and (saved is None or int(saved.tensors["step"]) < n_steps):
        check_writable(checkpoint)
    if saved is not None:
        units, place = saved.units, saved.place
        _check_units(checkpoint, units, moments)
    else:
        place = Place()
        if moments is None:
            moments = _first_moments(model, data, hook_point, objective, positions, batch_size, run)
        units = Units.of(moments)
    units = units.to(device := device_of(model))
    dictionary = SparseAutoencoder(
        len(units.center), n_features, kind, tied=tied, relu_where_positive=relu_where_positive,
        basis=basis, seed=recipe.seed, provenance=provenance,
    )  # fmt: skip
    if basis is not None:
        dictionary = dictionary.in_units(1 / units.scale, -units.center.cpu() / units.scale)
    trainer = Trainer(dictionary.to(device), recipe, units, n_steps)
    if saved is not None:
        trainer.restore(saved.tensors)
    stream = PairStream(
        model, data, hook_point, objective if gradients else None, positions, batch_size
    )
    size = recipe.batch_size
    capacity = max(1, min(buffer_tokens, n_steps * size) // size) * size
    done = size * trainer.step_number
    blocks = shuffled_blocks(stream, capacity, recipe.seed, place)
    with progress_bar("Training", "tok", n_steps * size, progress, initial=done) as bar:
        for place in _train(trainer, blocks, bar):
            if checkpoint is not None and trainer.step_number:
                _write(checkpoint, trainer, units, place, run)
    _check_done(trainer, n_tokens)
    return trainer.finished()


def _check_done(trainer: Trainer, n_tokens: int) -> None:
    """Raise ValueError if the data ended before one batch, and warn if it ended before the schedule."""
    size = trainer.recipe.batch_size
    done = trainer.step_number * size
    if not done:
        raise ValueError(
            f"The data ended before one batch of {size} tokens: pass more, or data that can be gone through "
            "again, or set the recipe's batch_size."
        )
    if trainer.step_number < trainer.n_steps:
        warnings.warn(
            f"The data ended after {done} of {n_tokens} tokens, before the schedule did: pass data that "
            "can be gone through again, or fewer n_tokens.",
            stacklevel=4,  # past the decorator
        )


def _train(trainer: Trainer, blocks: Iterator[tuple[Rows, Place]], bar: Any) -> Iterator[Place]:
    """Train until the schedule or the data ends; after each block, the place where it ended."""
    size = trainer.recipe.batch_size
    while trainer.step_number < trainer.n_steps and (block := next(blocks, None)):
        (x, g), place = block
        for start in range(0, len(x) - size + 1, size):
            if trainer.step_number == trainer.n_steps:
                break
            rows = slice(start, start + size)
            trainer.step(x[rows], None if g is None else g[rows])
            bar.update(size)
        yield place


def _check_units(checkpoint: Any, units: Units, moments: Moments | None) -> None:
    """Raise ValueError if a checkpoint's units are not those of the moments given."""
    if moments is not None and not _same(Units.of(moments), units):
        raise ValueError(
            f"The checkpoint {str(checkpoint)!r} is of another run: its units are not those of these "
            "`moments`. Remove it to start anew, or pass the moments that it was made with."
        )


def _check_moments(moments: Moments, provenance: Provenance) -> None:
    """Raise ValueError if moments are not of this model and hook point, or lack the gradients needed."""
    made = moments.provenance
    if not made.agrees_with(replace(provenance, objective="")):
        raise ValueError(
            f"These moments were collected at {made.hook_point!r} of {made.model!r}, but the dictionary is "
            f"to be trained at {provenance.hook_point!r} of {provenance.model!r}: collect them there."
        )
    if provenance.objective:
        moments.require("gradient")


def _first_moments(
    model: Any,
    data: Any,
    hook_point: str,
    objective: Objective,
    positions: Positions,
    batch_size: int,
    run: dict[str, Any],
) -> Moments:
    """Moments of the beginning of the data, enough for units."""
    if is_one_shot(data):
        raise ValueError(
            f"The data is a {type(data).__name__}, which can be gone through only once, and units are "
            "needed before training: pass `moments` of this hook point, or data such as a tensor, a "
            "DataLoader or a datasets.Dataset."
        )
    gradients = bool(run["provenance"]["objective"])
    collection = collect(
        model, data, hook_point,
        objective=objective if gradients else None,
        statistics=("activation", "gradient") if gradients else ("activation",),
        positions=positions, batch_size=batch_size, max_tokens=_TOKENS_FOR_UNITS, progress=False,
    )  # fmt: skip
    return collection[hook_point]


def _same(one: Units, other: Units) -> bool:
    scales = (one.scale, one.attribution) == (other.scale, other.attribution)
    pairs = ((one.center, other.center), (one.covariance, other.covariance))
    return scales and all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


class _Saved:
    """A checkpoint as it was read."""

    def __init__(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        self.tensors = tensors
        self.place = Place(**json.loads(metadata["place"]))
        scales = json.loads(metadata["units"])
        self.units = Units(
            tensors["units/center"], scales["scale"], tensors["units/covariance"],
            scales["attribution"],
        )  # fmt: skip


def _write(
    path: str | os.PathLike[str], trainer: Trainer, units: Units, place: Place, run: dict[str, Any]
) -> None:
    tensors = trainer.state()
    tensors |= {"units/center": units.center, "units/covariance": units.covariance}
    metadata = {
        "format": _FORMAT,
        "run": json.dumps(run),
        "place": json.dumps(asdict(place)),
        "units": json.dumps({"scale": units.scale, "attribution": units.attribution}),
    }
    try:
        write_atomically(path, tensors, metadata)
    except OSError as error:
        error.dictionary = trainer.finished()  # type: ignore[attr-defined]
        raise


def _read(path: str | os.PathLike[str] | None, run: dict[str, Any]) -> _Saved | None:
    """The checkpoint, if there is one, checked to be of this very run."""
    if path is None or not os.path.exists(path):
        return None
    with reading(path, _FORMAT, "train_dictionary(checkpoint=…)") as (tensors, metadata):
        before, now = json.loads(metadata["run"]), json.loads(json.dumps(run))
    different = [
        f"{k} (was {before.get(k)!r}, is {now[k]!r})"
        for k in now
        if before.get(k) != now[k] and k != "code"
    ]
    if different:
        raise ValueError(
            f"The checkpoint {os.fspath(path)!r} is of another run: it differs in {'; '.join(different)}. "
            "Remove it to start anew, or ask for what it was."
        )
    check_code(path, before.get("code"), now["code"])
    return _Saved(tensors, metadata)
