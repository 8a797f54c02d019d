"""What a callable is: its code and all that the code reads, in a few characters."""

from __future__ import annotations

import dis
import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tl_weighted_pca.support.digest import update_digest

_PACKAGE = __name__.partition(".")[0]
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type(...), slice, range,
    torch.dtype, torch.device, torch.Size,
)  # fmt: skip
"""What repr tells apart."""
_MEMBERS = (*_PLAIN, types.FunctionType, staticmethod, classmethod, property)
"""What a class is made of, and what is compared of it."""
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def code_of(function: Any) -> str:
    """A digest of a callable: code, constants, defaults, closures, and the functions and values it reads.

    Empty where its name says it all: this package's own callables, and those with an attribute `name`, for
    which the user answers. Comments and the place in the file change nothing.

    Raises:
        ValueError: where it reads something that has no value to compare, such as an open file.
    """
    return "" if _name_says_all(function) else _read(function, _Reader())


def source_of(function: Any) -> str:
    """The Python that runs, and a digest of what a callable's source says, whatever values it reads.

    Quick, and the same in every process: for what is told apart by name otherwise. Empty as in `code_of`.
    """
    while isinstance(function, (functools.partial, types.MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    if _name_says_all(function):
        return ""
    kind = function if isinstance(function, types.FunctionType) else type(function)
    return f"{sys.implementation.cache_tag} {_read(kind, _SourceReader())}"


def _name_says_all(function: Any) -> bool:
    if isinstance(function, str) or isinstance(getattr(function, "name", None), str):
        return True
    kind = function if isinstance(function, types.FunctionType) else type(function)
    return _top(kind.__module__) == _PACKAGE


def _read(value: Any, reader: _Reader) -> str:
    reader.take(value)
    return reader.digest.hexdigest()


def codes_of(callables: Mapping[str, Any]) -> dict[str, str]:
    """`code_of` each, by what it is for.

    Raises:
        ValueError: for a callable that a later one could not be told from.
    """
    found = {}
    for what, function in callables.items():
        try:
            found[what] = code_of(function)
        except ValueError as error:
            raise ValueError(
                f"A checkpoint must know the {what} from another, and {error}: give it an attribute `name`, "
                "and another name when you change it."
            ) from error
    return found


def check_code(
    path: str | os.PathLike[str], theirs: Mapping[str, str] | None, mine: Mapping[str, str]
) -> None:
    """Raise ValueError where a checkpoint was made with other code of the same name.

    Files of versions that did not know code have None, and are taken at their word.
    """
    for what in mine:
        if theirs is not None and theirs.get(what) != mine[what]:
            raise ValueError(
                f"The checkpoint {os.fspath(path)!r} was made with another {what} of the same name: its "
                "code, or something that it reads, has changed. Undo that to go on, or use another path."
            )


class _Reader:
    """Goes through a value and all that it is made of, each part once."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=8)
        self._seen: dict[int, tuple[int, Any]] = {}  # values too: ids are of living things alone

    def take(self, value: Any) -> None:
        self._say(type(value).__qualname__)
        if isinstance(value, _PLAIN):
            self._say(repr(value))
        elif isinstance(value, types.CodeType):
            self._all((value.co_code, value.co_consts, value.co_names, value.co_freevars))
        elif isinstance(value, tuple):
            self._all(value)
        elif isinstance(value, (set, frozenset)):
            self._all(sorted(value, key=repr))
        elif id(value) in self._seen:
            self._say(str(self._seen[id(value)][0]))
        else:
            self._seen[id(value)] = len(self._seen), value
            self._take_object(value)

    def _take_object(self, value: Any) -> None:
        if isinstance(value, Tensor):
            update_digest(self.digest, value)
        elif isinstance(value, nn.Module):
            named = {**dict(value.named_parameters()), **dict(value.named_buffers())}
            self._all((type(value), named))
        elif isinstance(value, (types.ModuleType, types.FunctionType, type)):
            self._take_named(value)
        elif isinstance(value, (staticmethod, classmethod)):
            self.take(value.__func__)
        elif isinstance(value, property):
            self._all((value.fget, value.fset))
        elif hasattr(value, "__wrapped__"):  # functools.cache
            self.take(value.__wrapped__)
        else:
            self._take_parts(value)

    def _take_named(self, value: Any) -> None:
        """A module, function or class: of what is installed the name, of others the code."""
        name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__ or ""
        self._say(name, value.__name__)
        if isinstance(value, types.FunctionType):
            if not (_top(name) == _PACKAGE or value.__code__.co_filename.startswith(_LIBRARIES)):
                self._take_function(value)
            return
        top = getattr(sys.modules.get(_top(name)), "__file__", None) or ""
        installed = top.startswith(_LIBRARIES) and name != "__main__"
        if installed or _top(name) in (_PACKAGE, *sys.builtin_module_names):
            return
        if isinstance(value, types.ModuleType):
            file = Path(getattr(value, "__file__", None) or "")
            self.take(compile(file.read_bytes(), file, "exec") if file.suffix == ".py" else None)
        else:
            self._all(value.__bases__)
            self._all(
                item
                for item in sorted(vars(value).items())
                if isinstance(item[1], _MEMBERS) and item[0] not in ("__doc__", "__firstlineno__")
            )

    def _take_function(self, function: types.FunctionType) -> None:
        self._all((function.__code__, function.__defaults__, function.__kwdefaults__))
        self._all(self._values_read(function).items())

    def _values_read(self, function: types.FunctionType) -> dict[str, Any]:
        """What the function closes over, and the global values that it reads."""
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        read = {name: _contents(cell) for name, cell in cells}
        names = [n for n in _globals_read(function.__code__) if n in function.__globals__]
        return read | {name: function.__globals__[name] for name in names}

    def _take_parts(self, value: Any) -> None:
        """Any other object, as pickle would take it apart."""
        try:
            parts = value.__reduce_ex__(4)
        except Exception as error:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise ValueError(f"it reads a {kind}, which has no value to compare") from error
        if isinstance(parts, str):
            self._say(getattr(value, "__module__", None) or "", parts)
        else:
            self._all(tuple(part) if isinstance(part, Iterator) else part for part in parts)

    def _all(self, values: Iterable[Any]) -> None:
        values = list(values)
        self._say(str(len(values)))
        for value in values:
            self.take(value)

    def _say(self, *words: str) -> None:
        for word in words:
            self.digest.update(word.encode() + b"\0")


class _SourceReader(_Reader):
    """Reads the source alone: of functions and classes what they say, of all else the kind."""

    def _take_object(self, value: Any) -> None:
        if isinstance(value, (types.FunctionType, type, staticmethod, classmethod, property)):
            super()._take_object(value)

    def _values_read(self, function: types.FunctionType) -> dict[str, Any]:
        found = super()._values_read(function).items()
        return {n: v for n, v in found if isinstance(v, (types.FunctionType, type))}


def _globals_read(code: types.CodeType) -> list[str]:
    """The global names that the code looks up, and the functions within it."""
    names = {
        i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    inner = (_globals_read(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return sorted(names.union(*inner))


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that gets its value later
        return None


def _top(module: str | None) -> str:
    return (module or "").partition(".")[0]
