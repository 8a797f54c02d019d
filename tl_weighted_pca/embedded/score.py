"""How much of what can be known about the stories a model knows."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .vocabulary import PAD, vocabulary

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


class Score(NamedTuple):
    """What ``score`` found, over all tokens after BOS."""

    loss: float
    """Cross-entropy of the model, nats a token."""
    entropy: float
    """Cross-entropy of the grammar itself, nats a token: no model is better on many stories."""
    accuracy: float
    """Share of the tokens carrying a remembered fact that the model ranks first."""
    accuracy_of: dict[str, float]
    """The same for each kind of fact."""
    count_of: dict[str, int]
    """How many such tokens there were."""

    @property
    def excess(self) -> float:
        """By what share the loss exceeds the entropy."""
        return self.loss / self.entropy - 1


def score(
    model: "Callable[[torch.Tensor], Any]", stories: "Dataset", batch_size: int = 100
) -> Score:
    """Score ``model``, a map from tokens [batch, pos] to logits [batch, pos, vocabulary]."""
    import torch

    pad = vocabulary()[PAD]
    loss = 0.0
    n_tokens = 0
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for rows in stories.iter(batch_size):
        ids = [torch.tensor(row) for row in rows["input_ids"]]
        tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
        with torch.no_grad():
            logits = model(tokens)[:, :-1].float().cpu()
        targets = tokens[:, 1:]
        loss += float(
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), ignore_index=pad, reduction="sum"
            )
        )
        n_tokens += int((targets != pad).sum())
        hits = logits.argmax(-1) == targets
        for row, (positions, kinds) in enumerate(
            zip(rows["fact_positions"], rows["fact_kinds"], strict=True)
        ):
            count.update(kinds)
            right.update(
                kind for at, kind in zip(positions, kinds, strict=True) if hits[row, at - 1]
            )
    return Score(
        loss=loss / n_tokens,
        entropy=sum(stories["entropy"]) / n_tokens,
        accuracy=right.total() / count.total(),
        accuracy_of={kind: right[kind] / count[kind] for kind in sorted(count)},
        count_of=dict(sorted(count.items())),
    )


class Bigram:
    """Next-token probabilities from the token before alone: the counts of a corpus, plus a little.

    What a model knows beyond this it must have from further back.
    """

    def __init__(self, stories: "Dataset", added: float = 0.01) -> None:
        import torch

        size = len(vocabulary())
        pairs = torch.zeros(size * size, dtype=torch.float64)
        for rows in stories.iter(1_000):
            before = torch.tensor([id for row in rows["input_ids"] for id in row[:-1]])
            after = torch.tensor([id for row in rows["input_ids"] for id in row[1:]])
            pairs += torch.bincount(before * size + after, minlength=size * size)
        counts = pairs.view(size, size) + added
        self.log_probs = (counts / counts.sum(1, keepdim=True)).log()

    def __call__(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """Log-probabilities [batch, pos, vocabulary] of what follows ``tokens`` [batch, pos]."""
        return self.log_probs[tokens]
