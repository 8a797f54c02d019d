"""`use_linalg_svd`: while it is on, a model's OV and QK circuits are `tl_weighted_pca.FactoredMatrix`."""

from __future__ import annotations

import importlib
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import transformer_lens
from einops import repeat
from torch import Tensor
from torch.utils._contextlib import _DecoratorContextManager

from tl_weighted_pca.factored.factored_matrix import FactoredMatrix

_Function = TypeVar("_Function", bound=Callable[..., Any])


class use_linalg_svd(_DecoratorContextManager):
    """While on, OV and QK of a model and of its attention blocks decompose as `torch.linalg.svd` does.

    Used as `torch.set_grad_enabled` is: `use_linalg_svd()` turns it on and `use_linalg_svd(False)` off, at
    once; as a with-block or a decorator it switches back at the end. It holds for the current context only
    (`contextvars`): other threads and tasks are not affected.

    Both model classes are covered. The bridge's attention blocks have no OV and QK of their own: they get
    them while it is on. TransformerLens's own code never sees a difference.

    Example:
        with use_linalg_svd():
            U, S, V_T = model.OV.svd()
            torch.dist(model.OV, U @ S.diag_embed() @ V_T)
    """

    def __init__(self, mode: bool = True) -> None:
        if not isinstance(mode, bool):
            raise TypeError(
                f"use_linalg_svd was given a {type(mode).__name__}; expected True or False. To decorate a "
                "function write @use_linalg_svd()."
            )
        self._before = _active.get()
        self._mode = mode
        self.__enter__()

    def __enter__(self) -> None:
        _active.set((_active.get() or _Patches()) if self._mode else None)

    def __exit__(self, *error: object) -> None:
        _active.set(self._before)

    def __call__(self, orig_func: _Function) -> _Function:
        """As a decorator it is off until the function is called, or the generator resumed."""
        _active.set(self._before)
        return super().__call__(orig_func)

    def clone(self) -> use_linalg_svd:
        """One for each call of what it decorates."""
        return use_linalg_svd(self._mode)


class _Patches:
    """TransformerLens's classes are patched as long as some context refers to one of these.

    A context that ends, or a thread that dies, with the mode still on lets go of it without telling anybody,
    and copies of a context share it: so it is references that count, not calls.
    """

    def __init__(self) -> None:
        _acquire()
        weakref.finalize(self, _release).atexit = False


_active: ContextVar[_Patches | None] = ContextVar("use_linalg_svd", default=None)
_lock = threading.RLock()
_users = 0
_originals: list[tuple[type, str, property | None]] = []

# Where TransformerLens defines OV and QK; versions differ in which of these they have.
_OWNERS = (
    "HookedTransformer.HookedTransformer",
    "HookedEncoder.HookedEncoder",
    "HookedEncoderDecoder.HookedEncoderDecoder",
    "HookedAudioEncoder.HookedAudioEncoder",
    "components.abstract_attention.AbstractAttention",
    "model_bridge.TransformerBridge",
    "model_bridge.generalized_components.attention.AttentionBridge",
)


def _acquire() -> None:
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        for path in _OWNERS:
            module, _, name = path.rpartition(".")
            try:
                owner = getattr(importlib.import_module(f"transformer_lens.{module}"), name)
            except ModuleNotFoundError:
                continue
            for circuit, build in (("OV", _bridge_OV), ("QK", _bridge_QK)):
                original = vars(owner).get(circuit)
                _originals.append((owner, circuit, original))
                setattr(owner, circuit, _patched(circuit, original, build))


def _release() -> None:
    global _users
    with _lock:
        _users -= 1
        while not _users and _originals:
            owner, circuit, original = _originals.pop()
            if original is None:
                delattr(owner, circuit)
            else:
                setattr(owner, circuit, original)


def _patched(circuit: str, original: property | None, build: Callable[[Any], Any]) -> property:
    """The property `original`, or where there was none `build`, converted for user code in contexts that ask.

    Whether user code asks is told from the module of the calling frame. TransformerLens itself reads
    `self.OV` (in all_composition_scores, say) and relies on what its own class returns: to give it the
    original, whatever it does with it, is the one rule that needs no knowledge of its insides.
    """

    def get(self: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if _active.get() is None or caller.partition(".")[0] == "transformer_lens":
            if original is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {circuit!r}")
            return original.__get__(self)
        return FactoredMatrix(build(self) if original is None else original.__get__(self))

    return property(get, doc=original.__doc__ if original else build.__doc__)


def _bridge_OV(attention: Any) -> transformer_lens.FactoredMatrix:
    """W_V W_O of every head, [n_heads, d_model, d_model]."""
    W_V, W_O = attention.W_V, attention.W_O
    return transformer_lens.FactoredMatrix(_each_head(W_V, W_O), W_O)


def _bridge_QK(attention: Any) -> transformer_lens.FactoredMatrix:
    """W_Q W_Kᵀ of every head, [n_heads, d_model, d_model]."""
    W_Q, W_K = attention.W_Q, attention.W_K
    return transformer_lens.FactoredMatrix(W_Q, _each_head(W_K, W_Q).mT)


def _each_head(grouped: Tensor, like: Tensor) -> Tensor:
    """Repeat the weights that a group of query heads shares (grouped-query attention) for each of them."""
    per_group = like.shape[0] // grouped.shape[0]
    return repeat(grouped, "group d_in d_out -> (group head) d_in d_out", head=per_group)
