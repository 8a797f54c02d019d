"""What an ablated run is scored by: the loss, the divergence from the unablated model, or one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.models.run import Run
from tl_weighted_pca.objectives.losses import counted_targets, language_logits, target_losses

Score = Literal["loss", "kl"] | Callable[[Run], Float[Tensor, " batch"]]
"""Next-token loss, KL divergence from the unablated model, or a callable of the run."""


class Scorer:
    """A score of a run, summed over each sequence, and the number of terms in each sum."""

    def __init__(self, score: Score) -> None:
        if not callable(score) and score not in ("loss", "kl"):
            raise ValueError(f"score is {score!r}; expected 'loss', 'kl' or a callable of a Run.")
        self.score = score
        self._n_batches = 0
        units = {"loss": "next-token loss (nats)", "kl": "KL from the unablated model (nats)"}
        own = getattr(score, "__name__", "score").replace("<lambda>", "score")
        self.unit = units[score] if isinstance(score, str) else own

    def unablated(self, run: Run) -> tuple[Tensor, Tensor]:
        """The score of the run as it was.

        Raises:
            ValueError: where that is NaN, which nothing can be compared with.
        """
        values, terms = self(run, run.output)
        if bool(values.isnan().any()):
            raise ValueError(
                f"The score of the unablated model is NaN in batch {self._n_batches}: look at its inputs, "
                "and at what the model makes of padding."
            )
        self._n_batches += 1
        return values, terms

    def __call__(self, run: Run, output: Any) -> tuple[Tensor, Tensor]:
        n = len(run.inputs)
        run = Run(output, run.inputs, run.mask, run.sequence_index, {}, reference=run.output)
        if callable(self.score):
            values = self.score(run)
            if not isinstance(values, Tensor) or values.shape != (n,):
                got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise ValueError(f"The score gave {got}; expected one scalar per sequence, ({n},).")
            return values.cpu().double(), torch.ones(n, dtype=torch.float64, device="cpu")
        if self.score == "loss":
            counted, values = counted_targets(run), target_losses(run)
        else:  # of every position: what it predicts differs, whether or not the next token is known
            counted = run.mask
            logits = F.log_softmax(language_logits(run, at_least=1), -1)
            reference = F.log_softmax(run.reference.to(logits), -1)
            terms = F.kl_div(logits, reference, reduction="none", log_target=True)
            # 0 log 0 = 0: a logit of -inf has no share, whatever the ablated model makes of it.
            values = terms.masked_fill(reference == -torch.inf, 0.0).sum(-1)
            values = values if counted is None else values.masked_fill(~counted, 0.0)
        terms = (
            torch.full((n,), values.shape[1], device="cpu") if counted is None else counted.sum(1)
        )
        return values.cpu().double().sum(1), terms.cpu().double()
