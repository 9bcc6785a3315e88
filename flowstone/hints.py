"""What functions say of the values that they take and return."""

from __future__ import annotations

import collections.abc
import types
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints


def of_result(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - any type
    """Return the annotation of what a function returns, or None if it has none."""
    return _hints(function).get("return")


def of_parameter(function: Callable[..., Any], name: str, *, fan_in: bool = False) -> Any:  # noqa: ANN401
    """Return the annotation of one value that a parameter takes, or None if it has none.

    A `fan_in` takes a dict of them, by key. That a value may be None says nothing of the others.
    """
    annotation = _hints(function).get(name)
    if fan_in:
        annotation = _value_of_mapping(annotation)
    return _without_none(annotation)


def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except Exception:  # noqa: BLE001 - a name that exists for type checkers only, perhaps
        return {}


def _value_of_mapping(annotation: Any) -> Any:  # noqa: ANN401
    arguments = get_args(annotation)
    is_mapping = get_origin(annotation) in (dict, collections.abc.Mapping)
    return arguments[1] if is_mapping and len(arguments) == 2 else None  # noqa: PLR2004


def _without_none(annotation: Any) -> Any:  # noqa: ANN401
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    others = [a for a in get_args(annotation) if a is not type(None)]
    return others[0] if len(others) == 1 else annotation
