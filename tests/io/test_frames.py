"""Frames of polars, pyarrow and pandas: Parquet, read as whatever the reader names."""

from __future__ import annotations

import sys
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal as assert_pandas
from polars.testing import assert_frame_equal

from flowstone.errors import OutputError
from flowstone.io import Outputs
from flowstone.io.formats import decode, encode
from tests.io.places import place

POLARS = pl.DataFrame(
    {
        "a": [1, None, 3],
        "b": ["x", "ü", None],
        "c": [[1.0], [], None],
        "d": [date(2013, 1, 1), None, date(2013, 1, 3)],
        "e": [datetime(2013, 1, 1, 5), None, None],  # noqa: DTZ001 - a column without a zone
        "f": [True, False, None],
        "g": [{"x": 1}, {"x": None}, None],
        "h": [Decimal("1.10"), None, Decimal("2.00")],
        "i": [b"\xff", b"", None],
        "j": [timedelta(seconds=1), None, None],
        "k": [None, None, None],
    },
    schema_overrides={"a": pl.Int8, "e": pl.Datetime("ms"), "h": pl.Decimal(10, 2)},
).with_columns(
    l=pl.Series(["x", "y", "x"], dtype=pl.Categorical),
    m=pl.Series(["x", "y", "x"], dtype=pl.Enum(["x", "y"])),
    n=pl.col("e").dt.replace_time_zone("America/New_York"),
)
ARROW = pa.table(
    {"a": pa.array([1, None, 3], pa.int16()), "b": [{"x": 1}, None, {"x": 2}]}
).replace_schema_metadata({"made": "by hand"})
PANDAS = pd.DataFrame(
    {"a": [1, 2, 3], "b": ["x", None, "z"], "c": pd.to_datetime(["2013-01-01"] * 3)},
    index=pd.Index([5, 6, 7], name="key"),
)

FRAMES = {"polars": POLARS, "arrow": ARROW, "pandas": PANDAS}


def assert_same(back: Any, frame: Any) -> None:
    assert type(back) is type(frame)
    if isinstance(frame, pl.DataFrame):
        assert_frame_equal(back, frame)
    elif isinstance(frame, pd.DataFrame):
        assert_pandas(back, frame)
    else:
        assert back.equals(frame, check_metadata=True)


@pytest.mark.parametrize("library", FRAMES)
def test_every_manager_keeps_frames(outputs: Outputs, library: str) -> None:
    frame = FRAMES[library]
    stored = outputs.store(frame, place())
    assert (stored.format, stored.rows) == (f"{library}.parquet", 3)
    assert stored.location.endswith(".parquet")
    assert_same(outputs.load(stored), frame)


@pytest.mark.parametrize("library", FRAMES)
def test_a_frame_without_rows_is_a_value(library: str) -> None:
    frame = FRAMES[library][:0]
    encoded = encode(frame)
    assert encoded.rows == 0
    assert_same(decode(encoded.format, encoded.data), frame)


@pytest.mark.parametrize("library", FRAMES)
def test_equal_frames_are_equal_bytes(library: str) -> None:
    frame = FRAMES[library]
    assert encode(frame[:]).data == encode(frame).data
    back = decode(f"{library}.parquet", encode(frame).data)
    assert encode(back).data == encode(frame).data


SIMPLE = {
    "polars": pl.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
    "arrow": pa.table({"a": [1, 2], "b": pa.array(["x", "y"])}),
    "pandas": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
}


@pytest.mark.parametrize("stored", SIMPLE)
@pytest.mark.parametrize("wanted", SIMPLE)
@pytest.mark.parametrize("wrap", [lambda kind: kind, lambda kind: Annotated[kind, "noted"]])
def test_each_is_read_as_each(stored: str, wanted: str, wrap: Any) -> None:
    encoded = encode(SIMPLE[stored])
    back = decode(encoded.format, encoded.data, wrap(type(SIMPLE[wanted])))
    assert type(back) is type(SIMPLE[wanted])
    rows = {
        pl.DataFrame: lambda frame: frame.to_dicts(),
        pa.Table: lambda frame: frame.to_pylist(),
        pd.DataFrame: lambda frame: frame.to_dict("records"),
    }[type(back)](back)
    assert rows == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


@pytest.mark.parametrize("kind", [None, dict, list[int], Any, pl.DataFrame | pd.DataFrame])
def test_who_names_no_one_frame_gets_that_of_the_producer(kind: Any) -> None:
    encoded = encode(SIMPLE["pandas"])
    assert type(decode(encoded.format, encoded.data, kind)) is pd.DataFrame


def test_a_frame_that_parquet_cannot_hold_is_refused() -> None:
    frame = pl.DataFrame({"a": [object()]}, schema={"a": pl.Object})
    with pytest.raises(OutputError, match=r"this frame cannot be stored as Parquet: .*columns"):
        encode(frame)
    with pytest.raises(OutputError, match=r"this frame cannot be stored as Parquet: .*columns"):
        encode(pd.DataFrame({"a": [object(), 1]}))


class Frame(pd.DataFrame):  # type: ignore[misc] # pandas has no types
    pass


def test_a_class_of_ones_own_is_no_frame_that_would_come_back() -> None:
    with pytest.raises(OutputError, match="Frame"):
        encode(Frame({"a": [1]}))


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(SIMPLE["polars"])
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(OutputError, match=r"frame of polars.*install flowstone\[frames\]"):
        decode(encoded.format, encoded.data)


def test_bytes_that_are_no_parquet_are_refused() -> None:
    for library in FRAMES:
        with pytest.raises(OutputError, match="cannot read it as a frame"):
            decode(f"{library}.parquet", b"PAR1 and nothing else")
