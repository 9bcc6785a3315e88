"""What functions say of the values that they take and return."""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from flowstone.errors import FlowStoneError, is_time_limit


def of_result(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - any type
    """Return the annotation of the value that a function returns, or None if it has none.

    What it returns instead, to wait for an approval or a signal, is no value.
    """
    return _without_errors(_hint(function, "return"))


def of_parameter(function: Callable[..., Any], name: str) -> Any:  # noqa: ANN401
    """Return the annotation of the value that a parameter takes, or None if it has none.

    That it may be None says nothing of the others.
    """
    return _without_none(_hint(function, name))


def of_whole(function: Callable[..., Any], name: str) -> Any:  # noqa: ANN401
    """Return the whole annotation of a parameter, None included if it says so."""
    return _hint(function, name)


def nearer(wanted: Any, made_as: Any) -> Any:  # noqa: ANN401
    """Return what a value is to be read as: what its reader wants, or what the function made.

    A reader that says less, such as `list` for `list[Part]` or a base class of the model, gets
    the value as it was made. Either may be None, for what says nothing.
    """
    if wanted is None:
        return made_as
    kind, made = bare(wanted), bare(made_as)
    made_kind = get_origin(made) or made
    if not (isinstance(kind, type) and isinstance(made_kind, type)):
        return wanted
    try:
        return made_as if issubclass(made_kind, kind) else wanted
    except TypeError:
        # Protocols and typed dicts do not tell.
        return wanted


def bare(annotation: Any) -> Any:  # noqa: ANN401
    """Return an annotation without what is only noted at it, and without None."""
    annotation = _without_none(annotation)
    while get_origin(annotation) is Annotated:
        annotation = _without_none(get_args(annotation)[0])
    return annotation


def takes_none(annotation: Any) -> bool:  # noqa: ANN401
    """Return whether an annotation says that a value may be None."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return is_union and type(None) in get_args(annotation)


def value_of_fan_in(annotation: Any) -> Any:  # noqa: ANN401
    """Return the annotation of one value of a mapping or a list, or None if it says nothing."""
    arguments = get_args(annotation)
    kind = get_origin(annotation)
    if not arguments or not isinstance(kind, type):
        return None
    if issubclass(kind, Mapping):
        return _without_none(arguments[1]) if len(arguments) == 2 else None  # noqa: PLR2004
    # Of list[V], Sequence[V] and tuple[V, ...].
    return _without_none(arguments[0])


@functools.lru_cache(maxsize=10_000)
def _hint(function: Callable[..., Any], name: str) -> Any:  # noqa: ANN401
    """Return an annotation as a type; None where there is none, or it says nothing.

    One by one: the others may name what exists for type checkers only.
    """
    inner = inspect.unwrap(function)
    annotations = getattr(inner, "__annotations__", {})
    if name not in annotations:
        return None
    alone = types.SimpleNamespace(__annotations__={name: annotations[name]})
    try:
        found = get_type_hints(alone, getattr(inner, "__globals__", {}), include_extras=True)[name]
    except Exception as error:  # the user's own expression may raise anything
        if is_time_limit(error):
            raise
        return None
    return None if found is Any or found is object else found


def _without_none(annotation: Any) -> Any:  # noqa: ANN401
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    others = [a for a in get_args(annotation) if a is not type(None)]
    return others[0] if len(others) == 1 else annotation


def _without_errors(annotation: Any) -> Any:  # noqa: ANN401
    """Return an annotation without the errors of FlowStone: None, if that was all."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    parts = get_args(annotation) if is_union else (annotation,)
    values = [p for p in parts if not (isinstance(p, type) and issubclass(p, FlowStoneError))]
    if len(values) == len(parts):
        return annotation
    return functools.reduce(operator.or_, values) if values else None
