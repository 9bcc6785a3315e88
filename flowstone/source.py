"""The code of an asset as a hash: when it changes, what it made before is not fresh any more."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import CodeType, FunctionType
from typing import Any

from flowstone.errors import DefinitionError
from flowstone.freshness import digest

_PLAIN = (str, int, float, bool, bytes, type(None), date, datetime, timedelta, Decimal)


def code_hash(function: Callable[..., Any], version: str | None) -> str:
    """Return the hash of `version`, or without one of the function's source.

    The source counts from `def` on: a decorator changes how a step is run, not what it
    makes. Plain values that the function closes over count too, for assets that a loop
    makes share their source. Functions that it calls do not; a version says what the
    source cannot. Raises DefinitionError for a callable without code of its own.
    """
    if version is not None:
        return digest(["version", version])
    plain, bound = _unwrapped(function)
    return digest(["source", _source(plain), [*bound, *_closed_over(plain)]])


def _unwrapped(function: Callable[..., Any]) -> tuple[FunctionType, list[str]]:
    """Return the function that holds the code, and the plain values that are bound to it."""
    bound: list[str] = []
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        bound += [repr(value) for value in inner.args if _is_plain(value)]
        bound += [f"{name}={value!r}" for name, value in inner.keywords.items() if _is_plain(value)]
        inner = inspect.unwrap(inner.func)
    inner = getattr(inner, "__func__", inner)
    if not isinstance(inner, FunctionType):
        inner = getattr(type(inner).__call__, "__func__", type(inner).__call__)
    if not isinstance(inner, FunctionType):
        raise DefinitionError(
            f"the code of {function!r} cannot be read, so nobody can tell when it changes; "
            "say @asset(version=...)"
        )
    return inner, bound


def _source(function: FunctionType) -> str:
    try:
        text = textwrap.dedent(inspect.getsource(function))
        definition = ast.parse(text).body[0]
    except (OSError, TypeError, SyntaxError):
        # Typed at a prompt, or a part of an expression: there are only its instructions.
        return repr(_instructions(function.__code__))
    return "\n".join(text.splitlines()[definition.lineno - 1 :])


def _instructions(code: CodeType) -> list[object]:
    return [code.co_code.hex(), code.co_names, [_constant(c) for c in code.co_consts]]


def _constant(value: object) -> object:
    """Return what is the same in every process: not an address, nor the order of a set."""
    if isinstance(value, CodeType):
        return _instructions(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _closed_over(function: FunctionType) -> list[str]:
    try:
        values = inspect.getclosurevars(function).nonlocals
    except ValueError:
        # A name that has no value yet.
        return []
    return [f"{name}={value!r}" for name, value in sorted(values.items()) if _is_plain(value)]


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return type(value) in _PLAIN or (type(value) in {tuple, list} and all(map(_is_plain, value)))  # type: ignore[call-overload]
