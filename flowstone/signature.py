"""The functions that people give: where they are defined, and which parameters they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

from flowstone.errors import BadSignature


def location_of(function: Callable[..., Any]) -> str:
    """Return where a function is defined, as file:line."""
    code = code_of(function)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else function.__module__


def code_of(function: Callable[..., Any]) -> CodeType | None:
    """Return the code of a function, or None for one that is not written in Python."""
    code: CodeType | None = getattr(inspect.unwrap(function), "__code__", None)
    return code


def parameters(function: Callable[..., Any], where: str) -> list[str]:
    """Return the parameters that are to be filled; raise BadSignature, which says `where`."""
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_kind(function) for is_kind in kinds):
        raise BadSignature(f"{where} must be a plain function, not async and not a generator")
    names = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise BadSignature(f"{where} takes *{parameter.name}; name each asset that it reads")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise BadSignature(f"{where}: {parameter.name!r} is positional-only; remove the '/'")
        if parameter.default is not parameter.empty:
            raise BadSignature(
                f"{where}: {parameter.name!r} has a default, but parameters name assets; "
                "take settings through config="
            )
        names.append(parameter.name)
    return names


def check_handler(
    what: str, function: Callable[..., Any] | None, known: Iterable[str], told: Iterable[str]
) -> None:
    """Raise BadSignature unless a handler takes only what it is `told`, and what is `known`.

    That is what the function of its asset may take. Without a handler there is nothing to check.
    """
    if function is None:
        return
    where = f"{what} {getattr(function, '__name__', function)!r}"
    if not callable(function):
        raise BadSignature(f"{where} is no function")
    where += f" ({location_of(function)})"
    both = set(known) & set(told)
    if both:
        raise BadSignature(
            f"{where}: the asset reads {min(both)!r}, which is also what this is told; rename that "
            "parameter of the asset, and name what it reads in deps="
        )
    for name in parameters(function, where):
        if name not in {*known, *told}:
            raise BadSignature(
                f"{where} takes {name!r}; it may take {', '.join(told)}, and what the function of "
                f"its asset takes"
            )
