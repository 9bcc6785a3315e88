"""What a reader's annotation says, and the producer's, where values go from one to the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Optional

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel, Field

import flowstone
from flowstone import (
    Context,
    DailyPartitions,
    Dep,
    MonthlyPartitions,
    asset,
    check,
    materialize_sync,
    runtime,
)
from flowstone.errors import RunFailed
from flowstone.hints import bare, of_parameter, of_result, of_whole, value_of_fan_in
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from tests.conftest import RuntimeFactory
from tests.io import late_annotations

DAYS = DailyPartitions("2013-01-01", "2013-01-31")


class Part(BaseModel):
    size: int


@dataclass
class Point:
    x: float


def library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def test_a_reader_gets_the_frame_that_it_names(make_runtime: RuntimeFactory) -> None:
    @asset
    def frame() -> pl.DataFrame:
        return pl.DataFrame({"a": [1, 2]})

    @asset
    def as_pandas(frame: pd.DataFrame) -> list[Any]:
        return [library(frame), int(frame["a"].sum())]

    @asset
    def as_arrow(frame: pa.Table | None) -> list[Any]:
        return [library(frame), frame.num_rows if frame else 0]

    @asset
    def as_it_is(frame) -> list[Any]:  # type: ignore[no-untyped-def] # noqa: ANN001
        return [library(frame), frame.height]

    make_runtime(build_registry([frame, as_pandas, as_arrow, as_it_is]))
    materialize_sync(frame)
    assert materialize_sync(as_pandas).result() == ["pandas", 3]
    assert materialize_sync(as_arrow).result() == ["pyarrow", 2]
    assert materialize_sync(as_it_is).result() == ["polars", 2]


def test_a_fan_in_gets_each_frame_as_it_names_them(make_runtime: RuntimeFactory) -> None:
    @asset(partitions=DAYS)
    def day(context: Context) -> pd.DataFrame:
        return pd.DataFrame({"day": [context.partition.day]})

    @asset(partitions=MonthlyPartitions("2013-01", "2013-01"))
    def month(day: dict[date, pl.DataFrame]) -> int:
        assert all(type(key) is date for key in day)
        assert all(type(frame) is pl.DataFrame for frame in day.values())
        return sum(int(frame["day"].sum()) for frame in day.values())

    make_runtime(build_registry([day, month]))
    assert materialize_sync(month, partition="2013-01", upstream=True).result() == 31 * 16


def test_models_go_from_one_to_the_other(make_runtime: RuntimeFactory) -> None:
    @asset
    def parts() -> list[Part]:
        return [Part(size=1), Part(size=2)]

    @asset
    def maybe() -> Part | None:
        return None

    @asset(deps={"gone": Dep("never", optional=True)})
    def total(parts: list[Part], maybe: Part | None, gone: Part | None) -> Point:
        assert maybe is None
        assert gone is None
        return Point(float(sum(part.size for part in parts)))

    @asset
    def never() -> Part:
        raise ValueError("never")

    @asset
    def unannotated(parts, total: object):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        assert type(parts[0]) is Part
        assert type(total) is Point
        return total.x

    here = make_runtime(build_registry([parts, maybe, total, never, unannotated]))
    for one in (parts, maybe, total):
        materialize_sync(one)
    assert materialize_sync(unannotated).result() == 3.0
    assert flowstone.get("total") == Point(3.0)
    # A process that has not imported the definitions.
    elsewhere = Runtime(here.settings, build_registry([]))
    runtime.use(elsewhere)
    assert flowstone.get("total") == {"x": 3.0}
    assert flowstone.get("parts") == [{"size": 1}, {"size": 2}]
    assert flowstone.get("maybe") is None
    elsewhere.close()


def test_annotations_as_text_and_those_that_name_nothing(make_runtime: RuntimeFactory) -> None:
    make_runtime(build_registry(late_annotations.ASSETS))
    materialize_sync("frame")
    materialize_sync("parts")
    assert materialize_sync("as_pandas").result() == "pandas"
    assert materialize_sync("as_noted").result() == "pandas"
    assert materialize_sync("as_is").result() == "polars"
    assert materialize_sync("total").result() == 3
    assert materialize_sync("total_of_any").result() == 3
    # One that names nothing is none, and takes nothing from the others.
    assert materialize_sync("total_of_unknown").result() == late_annotations.Part(size=3)
    with pytest.raises(RunFailed, match="annotate the model, dataclass or enum"):
        materialize_sync("misnamed")


def test_a_reader_that_wants_another_model_fails_with_a_line(make_runtime: RuntimeFactory) -> None:
    @asset
    def part() -> Part:
        return Part(size=1)

    @asset
    def reader(part: Point) -> float:
        return part.x

    make_runtime(build_registry([part, reader]))
    materialize_sync(part)
    with pytest.raises(RunFailed, match=r"the output part/\S+: it cannot be read as .*Point"):
        materialize_sync(reader)


def test_none_is_a_value(make_runtime: RuntimeFactory) -> None:
    @asset
    def nothing() -> None:
        return None

    @asset
    def reader(nothing: pl.DataFrame) -> bool:
        return nothing is None

    make_runtime(build_registry([nothing, reader]))
    assert materialize_sync(reader, upstream=True).result() is True
    assert flowstone.get("nothing") is None
    assert flowstone.exists("nothing")


def test_checks_get_what_they_name(make_runtime: RuntimeFactory) -> None:
    seen: list[str] = []

    @asset
    def frame() -> pl.DataFrame:
        return pl.DataFrame({"a": [1]})

    @check(asset=frame)
    def as_pandas(frame: pd.DataFrame) -> bool:
        seen.append(library(frame))
        return True

    # Pydantic's Field has no hash.
    @check(asset=frame)
    def as_noted(frame: Annotated[pa.Table, Field(description="noted")]) -> bool:
        seen.append(library(frame))
        return True

    make_runtime(build_registry([frame], checks=[as_pandas, as_noted]))
    materialize_sync(frame)
    assert sorted(seen) == ["pandas", "pyarrow"]


def annotated(  # type: ignore[no-untyped-def]
    plain: int,
    maybe: int | None,
    old: Optional[int],  # noqa: UP045 - as users have them
    either: int | str | None,
    noted: Annotated[int, "note"],
    fan: dict[date, int],
    fan_of_maybe: Mapping[str, int | None],
    fan_or_none: dict[str, int] | None,
    fan_noted: Annotated[dict[str, int], "note"],
    bare: dict,  # type: ignore[type-arg]
    anything: Any,
    text: "Part",
    unknown: "Nowhere",  # type: ignore[name-defined] # noqa: F821
    none,  # noqa: ANN001
) -> "list[Part]":
    return []


@pytest.mark.parametrize(
    ("name", "fan_in", "expected"),
    [
        ("plain", False, int),
        ("maybe", False, int),
        ("old", False, int),
        ("either", False, int | str | None),
        ("noted", False, Annotated[int, "note"]),
        ("fan", False, dict[date, int]),
        ("fan", True, int),
        ("fan_of_maybe", True, int),
        ("fan_or_none", True, int),
        ("fan_noted", True, int),
        ("bare", True, None),
        ("plain", True, None),
        ("anything", False, None),
        ("text", False, Part),
        ("unknown", False, None),
        ("none", False, None),
        ("not_there", False, None),
    ],
)
def test_what_a_parameter_says(name: str, fan_in: bool, expected: Any) -> None:
    whole = of_whole(annotated, name)
    found = value_of_fan_in(bare(whole)) if fan_in else of_parameter(annotated, name)
    assert found == expected


def test_what_a_result_says() -> None:
    assert of_result(annotated) == list[Part]
    assert of_result(lambda: 1) is None
    assert of_result(len) is None
