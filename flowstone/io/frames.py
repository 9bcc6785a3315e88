"""Frames of polars, pyarrow and pandas as Parquet; each can be read as each of the others."""

from __future__ import annotations

import io
import sys
from typing import Any, Final

from flowstone.errors import OutputError

SUFFIX: Final = ".parquet"

_LIBRARIES: Final = ("polars", "pyarrow", "pandas")
_FRAMES: Final = {
    ("polars", "DataFrame"): "polars.parquet",
    ("pyarrow", "Table"): "arrow.parquet",
    ("pandas", "DataFrame"): "pandas.parquet",
}
FORMATS: Final = frozenset(_FRAMES.values())


def format_of(kind: Any) -> str | None:  # noqa: ANN401 - a class, or any other annotation
    """Return the format of the frames of a class, or None if it is no class of frames."""
    if not isinstance(kind, type):
        return None
    return _FRAMES.get((kind.__module__.partition(".")[0], kind.__name__))


def dump(value: Any) -> tuple[str, bytes, int] | None:  # noqa: ANN401 - any value of a user
    """Return format, bytes and number of rows of a frame; None for any other value."""
    # A process that has not imported the library cannot hold one of its frames.
    if not any(name in sys.modules for name in _LIBRARIES):
        return None
    format = format_of(type(value))
    if format is None:
        return None
    buffer = io.BytesIO()
    try:
        rows = _write(format, value, buffer)
    except Exception as error:
        raise OutputError(
            f"this frame cannot be stored as Parquet: {error}; change the types of its columns"
        ) from error
    return format, buffer.getvalue(), rows


def _write(format: str, value: Any, buffer: io.BytesIO) -> int:  # noqa: ANN401 - a frame
    if format == "polars.parquet":
        value.write_parquet(buffer)
        return int(value.height)
    if format == "pandas.parquet":
        value.to_parquet(buffer)
        return len(value)
    import pyarrow.parquet as pq  # noqa: PLC0415 - frames are an extra

    pq.write_table(value, buffer)
    return int(value.num_rows)


def load(format: str, data: bytes, as_type: Any = None) -> Any:  # noqa: ANN401 - a frame
    """Return the frame, of the library that `as_type` is of, or else of the one that stored it."""
    match format_of(as_type) or format:
        case "polars.parquet":
            import polars as pl  # noqa: PLC0415 - frames are an extra

            return pl.read_parquet(io.BytesIO(data))
        case "pandas.parquet":
            import pandas as pd  # noqa: PLC0415 - frames are an extra

            return pd.read_parquet(io.BytesIO(data))
        case _:
            import pyarrow.parquet as pq  # noqa: PLC0415 - frames are an extra

            return pq.read_table(io.BytesIO(data))
