"""The code of an asset as a hash: when it changes, what it made before is not fresh any more."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from types import CodeType
from typing import Any

from flowstone.freshness import digest

_PLAIN = (str, int, float, bool, bytes, type(None))


def code_hash(function: Callable[..., Any], version: str | None) -> str:
    """Return the hash of `version`, or without one of the function's source.

    The source counts from `def` on: a decorator changes how a step is run, not what it
    makes. Plain values that the function closes over count too, for assets that a loop
    makes share their source. Functions that it calls do not; a version says what the
    source cannot.
    """
    if version is not None:
        return digest(["version", version])
    plain = inspect.unwrap(function)
    return digest(["source", _source(plain), _closed_over(plain)])


def _source(function: Callable[..., Any]) -> str:
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


def _closed_over(function: Callable[..., Any]) -> list[str]:
    values = inspect.getclosurevars(function).nonlocals
    return [f"{name}={value!r}" for name, value in sorted(values.items()) if _is_plain(value)]


def _is_plain(value: object) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))
