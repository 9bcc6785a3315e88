"""Assets of a module whose annotations are text, some of which names nothing at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import polars as pl
from pydantic import BaseModel

from flowstone import Context, asset

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


class Part(BaseModel):
    size: int


@asset
def frame() -> pl.DataFrame:
    return pl.DataFrame({"a": [1, 2]})


@asset
def as_pandas(frame: pd.DataFrame) -> str:
    return type(frame).__module__.partition(".")[0]


@asset
def as_is(frame) -> str:  # type: ignore[no-untyped-def] # noqa: ANN001
    return type(frame).__module__.partition(".")[0]


@asset
def as_noted(frame: Annotated[pd.DataFrame | None, "noted"]) -> str:
    return type(frame).__module__.partition(".")[0]


@asset
def parts() -> list[Part]:
    return [Part(size=1), Part(size=2)]


@asset
def total(parts: list[Part]) -> int:
    return sum(part.size for part in parts)


@asset
def total_of_any(parts: Any) -> int:
    return sum(part.size for part in parts)


@asset
def total_of_unknown(parts: Unknown, frame: pd.DataFrame, context: Context) -> Part:
    assert type(frame) is pd.DataFrame
    return Part(size=sum(part.size for part in parts))


@asset
def misnamed() -> Unknown:
    return Part(size=1)


ASSETS = [frame, as_pandas, as_is, as_noted, parts, total, total_of_any, total_of_unknown, misnamed]
