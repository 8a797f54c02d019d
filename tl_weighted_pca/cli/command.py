"""Options that several commands share, as dataclasses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of each dataclass among its parameters.

    typer knows one parameter an option, and what most commands take (a model, data, a folder for the
    results) is some fifteen of them. So `def ablate(bases, model: ModelOptions)` is told to typer as
    `ablate(bases, *, model, model_class, device, dtype)`, and gets its `ModelOptions` put together again.
    """
    flat: dict[str, inspect.Parameter] = {}
    groups: dict[str, tuple[type, list[str]]] = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if not is_dataclass(parameter.annotation):
            flat[name] = parameter
            continue
        made: Any = parameter.annotation
        fields = inspect.signature(made, eval_str=True).parameters
        groups[name] = (made, list(fields))
        flat |= fields

    def flattened(**values: Any) -> None:
        grouped = {
            name: made(**{field: values.pop(field) for field in fields})
            for name, (made, fields) in groups.items()
        }
        function(**values, **grouped)

    keyword_only = inspect.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(kind=keyword_only) for parameter in flat.values()]
    flattened.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flattened.__annotations__ = {p.name: p.annotation for p in parameters}
    flattened.__name__, flattened.__doc__ = function.__name__, function.__doc__
    return flattened
