"""A command's options, some of them in groups that commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

from tl_weighted_pca.cli.errors import Debug


def command(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of each dataclass among its parameters, and `--debug`.

    typer knows one parameter an option, and what most commands take (a model, data, a folder for the
    results) is some fifteen of them. So `def ablate(bases, model: ModelOptions)` is told to typer as
    `ablate(bases, *, model, model_class, device, dtype)`, and gets its `ModelOptions` put together again.
    Under which heading `--help` lists a group is its `PANEL`.

    Args:
        defaults: of this command's options, where they differ from the group's own.
    """

    def decorated(function: Callable[..., None]) -> Callable[..., None]:
        flat: dict[str, inspect.Parameter] = {}
        groups: dict[str, tuple[type, list[str]]] = {}
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
            if not is_dataclass(parameter.annotation):
                flat[name] = parameter
                continue
            made: Any = parameter.annotation
            fields = inspect.signature(made, eval_str=True).parameters
            for field in fields.values():
                for option in getattr(field.annotation, "__metadata__", ()):
                    option.rich_help_panel = getattr(made, "PANEL", None)
            groups[name] = (made, list(fields))
            flat |= fields
        flat |= {name: flat[name].replace(default=value) for name, value in defaults.items()}
        kind = inspect.Parameter.KEYWORD_ONLY
        flat["debug"] = inspect.Parameter("debug", kind, default=False, annotation=Debug)

        def flattened(debug: bool, **values: Any) -> None:
            grouped = {
                name: made(**{field: values.pop(field) for field in fields})
                for name, (made, fields) in groups.items()
            }
            function(**values, **grouped)

        parameters = [parameter.replace(kind=kind) for parameter in flat.values()]
        flattened.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        flattened.__annotations__ = {p.name: p.annotation for p in parameters}
        flattened.__name__, flattened.__doc__ = function.__name__, function.__doc__
        return flattened

    return decorated
