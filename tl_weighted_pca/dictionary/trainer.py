"""Steps of training on rows that are already there: what streaming and sweeps share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.dictionary.autoencoder import SparseAutoencoder
from tl_weighted_pca.dictionary.recipe import Losses, Recipe, Units, losses


class Trainer:
    """Adam on a `Recipe`, with unit-norm decoder rows and a new start for dead features.

    The dictionary lives in the units of the stream while it trains; `finished` gives it in those of
    the model.

    Args:
        dictionary: where to start, in the units of the stream. It is changed in place.
        recipe: what to train for.
        units: of the stream.
        n_steps: of the whole schedule.
    """

    def __init__(
        self, dictionary: SparseAutoencoder, recipe: Recipe, units: Units, n_steps: int
    ) -> None:
        self.dictionary, self.recipe, self.units, self.n_steps = dictionary, recipe, units, n_steps
        self.step_number = 0
        # E‖x‖² = 1 in the units of the stream, so a coordinate's mean square is 1/d.
        dictionary.unit = recipe.unit * dictionary.width**0.5
        self.optimizer = torch.optim.Adam(dictionary.parameters())
        device = dictionary.W_dec.device
        self.fired = torch.zeros(dictionary.n_features, device=device)
        every = int(recipe.resample * n_steps / recipe.resample_times)
        self._resample_at = (
            {every * (i + 1) for i in range(recipe.resample_times)} if every else set()
        )

    def step(
        self, x: Float[Tensor, "tokens d"], g: Float[Tensor, "tokens d"] | None = None
    ) -> Losses:
        """One step on raw activations and gradients."""
        recipe, dictionary = self.recipe, self.dictionary
        done = self.step_number / self.n_steps
        x = self.units.activations(x)
        g = None if g is None else self.units.gradients(g, recipe.attribution_unit)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(done)
        with torch.enable_grad():
            terms, f = losses(dictionary, x, g, recipe)
            self.optimizer.zero_grad(set_to_none=True)
            terms.total(recipe, recipe.warm(done)).backward()
        self._keep_to_sphere()
        self.optimizer.step()
        dictionary.normalize_decoder()
        with torch.no_grad():
            self.fired += (f > 0).sum(0)
            self.step_number += 1
            if self.step_number in self._resample_at:
                self._resample(x, f)
                self.fired.zero_()
        return terms

    @torch.no_grad()
    def _keep_to_sphere(self) -> None:
        """Take from the decoder's gradient what would only change its rows' lengths."""
        W, gradient = self.dictionary.W_dec, self.dictionary.W_dec.grad
        assert gradient is not None
        gradient -= (gradient * W).sum(1, keepdim=True) * W

    @torch.no_grad()
    def _resample(self, x: Float[Tensor, "tokens d"], f: Float[Tensor, "tokens features"]) -> None:
        """Start features that have not fired again, on what is reconstructed worst.

        A dead feature takes the direction of the error of a token drawn in proportion to its squared
        error, and the threshold zero.
        """
        dead = (self.fired == 0).nonzero().squeeze(1)
        if not len(dead):
            return
        dictionary = self.dictionary
        error = x - dictionary.decode(f)
        chances = error.square().sum(1).cpu().double()
        if float(chances.sum()) <= 0:
            return
        # Seeded by the step, so that a run that resumes draws what it would have drawn.
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step_number)
        tokens = torch.multinomial(chances, len(dead), replacement=True, generator=generator)
        directions = error[tokens.to(x.device)]
        directions = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-12)
        alive = self.fired > 0
        length = dictionary.W_enc[:, alive].norm(dim=0).mean() if bool(alive.any()) else 1.0
        dictionary.W_dec[dead] = directions
        dictionary.W_enc[:, dead] = 0.2 * length * directions.T
        dictionary.b_enc[dead] = 0.0
        for parameter, where in (
            (dictionary.W_dec, (dead,)),
            (dictionary.W_enc, (slice(None), dead)),
            (dictionary.b_enc, (dead,)),
        ):
            state = self.optimizer.state[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                state[name][where] = 0.0

    def state(self) -> dict[str, Tensor]:
        """Everything that a later `restore` needs, but the recipe and the units."""
        tensors = {f"weights/{k}": v for k, v in self.dictionary.state_dict().items()}
        for name, parameter in self.dictionary.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam/{name}/{key}"] = value
        return tensors | {"fired": self.fired, "step": torch.tensor(self.step_number, device="cpu")}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        weights = {k.removeprefix("weights/"): v for k, v in tensors.items() if "weights/" in k}
        self.dictionary.load_state_dict(weights)
        for name, parameter in self.dictionary.named_parameters():
            prefix = f"adam/{name}/"
            self.optimizer.state[parameter] = {
                k.removeprefix(prefix): v.to(parameter.device) if v.ndim else v.clone()
                for k, v in tensors.items()
                if k.startswith(prefix)
            }
        self.fired = tensors["fired"].to(self.fired)
        self.step_number = int(tensors["step"])

    def finished(self) -> SparseAutoencoder:
        """The dictionary in the model's own units."""
        return self.dictionary.in_units(self.units.scale, self.units.center)
