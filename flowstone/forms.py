"""What annotations say of several values: in which form they arrive; and which ones are frames."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, MutableSequence, Sequence
from typing import Any, Final, get_args, get_origin

from flowstone import hints
from flowstone.errors import DefinitionError
from flowstone.lazy_inputs import LazyInputs

FRAMES: Final = {
    ("polars", "DataFrame"): "polars.parquet",
    ("pyarrow", "Table"): "arrow.parquet",
    ("pandas", "DataFrame"): "pandas.parquet",
}
"""The formats of frames by the library and the name of their class."""

FRAME: Final = "frame"

Form = type[dict[Any, Any]] | type[list[Any]] | type[tuple[Any, ...]] | type[LazyInputs[Any, Any]]

_LISTS: Final = {list, Sequence, MutableSequence, Collection, Iterable}


def format_of(kind: Any) -> str | None:  # noqa: ANN401 - a class, or any other annotation
    """Return the format of the frames of a class, or None if it is no class of frames."""
    kind = hints.bare(kind)
    if not isinstance(kind, type):
        return None
    return FRAMES.get((kind.__module__.partition(".")[0], kind.__name__))


def form_of(annotation: Any) -> Form | str | None:  # noqa: ANN401
    """Return as what several values arrive: a kind of collection, or FRAME; None as what cannot be.

    What says nothing, or what nobody can tell, is a dict.
    """
    bare = hints.bare(annotation)
    kind = get_origin(bare) or bare
    if format_of(bare) is not None:
        return FRAME
    if kind is LazyInputs:
        return LazyInputs
    if kind in _LISTS:
        return list
    if kind is tuple:
        # Of how many nobody can say.
        return tuple if bare is kind or get_args(bare)[1:] == (...,) else None
    return dict if not isinstance(kind, type) or _takes_dict(kind) else None


def _takes_dict(kind: type) -> bool:
    try:
        return issubclass(kind, Mapping) or issubclass(dict, kind)
    except TypeError:
        # Protocols and typed dicts do not tell.
        return True


def check_fan_in(function: Callable[..., Any], parameter: str, reader: str, upstream: str) -> None:
    """Raise DefinitionError where a parameter asks for several values as what they cannot be."""
    annotation = hints.of_parameter(function, parameter)
    if form_of(annotation) is not None:
        return
    bare = hints.bare(annotation)
    asked = bare.__name__ if isinstance(bare, type) and not get_args(bare) else str(bare)
    raise DefinitionError(
        f"{reader} reads several partitions of {upstream!r}, and its parameter {parameter!r} asks "
        f"for {asked}; annotate it as dict[K, V], LazyInputs[K, V], list[V], tuple[V, ...], or as "
        "a DataFrame or Table of polars, pandas or pyarrow"
    )
