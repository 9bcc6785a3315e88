"""Formats: a value as bytes and back. The format's name is stored with each output."""

from __future__ import annotations

import pickle as pickles
from dataclasses import dataclass
from typing import Any, Final

from flowstone.errors import OutputError, is_time_limit
from flowstone.io import frames, json_values

PICKLE: Final = "pickle"


@dataclass(frozen=True)
class Encoded:
    """A value as bytes, with what the ledger records of it."""

    format: str
    suffix: str
    data: bytes
    rows: int | None


def encode(value: Any, as_type: Any = None, *, pickle: bool = False) -> Encoded:  # noqa: ANN401
    """Return a frame as Parquet and anything else as JSON; raise OutputError if it is neither.

    `as_type` is what the function says that it returns. With `pickle`, what has no other
    format is pickled.
    """
    if frame := frames.dump(value):
        format, data, rows = frame
        return Encoded(format, frames.SUFFIX, data, rows)
    try:
        format, data = json_values.dump(value, as_type)
    except OutputError:
        if not pickle:
            raise
        return Encoded(PICKLE, ".pickle", _pickled(value), None)
    return Encoded(format, ".json", data, None)


def decode(format: str, data: bytes, as_type: Any = None, *, pickle: bool = False) -> Any:  # noqa: ANN401
    """Return the value that `encode` made these bytes from, for a reader that wants `as_type`.

    A pickle can run any code, so it is refused where `pickle` does not allow it. Raises
    OutputError.
    """
    if format in frames.FORMATS:
        return frames.load(format, data, as_type)
    if format in (json_values.PLAIN, json_values.TAGGED):
        return json_values.load(format, data, as_type)
    if format != PICKLE:
        raise OutputError(f"outputs of the format {format!r} cannot be read by this version")
    if not pickle:
        raise OutputError(
            "it is a pickle, which can run any code, so it is read only in a process whose "
            "definitions have the asset with pickle=True"
        )
    return _unpickled(data)


def _pickled(value: Any) -> bytes:  # noqa: ANN401
    try:
        return pickles.dumps(value)
    except Exception as error:
        # Whatever the methods of the user's class raise.
        if is_time_limit(error):
            raise
        raise OutputError(f"a {type(value).__name__} cannot be pickled: {error}") from error


def _unpickled(data: bytes) -> Any:  # noqa: ANN401
    try:
        return pickles.loads(data)  # noqa: S301 - the asset's own definition allows it
    except Exception as error:
        # Its class is not here, or is another one by now.
        if is_time_limit(error):
            raise
        raise OutputError(
            f"its pickle cannot be read by this process: {type(error).__name__}: {error}"
        ) from error
