"""Where a model's weight matrices are, and the hook points on either side of them.

Matrices act from the right, as TransformerLens stores them: x @ W, W [d_in, d_out].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_weighted_pca.models.pushes import feeding


@dataclass(frozen=True, eq=False)
class Weight:
    """h = x A + const: a matrix A, the hook point that carries x, and the one that carries h."""

    name: str
    """For tables and errors, such as "blocks.0.mlp.W_in"."""
    matrix: Float[Tensor, "d_in d_out"]
    """A, from what `reads` carries to what `writes` carries; heads are flattened to head·d_head."""
    reads: str
    """Hook point of x."""
    writes: str | None
    """Hook point of h, the pre-activation; None where there is none: then nothing else may read x."""
    layer: int = 0
    """The layer, for pictures."""
    kind: str = "W"
    """"W_in", "W_Q", …: matrices of one kind are compared between layers."""
    after: str | None = None
    """Hook point past the non-linearity, of the width of h; None where there is no non-linearity."""
    change: Float[Tensor, "d_in d_in"] | None = None
    """T, where the claim is about another weight T A, whose input's gradient is T times that at x."""

    @property
    def claimed(self) -> Float[Tensor, "d_in d_out"]:
        """T A in float64: the weight that the claim is about."""
        matrix = self.matrix.detach().double().cpu()
        return matrix if self.change is None else self.change.double().cpu() @ matrix


def model_weights(
    model: Any, layers: Sequence[int] | None = None, *, folded: bool = False
) -> list[Weight]:
    """The weights of a model that read its stream: attention's Q, K and V, the MLP's, the unembedding.

    `folded` says which weight is meant where a layer norm has a gain γ (and a bias): False takes W as
    it is stored, with the gradient at its own input γ⊙x̂ + β; True takes the folded weight γ⊙W, with
    the gradient at the normalised x̂ (centred over d_model where the norm centres, as TransformerLens
    folds it). Where the model came folded, the two are one.

    Args:
        model: a HookedTransformer, a TransformerBridge, or a module with a method `weights()` that
            gives a list of `Weight`, as `HookedMLP` has.
        layers: which; all, and the unembedding, by default. The unembedding counts as layer n_layers.
        folded: which weight the claim is about.

    Raises:
        TypeError: for another kind of model.
        ValueError: for a layer that it does not have, or where Q, K and V read copies of their own.
    """
    if hasattr(model, "blocks") and hasattr(model, "unembed"):
        for switch in ("use_attn_in", "use_split_qkv_input"):
            if getattr(model.cfg, switch, False):
                raise ValueError(
                    f"The model's {switch} gives each head a copy of its input, so that no hook point has "
                    f"the whole gradient: call model.set_{switch}(False) first."
                )
        n_layers = len(model.blocks)
        found: Iterable[Weight]
        known = range(n_layers + 1)
        fed = feeding(model, _norms(model))
        found = itertools.chain(
            *(_block_weights(model, layer, folded, fed) for layer in range(n_layers)),
            _unembedding(model, n_layers, folded, fed),
        )
    elif callable(getattr(model, "weights", None)):
        if folded:
            raise ValueError("folded=True is about layer norms; this model has none: leave it out.")
        listed: list[Weight] = model.weights()
        known, found = range(len(listed)), listed
    else:
        raise TypeError(
            f"The model is a {type(model).__name__} without `blocks` and `unembed`; expected a language "
            "model of one stack of blocks (no encoder and decoder) or a module with weights(): pass "
            "layers=[Weight(...), ...] instead, one for each matrix."
        )
    if layers is None:
        return list(found)
    wrong = [layer for layer in layers if layer not in known]
    if wrong or not layers:
        raise ValueError(
            f"layers has {wrong or 'no layers'}; expected some of 0..{len(known) - 1}."
        )
    return [weight for weight in found if weight.layer in set(layers)]


def _norms(model: Any) -> dict[str, tuple[Any, Any]]:
    """By module that reads the stream, the norm that may lie before it, and the module."""
    pairs = {"unembed": (getattr(model, "ln_final", None), model.unembed)}
    for layer, block in enumerate(model.blocks):
        norm, other = getattr(block, "ln1", None), getattr(block, "ln2", None)
        # A block of parallel attention and MLP may have one norm for both.
        before = {"attn": norm, "mlp": norm if other is None else other}
        for name, each in before.items():
            pairs[f"blocks.{layer}.{name}"] = (each, getattr(block, name, None))
    return {name: pair for name, pair in pairs.items() if None not in pair}


