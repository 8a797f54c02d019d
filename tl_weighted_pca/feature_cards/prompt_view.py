"""A text, token by token: which components are strong there, and which move a token's logit."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_weighted_pca.data.batches import Batch
from tl_weighted_pca.data.positions import Outliers, Positions
from tl_weighted_pca.feature_cards.components import Components
from tl_weighted_pca.feature_cards.token_text import TokenText
from tl_weighted_pca.models.downstream import Downstream
from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.run import Run
from tl_weighted_pca.objectives.losses import language_logits

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class PromptView:
    """At each token s: z_i(s), and ℓ_s(v) − ℓ_s(v | z_i ablated), v being the token asked about.

    Logits are less their mean over the vocabulary, which softmax does not see. A component is ablated to
    the centre at all positions that count, so that an effect includes what later layers read of earlier
    positions.
    """

    tokens: list[str]
    """The text, one by one."""
    targets: list[str]
    """v at each position: the next token by default, and at the last what the model finds likeliest."""
    logits: Float[Tensor, " pos"]
    """ℓ_s(v) of the unablated model."""
    coordinates: Float[Tensor, "pos n"]
    """z_i; NaN at positions that do not count."""
    effects: Float[Tensor, "pos n"]
    """By how much component i raises ℓ_s(v)."""
    deviations: Float[Tensor, " n"]
    """The standard deviation of z_i over the cards' data: what is large for it."""
    labels: list[str]
    """The components' names."""

    def strongest(self, position: int, count: int = 5) -> list[tuple[int, float]]:
        """The components with the largest |z_i| / σ_i there, and their z_i."""
        z = self.coordinates[position]
        return _largest((z / self.deviations.clamp(min=1e-300)).abs(), z, count)

    def most_effective(self, position: int, count: int = 5) -> list[tuple[int, float]]:
        """The components with the largest effect there, of either sign."""
        return _largest(self.effects[position].abs(), self.effects[position], count)

    def to_pandas(self) -> pd.DataFrame:
        """One row a token and component."""
        import pandas as pd

        positions, n = self.coordinates.shape
        at = [s for s in range(positions) for _ in range(n)]
        return pd.DataFrame(
            {
                "position": at,
                "token": [self.tokens[s] for s in at],
                "target": [self.targets[s] for s in at],
                "logit": [float(self.logits[s]) for s in at],
                "component": self.labels * positions,
                "coordinate": self.coordinates.flatten().tolist(),
                "effect": self.effects.flatten().tolist(),
            }
        )

    def __repr__(self) -> str:
        return f"PromptView({len(self.tokens)} tokens, {len(self.labels)} components)"

    def _repr_html_(self) -> str:
        from tl_weighted_pca.feature_cards.page import prompt_page

        return (
            '<iframe title="Prompt" style="width:100%;height:30rem;border:1px solid #8884" '
            f'srcdoc="{html.escape(prompt_page(self))}"></iframe>'
        )


def prompt_view(
    model: Any,
    text: str | Int[Tensor, " pos"],
    components: Components,
    hook_point: str,
    deviations: Float[Tensor, " n"],
    *,
    token: str | int | None = None,
    positions: Positions = None,
    outliers: float | None = None,
    tokenizer: Any = None,
) -> PromptView:
    """Run one text, then once more for each component ablated; see `FeatureCards.prompt`."""
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    ids = prompt_ids(model, text)
    batch = Batch(ids[None], None, torch.zeros(1, dtype=torch.long, device="cpu"))
    seen: list[Tensor] = []

    def look(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor

    with quiet(model, gradients=False):
        downstream = Downstream(model, hook_point, positions, Outliers.checked(outliers))
        run = downstream.start(batch)
        targets = _targets(run, token, tokenizer)
        logits = _logits_of(run, run.output, targets)
        downstream.resume(look)
        effects = [
            logits - _logits_of(run, downstream.resume(components.removal(i)), targets)
            for i in range(len(components))
        ]
        z = components.coordinates(seen[0])[0].double().cpu()
        counted = downstream.counted(hook_point, seen[0])[0].cpu()
    z = z.masked_fill(~counted[:, None], torch.nan)
    words = TokenText(tokenizer)
    return PromptView(
        tokens=words(ids.tolist()), targets=words(targets.tolist()), logits=logits, coordinates=z,
        effects=torch.stack(effects, 1), deviations=deviations, labels=components.names,
    )  # fmt: skip


def prompt_ids(model: Any, text: str | Tensor) -> Int[Tensor, " pos"]:
    """A text as the model's own tokens, or the ids that were given.

    Raises:
        ValueError: for neither, or a text longer than the model's context.
    """
    is_text = isinstance(text, str)
    ids = model.to_tokens(text, truncate=False) if is_text else torch.as_tensor(text)
    ids = ids.detach().cpu().flatten()
    if not len(ids) or ids.is_floating_point() or (is_text and not str(text).strip()):
        raise ValueError(f"The prompt is {text!r}; expected a text, or its token ids.")
    if is_text and len(ids) > (most := model.cfg.n_ctx):
        raise ValueError(
            f"The prompt is {len(ids)} tokens, but the model takes at most {most}: shorten it."
        )
    return ids.long()


def _targets(run: Run, token: str | int | None, tokenizer: Any) -> Int[Tensor, " pos"]:
    """The token asked about at each position."""
    logits = language_logits(run, at_least=1)[0]
    if token is None:
        return torch.cat([run.inputs[0, 1:].long(), logits[-1].argmax()[None]]).cpu()
    if isinstance(token, str):
        ids = tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(
                f"token={token!r} is {len(ids)} tokens for this tokenizer; expected one: mind the "
                "space before a word, or pass the token's id."
            )
        token = int(ids[0])
    if not 0 <= token < logits.shape[-1]:
        raise ValueError(f"token is {token}; the model's vocabulary is 0..{logits.shape[-1] - 1}.")
    return torch.full((len(logits),), token, device="cpu")


def _logits_of(run: Run, output: Any, targets: Tensor) -> Float[Tensor, " pos"]:
    """ℓ_s(v) less the mean over the vocabulary."""
    edited = Run(output, run.inputs, run.mask, run.sequence_index)
    logits = language_logits(edited, at_least=1)[0].double().cpu()
    return logits.gather(1, targets[:, None])[:, 0] - logits.mean(1)


def _largest(size: Tensor, values: Tensor, count: int) -> list[tuple[int, float]]:
    order = size.nan_to_num(nan=-1.0).argsort(descending=True, stable=True)[:count].tolist()
    return [(i, float(values[i])) for i in order if not bool(values[i].isnan())]
