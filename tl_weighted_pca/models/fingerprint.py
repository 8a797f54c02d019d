"""Which model something was made with: its name, and a digest that tells its weights from others."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import torch
from torch import nn

from tl_weighted_pca.moments.second_moment import Provenance
from tl_weighted_pca.support.digest import update_digest


def model_name(model: Any) -> str:
    """The last part of the name in the model's configuration, or its class.

    The two model classes, and a local folder and the hub, put different things before it.
    """
    name = getattr(getattr(model, "cfg", None), "model_name", None)
    name = name.rstrip("/").rsplit("/", 1)[-1] if isinstance(name, str) else ""
    return name or type(model).__name__


def fingerprint(model: Any) -> str:
    """A digest of a model's parameters: names, shapes, the first values of each, and the sum of all of them.

    The sum is of their bits, as whole numbers: the same however many threads add them up, and as quick as
    reading them. A neuron that was knocked out changes it.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(model, nn.Module):
        for name, parameter in model.named_parameters():
            digest.update(repr((name, tuple(parameter.shape), parameter.dtype)).encode())
            if parameter.is_meta:
                continue
            # Some kinds of tensor, spread over processes or packed, can't be read like this.
            with contextlib.suppress(NotImplementedError, RuntimeError):
                values = parameter.detach().flatten()
                values = values.cpu() if values.is_mps else values
                whole = len(values) // 8 * 8  # that eight bytes at a time can read
                summed = values[:whole]
                if summed.data_ptr() % 8:
                    summed = summed.clone()
                update_digest(digest, values[:16], values[whole:], summed.view(torch.int64).sum())
    return digest.hexdigest()


def made_at(model: Any, hook_point: str, objective: str = "", row_metric: str = "") -> Provenance:
    """The provenance of what is made of this model as it is now."""
    dtypes = {str(p.dtype) for p in model.parameters()} if isinstance(model, nn.Module) else set()
    weights = f"{type(model).__name__} {'/'.join(sorted(dtypes))} {fingerprint(model)[:12]}"
    return Provenance(model_name(model), hook_point, objective, row_metric, weights)
