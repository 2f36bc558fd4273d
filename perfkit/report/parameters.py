"""A notebook's parameters: only those its typed cell declares, only values of the declared types.

papermill passes on whatever it is given: an unknown name or a word for a number is found here, before
anything is measured, and said in one line.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perfkit.errors import PerfkitError, UsageError

INJECTED = "# Parameters"  # papermill's first line in the cell that it adds after the typed one
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "float or None": (float, int, type(None)),  # papermill takes no other spelling for a parameter
    "bool": (bool,),
}


def read(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The declared parameters with their values, from a notebook's `globals()`.

    Afterwards an error of perfkit shows as one line instead of a traceback.
    Raises UsageError naming every unknown or ill-typed parameter.
    """
    _one_line_errors()
    declared, injected = _cells(namespace.get("In", ()))
    if wrong := [*_unknown(declared, injected), *_ill_typed(declared, namespace)]:
        raise UsageError("; ".join(wrong))
    return {name: namespace[name] for name in declared}


def _cells(history: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Names and types of the latest typed cell, and the names that papermill added right after it."""
    injected: list[str] = []
    for source in reversed(history[:-1]):
        lines = _assignments(source)
        if lines and all(isinstance(line, ast.AnnAssign) for line in lines):
            return {name: ast.unparse(line.annotation) for line in lines for name in _targets(line)}, injected
        injected = [name for line in lines for name in _targets(line)] if source.startswith(INJECTED) else []
    raise UsageError("no cell with typed parameters was run; expected it before this one")


def _assignments(source: str) -> list[Any]:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return []  # a magic
    return body if all(isinstance(line, ast.Assign | ast.AnnAssign) for line in body) else []


def _targets(line: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    targets = line.targets if isinstance(line, ast.Assign) else [line.target]
    yield from (target.id for target in targets if isinstance(target, ast.Name))


def _unknown(declared: Mapping[str, str], injected: Sequence[str]) -> Iterator[str]:
    for name in injected:
        if name not in declared:
            yield f"parameter '{name}' is unknown; expected one of: {', '.join(declared)}"


def _ill_typed(declared: Mapping[str, str], namespace: Mapping[str, Any]) -> Iterator[str]:
    for name, kind in declared.items():
        value = namespace[name]
        fits = isinstance(value, _TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
        if not fits:
            yield f"parameter {name} = {value!r}; expected {kind}"


def _one_line_errors() -> None:
    from IPython import get_ipython

    def show(shell: Any, kind: type[BaseException], error: BaseException, _trace: Any, tb_offset: Any = None) -> None:
        shell._showtraceback(kind, error, [f"{kind.__name__}: {error}"])

    if (shell := get_ipython()) is not None:
        shell.set_custom_exc((PerfkitError,), show)
