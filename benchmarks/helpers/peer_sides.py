"""What `peers.py` compares: each tool's way to its moments, on the model of `peer_subject.py`.

A side is made once for a subject and its batches, and is then called as often as it is timed. What it
returns are thunks by (statistic, hook point): reading a result out costs nothing while timing, and gives
the centred covariance of an activation, or the second moment of a gradient, both per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

import tl_weighted_pca as wpca
from helpers.peer_subject import Map, Subject

Found = dict[tuple[str, str], Callable[[], Tensor]]
Call = Callable[[], Found]
Batches = Sequence[Tensor]


def centred(second: Tensor, first: Tensor, n: float) -> Tensor:
    """Σ aaᵀ/n − μμᵀ in float64."""
    mean = first.double() / n
    return second.double() / n - torch.outer(mean, mean)


# -- activation covariances, before the first map of each block -----------------------------------


def firsts(s: Subject) -> list[str]:
    return [m.before for m in s.maps if m.module.endswith("c_fc")]


def collected_activations(s: Subject, batches: Batches) -> Call:
    def call() -> Found:
        stats = wpca.collect(s.hooked, list(batches), firsts(s), objective=None, progress=False)
        return {("activation", name): lambda m=m: _ours(m) for name, m in stats.items()}

    return call


def _ours(m: wpca.Moments) -> Tensor:
    return m.activation.about(m.activation.mean) / m.n_tokens


def cached(s: Subject, batches: Batches) -> Iterator[dict[str, Tensor]]:
    """Activations [token, d] by hook point, batch by batch: nobody has to hold them all."""
    names = firsts(s)
    for batch in batches:
        with torch.no_grad():  # and without the logits, which nobody asked for
            _, cache = s.hooked.run_with_cache(
                batch, names_filter=names, stop_at_layer=s.hooked.cfg.n_layers
            )
        yield {name: cache[name].flatten(0, 1) for name in names}


def run_with_cache(s: Subject, batches: Batches) -> Call:
    def call() -> Found:
        sums = {name: [0, 0, 0] for name in firsts(s)}
        for activations in cached(s, batches):
            for name, a in activations.items():
                n, first, second = sums[name]
                sums[name] = [n + len(a), first + a.sum(0), second + a.mT @ a]
        return {
            ("activation", name): lambda x=x: centred(x[2], x[1], x[0]) for name, x in sums.items()
        }

    return call


def incremental_pca(components: int | None) -> Callable[[Subject, Batches], Call]:
    def side(s: Subject, batches: Batches) -> Call:
        from sklearn.decomposition import IncrementalPCA

        d = s.hooked.cfg.d_model
        k = min(components or d, d, batches[0].numel())

        def call() -> Found:
            fitted = {name: IncrementalPCA(k) for name in firsts(s)}
            for activations in cached(s, batches):
                for name, a in activations.items():
                    fitted[name].partial_fit(a.numpy())
            return {("activation", name): lambda p=p: _of_pca(p) for name, p in fitted.items()}

        return call

    return side


def _of_pca(pca: Any) -> Tensor:
    # Not `get_covariance`, which spreads the noise variance over what was left out.
    axes = torch.from_numpy(pca.components_).double()
    variances = torch.from_numpy(pca.explained_variance_).double()
    n = pca.n_samples_seen_
    return axes.mT @ (variances[:, None] * axes) * (n - 1) / n


def forward_only(s: Subject, batches: Batches) -> Call:
    names = [m for m in s.maps if m.before in firsts(s)]
    return _kfac(s, batches, names, "forward-only")


# -- activation covariances before, and gradients after, all maps ---------------------------------


def collected(*statistics: str) -> Callable[[Subject, Batches], Call]:
    def side(s: Subject, batches: Batches) -> Call:
        names = [name for m in s.maps for name in (m.before, m.after)]

        def call() -> Found:
            stats = wpca.collect(
                s.hooked, list(batches), names, statistics=statistics, progress=False
            )
            found: Found = {}
            for m in s.maps:
                found["activation", m.before] = lambda x=stats[m.before]: _ours(x)
                found["gradient", m.after] = lambda x=stats[m.after]: x.gradient.second / x.n_tokens
            return found

        return call

    return side


def collected_exactly(s: Subject, batches: Batches) -> Call:
    """One pass, for exactly the moments that the others keep."""
    before, after = [m.before for m in s.maps], [m.after for m in s.maps]
    kept = dict.fromkeys(before, "activation") | dict.fromkeys(after, "gradient")

    def call() -> Found:
        stats = wpca.collect(s.hooked, list(batches), [*kept], statistics=kept, progress=False)
        found: Found = {("activation", name): lambda x=stats[name]: _ours(x) for name in before}
        for name in after:
            found["gradient", name] = lambda x=stats[name]: x.gradient.second / x.n_tokens
        return found

    return call


def hooks_and_backward(s: Subject, batches: Batches, dtype: torch.dtype = torch.float32) -> Call:
    """The recipe of notebooks: hooks that store, `loss.backward()`, then the sums in that dtype."""
    before, after = [m.before for m in s.maps], [m.after for m in s.maps]

    def call() -> Found:
        sums: dict[str, list[Any]] = {name: [0, 0, 0] for name in (*before, *after)}
        stored: dict[str, Tensor] = {}

        def store(tensor: Tensor, hook: Any) -> None:
            stored[hook.name] = tensor.detach().flatten(0, 1)

        s.hooked.requires_grad_(True)
        for batch in batches:
            with s.hooked.hooks(
                fwd_hooks=[(name, store) for name in before],
                bwd_hooks=[(name, store) for name in after],
            ):
                s.hooked(batch, return_type="loss", loss_per_token=True).sum().backward()
            s.hooked.zero_grad()
            for name, tensor in stored.items():
                (n, first, second), x = sums[name], tensor.to(dtype)
                sums[name] = [n + len(x), first + x.sum(0), second + x.mT @ x]
            stored.clear()
        found: Found = {}
        for m in s.maps:
            n, first, second = sums[m.before]
            found["activation", m.before] = lambda x=(second, first, n): centred(*x)
            n, _, second = sums[m.after]
            found["gradient", m.after] = lambda x=(second, n): x[0].double() / x[1]
        return found

    return call


def kronfluence(s: Subject, batches: Batches) -> Call:
    from kronfluence.analyzer import prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
    from kronfluence.task import Task
    from kronfluence.utils.state import State
    from torch.utils.data import DataLoader, TensorDataset

    class NextToken(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            (tokens,) = batch
            logits = model(tokens).logits[:, :-1].flatten(0, 1)
            return F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return [m.module for m in s.maps]

    task = NextToken()
    prepared = prepare_model(deepcopy(s.linear), task)  # it wraps the modules
    loader = DataLoader(TensorDataset(torch.cat(list(batches))), batch_size=len(batches[0]))
    n = torch.cat(list(batches)).numel()

    def call() -> Found:
        # Behind `Analyzer.fit_covariance_matrices`, which besides writes the factors to disk.
        _, factors = fit_covariance_matrices_with_loader(
            prepared, State(cpu=True), task, loader, FactorArguments(use_empirical_fisher=True),
            disable_tqdm=True,
        )  # fmt: skip
        found: Found = {}
        for m in s.maps:
            joint = factors["activation_covariance"][m.module]
            g = factors["gradient_covariance"][m.module]
            found["activation", m.before] = lambda x=joint: _without_bias(x)
            found["gradient", m.after] = lambda x=g: x.double() / n
        return found

    return call


def curvlinops(s: Subject, batches: Batches) -> Call:
    return _kfac(s, batches, s.maps, "empirical")


def _kfac(s: Subject, batches: Batches, maps: Sequence[Map], fisher_type: str) -> Call:
    from curvlinops import KFACLinearOperator

    # Parameters that need no gradient keep the graph to what KFAC asks for.
    model = _Logits(deepcopy(s.linear).requires_grad_(False))
    parameters = [p for m in maps for p in model.model.get_submodule(m.module).parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    data = [(batch, batch[:, 1:]) for batch in batches]
    n = sum(batch.numel() for batch in batches)

    def call() -> Found:
        # Knowing the sizes and weights with biases saves passes and products that it would make.
        operator = KFACLinearOperator(
            model, nn.CrossEntropyLoss(reduction="sum"), parameters, data,
            check_deterministic=False, fisher_type=fisher_type, separate_weight_and_bias=False,
            num_per_example_loss_terms=batches[0].shape[1] - 1,
            num_data=sum(len(batch) for batch in batches),
        )  # fmt: skip
        operator.compute_kronecker_factors()
        factors = operator.state_dict()
        found: Found = {}
        for m in maps:
            joint = factors["input_covariances"][f"model.{m.module}"]
            g = factors["gradient_covariances"][f"model.{m.module}"]
            found["activation", m.before] = lambda x=joint: _without_bias(x)
            if fisher_type != "forward-only":
                found["gradient", m.after] = lambda x=g: x.double() / n
        return found

    return call


def _without_bias(joint: Tensor) -> Tensor:
    """The last row of Σ [a 1][a 1]ᵀ is [Σ a, n]."""
    return centred(joint[:-1, :-1], joint[-1, :-1], float(joint[-1, -1]))


class _Logits(nn.Module):
    """[batch, vocab, pos]: what torch's cross entropy takes."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).logits[:, :-1].mT


SIDES: dict[str, dict[str, Callable[[Subject, Batches], Call]]] = {
    "activation": {
        "`collect(objective=None)`": collected_activations,
        "`run_with_cache`, then sums": run_with_cache,
        "`IncrementalPCA`, all components": incremental_pca(None),
        "`IncrementalPCA`, 32 components": incremental_pca(32),
        "curvlinops, KFAC forward only": forward_only,
    },
    "both": {
        "`collect`, just these moments": collected_exactly,
        "`collect`, both at both sides": collected("activation", "gradient"),
        "`collect`, weighted moments too": collected("activation", "gradient", "weighted"),
        "hooks and `backward`": hooks_and_backward,
        "kronfluence": kronfluence,
        "curvlinops, KFAC": curvlinops,
    },
}
