"""How the values of a fan-in arrive: as a dict, lazily, as a list, or as one frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowstone import hints
from flowstone.errors import MissingInput, OutputError
from flowstone.forms import FRAME, form_of
from flowstone.io import frames
from flowstone.lazy_inputs import LazyInputs
from flowstone.outcome import StoredOutput
from flowstone.partition_key import Key, encode_key, label

Read = Callable[[StoredOutput, Any], Any]
"""Loads the value of an output, as what an annotation says."""


def fan_in(
    said: str,
    annotation: Any,  # noqa: ANN401
    found: Mapping[Key, StoredOutput | None],
    read: Read,
) -> Any:  # noqa: ANN401
    """Return the values of several partitions as what the annotation of a parameter says.

    What is missing, because it is optional, is None, or left out of a frame. Raises MissingInput
    for a frame of nothing, OutputError for frames that do not fit and for values that are none,
    all after what is `said` of the reader, and what `read` raises. The graph has refused an
    annotation as which they cannot arrive.
    """
    bare = hints.bare(annotation)
    form = form_of(annotation)
    if form == FRAME:
        outputs = {label(encode_key(key)): output for key, output in found.items()}
        parts = {
            name: _part(said, name, output, bare, read)
            for name, output in outputs.items()
            if output is not None
        }
        return _frame(said, annotation, parts)
    kind = hints.value_of_fan_in(bare)

    def load(key: Key) -> Any:  # noqa: ANN401
        output = found[key]
        return None if output is None else read(output, kind)

    if form is LazyInputs:
        return LazyInputs(found, load)
    if form is list or form is tuple:
        return form(load(key) for key in found)
    return {key: load(key) for key in found}


def _part(said: str, partition: str, output: StoredOutput, kind: Any, read: Read) -> Any:  # noqa: ANN401
    """Return the frame of one partition; raise OutputError where its value is none."""
    if output.format not in frames.FORMATS:
        raise OutputError(
            f"{said}, but the value of {partition} is no frame; annotate the parameter as "
            "dict[K, V], or list[V]"
        )
    return read(output, kind)


def _frame(said: str, annotation: Any, parts: Mapping[str, Any]) -> Any:  # noqa: ANN401
    if not parts:
        if hints.takes_none(annotation):
            return None
        # A frame without columns would fail later, and say less.
        kind = hints.bare(annotation)
        raise MissingInput(
            f"{said}, but there is no partition to make one of; annotate the parameter as "
            f"{kind.__name__} | None to get None then"
        )
    try:
        return frames.concatenated(parts)
    except OutputError as error:
        raise OutputError(f"{said}: {error.message}", original=error) from error
