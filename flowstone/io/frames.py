"""Frames of polars, pyarrow and pandas as Parquet; each can be read as each of the others."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any, Final

from flowstone.errors import OutputError, is_time_limit
from flowstone.forms import FRAMES, format_of

SUFFIX: Final = ".parquet"

_LIBRARY_OF: Final = {format: library for (library, _), format in FRAMES.items()}
FORMATS: Final = frozenset(_LIBRARY_OF)


def dump(value: Any) -> tuple[str, bytes, int] | None:  # noqa: ANN401 - any value of a user
    """Return format, bytes and number of rows of a frame; None for any other value."""
    # A process that has not imported the library cannot hold one of its frames.
    if not any(name in sys.modules for name in _LIBRARY_OF.values()):
        return None
    format = format_of(type(value))
    if format is None:
        return None
    buffer = io.BytesIO()
    try:
        rows = _write(format, value, buffer)
    except Exception as error:
        if is_time_limit(error):
            raise
        raise OutputError(
            f"this frame cannot be stored as Parquet: {_one_line(error)}; change the types of its "
            "columns"
        ) from error
    return format, buffer.getvalue(), rows


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _write(format: str, value: Any, buffer: io.BytesIO) -> int:  # noqa: ANN401 - a frame
    if format == "polars.parquet":
        value.write_parquet(buffer)
        return int(value.height)
    if format == "pandas.parquet":
        value.to_parquet(buffer)
        _check_cells(value, buffer)
        return len(value)
    import pyarrow.parquet as pq  # noqa: PLC0415 - frames are an extra

    pq.write_table(value, buffer)
    return int(value.num_rows)


def _check_cells(frame: Any, written: io.BytesIO) -> None:  # noqa: ANN401 - of pandas
    """Raise an error where a frame would come back as another one.

    Its cells may hold any object, which Parquet forces into one type for the column: dicts with
    different keys get all of them. Lists and tuples may come back as arrays.
    """
    import pandas as pd  # noqa: PLC0415 - frames are an extra

    back = pd.read_parquet(io.BytesIO(written.getvalue()))
    if not back.equals(frame):
        pd.testing.assert_frame_equal(back, frame, check_freq=False)


def load(format: str, data: bytes, as_type: Any = None) -> Any:  # noqa: ANN401 - a frame
    """Return the frame, of the library that `as_type` is of, or else of the one that stored it.

    Raises OutputError where that library is missing, or cannot read it.
    """
    wanted = format_of(as_type) or format
    library = _LIBRARY_OF[wanted]
    try:
        return _read(wanted, data)
    except ImportError as error:
        raise OutputError(
            f"it is to be read as a frame of {library}, which cannot be imported: {error}; "
            "install flowstone[frames]"
        ) from error
    except Exception as error:
        if is_time_limit(error):
            raise
        raise OutputError(f"{library} cannot read it as a frame: {error}") from error


def _read(format: str, data: bytes) -> Any:  # noqa: ANN401 - a frame
    match format:
        case "polars.parquet":
            import polars as pl  # noqa: PLC0415 - frames are an extra

            return pl.read_parquet(io.BytesIO(data))
        case "pandas.parquet":
            import pandas as pd  # noqa: PLC0415 - frames are an extra

            return pd.read_parquet(io.BytesIO(data))
        case _:
            import pyarrow.parquet as pq  # noqa: PLC0415 - frames are an extra

            return pq.read_table(io.BytesIO(data))


def concatenated(parts: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return one frame of several, all of one library, in their order.

    All have the same columns; where their types differ, the one that holds both is taken, by the
    rules of the library. Raises OutputError with the names of two that do not fit.
    """
    names = list(parts)
    columns = {name: _columns(frame) for name, frame in parts.items()}
    for name in names[1:]:
        if columns[name] != columns[names[0]]:
            raise OutputError(
                f"the frames of {names[0]} and {name} do not make one: the columns are "
                f"{', '.join(columns[names[0]])} and {', '.join(columns[name])}"
            )
    try:
        return _concat(list(parts.values()))
    except Exception as error:
        if is_time_limit(error):
            raise
        raise _do_not_fit(parts, error) from error


def _do_not_fit(parts: Mapping[str, Any], error: Exception) -> OutputError:
    first, *others = parts
    for name in others:
        try:
            _concat([_empty(parts[first]), _empty(parts[name])])
        except Exception as theirs:  # noqa: BLE001 - any library's own
            return OutputError(
                f"the frames of {first} and {name} do not make one: {_one_line(theirs)}"
            )
    return OutputError(f"the frames of {first} to {others[-1]} do not make one: {_one_line(error)}")


def _columns(frame: Any) -> list[str]:  # noqa: ANN401
    named = frame.column_names if format_of(type(frame)) == "arrow.parquet" else frame.columns
    return [str(name) for name in named]


def _empty(frame: Any) -> Any:  # noqa: ANN401
    return frame.slice(0, 0) if hasattr(frame, "slice") else frame.iloc[:0]


def _concat(frames: list[Any]) -> Any:  # noqa: ANN401
    match format_of(type(frames[0])):
        case "polars.parquet":
            import polars as pl  # noqa: PLC0415 - frames are an extra

            # In pieces as they are, so that they are not in memory twice.
            return pl.concat(frames, how="vertical_relaxed", rechunk=False)
        case "pandas.parquet":
            import pandas as pd  # noqa: PLC0415 - frames are an extra

            numbered = all(isinstance(frame.index, pd.RangeIndex) for frame in frames)
            return pd.concat(frames, ignore_index=numbered)
        case _:
            import pyarrow as pa  # noqa: PLC0415 - frames are an extra

            return pa.concat_tables(frames, promote_options="permissive")


def first_rows(frame: Any, limit: int) -> tuple[list[str], list[list[Any]]]:  # noqa: ANN401
    """Return the names of the columns of a frame, and its first rows."""
    library = type(frame).__module__.partition(".")[0]
    if library == "pandas":
        head = frame.head(limit)
        return [str(name) for name in frame.columns], [list(row) for row in head.to_numpy()]
    if library == "polars":
        return list(frame.columns), [list(row) for row in frame.head(limit).rows()]
    rows = frame.slice(0, limit).to_pylist()
    return list(frame.column_names), [list(row.values()) for row in rows]
