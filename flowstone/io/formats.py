"""Formats: a value as bytes and back. The format's name is stored with each output."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from typing import Any

from flowstone.errors import OutputError


@dataclass(frozen=True)
class Encoded:
    """A value as bytes, with what the ledger records of it."""

    format: str
    suffix: str
    data: bytes
    rows: int | None


def encode(value: Any) -> Encoded:  # noqa: ANN401 - any value of a user
    """Return a frame as Parquet and anything else as JSON; raise OutputError if it is neither."""
    # A process that has not imported the library cannot hold one of its frames.
    if (polars := sys.modules.get("polars")) and isinstance(value, polars.DataFrame):
        buffer = io.BytesIO()
        value.write_parquet(buffer)
        return Encoded("polars.parquet", ".parquet", buffer.getvalue(), value.height)
    if (arrow := sys.modules.get("pyarrow")) and isinstance(value, arrow.Table):
        return Encoded("arrow.parquet", ".parquet", _arrow_bytes(value), value.num_rows)
    return Encoded("json", ".json", _json_bytes(value), None)


def decode(format: str, data: bytes) -> Any:  # noqa: ANN401 - any value of a user
    """Return the value that `encode` made these bytes from; raise OutputError."""
    match format:
        case "json":
            return json.loads(data)
        case "polars.parquet":
            import polars as pl  # noqa: PLC0415 - frames are an extra

            return pl.read_parquet(io.BytesIO(data))
        case "arrow.parquet":
            import pyarrow.parquet as pq  # noqa: PLC0415 - frames are an extra

            return pq.read_table(io.BytesIO(data))
    raise OutputError(f"outputs of the format {format!r} cannot be read by this version")


def _arrow_bytes(table: Any) -> bytes:  # noqa: ANN401 - a pyarrow.Table
    import pyarrow.parquet as pq  # noqa: PLC0415 - frames are an extra

    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _json_bytes(value: Any) -> bytes:  # noqa: ANN401 - any value of a user
    try:
        data = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        same = _same(json.loads(data), value)
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(
            f"a {type(value).__name__} cannot be stored: {error}; {_REMEDY}"
        ) from error
    if not same:
        raise OutputError(
            f"this {type(value).__name__} would come back from JSON as another value, as tuples, "
            f"sets and keys that are not strings do; {_REMEDY}"
        )
    return data


_REMEDY = "return JSON values (dict with str keys, list, str, int, float, bool, None) or a frame"


def _same(back: Any, value: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Return whether two values are equal in their types, too: 1, 1.0 and True are not."""
    if type(back) is not type(value):
        return False
    if isinstance(back, dict):
        return back.keys() == value.keys() and all(_same(back[k], value[k]) for k in back)
    if isinstance(back, list):
        return len(back) == len(value) and all(map(_same, back, value))
    return bool(back == value)