def _block_weights(model: Any, layer: int, folded: bool, fed: set[str]) -> Iterator[Weight]:
    block, known = model.blocks[layer], model.hook_dict
    at = f"blocks.{layer}"
    attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    if attention is not None:
        for letter in "QKV":
            # HookedTransformer's public W_K repeats grouped heads; hook_k carries each group once.
            stored = getattr(attention, f"_W_{letter}", None)
            matrix = stored if stored is not None else getattr(attention, f"W_{letter}", None)
            if matrix is None:
                continue
            matrix = matrix.movedim(0, 1).flatten(1) if matrix.ndim == 3 else matrix
            yield _behind_norm(
                model, f"{at}.attn", f"W_{letter}", matrix, layer, getattr(block, "ln1", None),
                f"{at}.ln1", f"{at}.attn.hook_{letter.lower()}", None, folded, fed,
            )  # fmt: skip
    gate = _present(mlp, "W_gate")
    after = f"{at}.mlp.hook_post"
    # The bridge calls a gated MLP's two outputs after their modules, HookedTransformer hook_pre(_linear).
    for kind, ours, theirs in (
        ("W_gate", "hook_pre", "gate.hook_out"),
        ("W_in", "hook_pre" if gate is None else "hook_pre_linear", "in.hook_out"),
    ):
        matrix = _present(mlp, kind)
        if matrix is None:
            continue
        if matrix.shape[0] != model.cfg.d_model:
            matrix = matrix.mT  # TransformerLens 3.0's bridge gives Linear's weight, [d_out, d_in]
        theirs, ours = f"{at}.mlp.{theirs}", f"{at}.mlp.{ours}"
        # Where no gate shares the input, it is at the linear map: some MLPs (OPT's) are no module.
        own = [f"{at}.mlp.in.hook_in"] if gate is None else []
        norm = "ln2" if getattr(block, "ln2", None) is not None else "ln1"
        yield _behind_norm(
            model, f"{at}.mlp", kind, matrix, layer, getattr(block, norm, None), f"{at}.{norm}",
            theirs if theirs in known else ours, after if after in known else None, folded, fed, own,
        )  # fmt: skip


def _unembedding(model: Any, layer: int, folded: bool, fed: set[str]) -> Iterator[Weight]:
    writes = "unembed.hook_out" if "unembed.hook_out" in model.hook_dict else None
    yield _behind_norm(
        model, "unembed", "W_U", model.W_U, layer, getattr(model, "ln_final", None), "ln_final",
        writes, None, folded, fed,
    )  # fmt: skip


def _behind_norm(
    model: Any, module: str, kind: str, matrix: Tensor, layer: int, norm: Any, norm_name: str,
    writes: str | None, after: str | None, folded: bool, fed: set[str],
    inputs: Sequence[str] = (),
) -> Weight:  # fmt: skip
    """A weight that reads a (perhaps absent) norm's output, at the best hook point there is for it."""
    known = model.hook_dict
    before = module in fed  # OLMo 2 has its norms behind attention and MLP, under the same names
    gain = _gain(norm) if before else None
    own = next((name for name in (*inputs, f"{module}.hook_in") if name in known), None)
    normalized = f"{norm_name}.hook_normalized"
    matrix = matrix.detach()
    change: Tensor | None = None
    if own is not None:
        reads = own
        if folded and gain is not None:
            change = _centring(model, len(gain)) * gain.double().cpu()
    elif before and normalized in known:
        # Before the gain: HookedTransformer has no hook point between an unfolded norm and W.
        reads = normalized
        if gain is not None:
            if bool((gain == 0).any()):
                raise ValueError(
                    f"The gain of {norm_name!r} has zeros, so the gradient at the input of "
                    f"{module}.{kind} cannot be told from that before it: fold the layer norm."
                )
            matrix = gain[:, None] * matrix
            exact = gain.double().cpu()
            change = _centring(model, len(gain)) if folded else exact.reciprocal().diag()
    else:
        # No norm before it: the stream itself, which others read too. Only gradients at the output will do.
        at = norm_name.rpartition(".")[0]
        side = "pre" if kind in ("W_Q", "W_K", "W_V") else "mid"
        stream = f"{at}.hook_resid_{side}"
        reads = stream if stream in known else f"{at}.hook_resid_pre"
        if not at:
            reads = f"blocks.{layer - 1}.hook_resid_post"
    return Weight(f"{module}.{kind}", matrix, reads, writes, layer, kind, after, change)


def _gain(norm: Any) -> Tensor | None:
    """γ, or None; the bridge keeps the gain of Gemma's norms as γ − 1, HookedTransformer as γ."""
    stored = _present(norm, "w")
    stored = stored if stored is not None else _present(norm, "weight")
    if stored is None:
        return None
    offset = getattr(norm, "uses_weight_offset", None)  # TransformerLens 4 says so itself
    if offset is None:
        settings = getattr(norm, "config", None)
        rms = getattr(norm, "uses_rms_norm", getattr(settings, "uses_rms_norm", False))
        offset = rms and getattr(settings, "rmsnorm_uses_offset", False)
    return stored.detach() + (1 if offset else 0)


def _centring(model: Any, width: int) -> Float[Tensor, "d d"]:
    """I − 11ᵀ/d where the model's norms centre, else I."""
    eye = torch.eye(width, dtype=torch.float64, device="cpu")
    centres = str(getattr(model.cfg, "normalization_type", "LN")).startswith("LN")
    return eye - 1 / width if centres else eye


def _present(module: Any, name: str) -> Tensor | None:
    """A module's tensor, or None: the classes differ in what they lack and how they say so."""
    try:
        value = getattr(module, name, None)
    except (AttributeError, NotImplementedError):
        return None
    return value if isinstance(value, Tensor) else None
