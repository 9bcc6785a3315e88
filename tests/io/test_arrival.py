"""How a fan-in arrives: as a dict, lazily, as a list or as one frame, as the annotation says."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import flowstone
from flowstone import (
    Context,
    DailyPartitions,
    Dep,
    DynamicPartitions,
    LazyInputs,
    MonthlyPartitions,
    PerDimension,
    ProductPartitions,
    TimeWindow,
    add_partitions,
    asset,
    materialize_sync,
)
from flowstone.errors import DefinitionError, RunFailed
from flowstone.io.frames import concatenated
from flowstone.io.outputs import Outputs
from flowstone.registry import build_registry
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker

DAYS = DailyPartitions("2024-02-26", "2024-02-29")
MONTH = MonthlyPartitions("2024-02", "2024-02")
MISSING = date(2024, 2, 27)


@asset(partitions=DAYS)
def day(context: Context) -> pl.DataFrame:
    number = context.partition.day
    # One day has floats.
    return pl.DataFrame({"day": [number], "x": [number / 2 if number == 28 else number]})


@asset(partitions=DAYS)
def size(context: Context) -> int:
    return int(context.partition.day)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    load = Outputs.load

    def counted(self: Outputs, *given: Any, **named: Any) -> Any:
        seen.append(1)
        return load(self, *given, **named)

    monkeypatch.setattr(Outputs, "load", counted)
    return seen


def test_a_fan_in_arrives_as_its_reader_says(
    make_runtime: RuntimeFactory, loaded: list[int]
) -> None:
    told: dict[str, Any] = {}

    @asset(partitions=MONTH)
    def as_polars(day: pl.DataFrame) -> list[float]:
        return [float(x) for x in day["x"]]

    @asset(partitions=MONTH)
    def as_pandas(day: pd.DataFrame | None) -> list[Any]:
        assert day is not None
        return [type(day).__module__.partition(".")[0], *day.index, float(day["x"].sum())]

    @asset(partitions=MONTH)
    def as_arrow(day: pa.Table) -> list[Any]:
        return [type(day).__module__.partition(".")[0], *day["x"].to_pylist()]

    @asset(partitions=MONTH)
    def as_list(size: list[int]) -> list[int]:
        return size

    @asset(partitions=MONTH)
    def as_dict(size: dict[date, int]) -> int:
        return size[date(2024, 2, 28)]

    @asset(partitions=MONTH)
    def lazily(size: LazyInputs[date, int]) -> int:
        before = len(loaded)
        assert len(size) == 4
        assert list(size) == list(size.keys())
        assert date(2024, 2, 28) in size
        assert date(2024, 3, 28) not in size
        assert repr(size) == "LazyInputs(4 keys, 0 loaded)"
        assert len(loaded) == before
        assert size[date(2024, 2, 28)] + size[date(2024, 2, 28)] == 56
        told["once"] = len(loaded) - before
        assert dict(size.items())[date(2024, 2, 26)] == 26
        assert sum(size.values()) == 26 + 27 + 28 + 29
        told["again"] = len(loaded) - before
        assert repr(size) == "LazyInputs(4 keys, 1 loaded)"
        with pytest.raises(KeyError):
            size[date(2024, 3, 28)]
        return size[date(2024, 2, 29)]

    readers = [as_polars, as_pandas, as_arrow, as_list, as_dict, lazily]
    make_runtime(build_registry([day, size, *readers]))
    made = {
        r.name: materialize_sync(r, partition="2024-02", upstream=True).result() for r in readers
    }
    assert made == {
        "as_polars": [26.0, 27.0, 14.0, 29.0],
        "as_pandas": ["pandas", 0, 1, 2, 3, 96.0],
        "as_arrow": ["pyarrow", 26.0, 27.0, 14.0, 29.0],
        "as_list": [26, 27, 28, 29],
        "as_dict": 28,
        "lazily": 29,
    }
    assert told == {"once": 1, "again": 1 + 3 + 3}


def test_what_is_missing_is_none_or_left_out_and_a_frame_of_nothing_is_refused(
    make_runtime: RuntimeFactory,
) -> None:
    @asset(deps={"size": Dep("size", optional=True)})
    def as_list(size: list[int | None]) -> list[int | None]:
        return size

    @asset(deps={"size": Dep("size", optional=True)})
    def lazily(size: LazyInputs[date, int]) -> list[int | None]:
        return [value for _, value in size.items()]

    @asset(deps={"day": Dep("day", optional=True)})
    def as_frame(day: pl.DataFrame) -> list[int]:
        return [int(x) for x in day["day"]]

    @asset(deps={"day": Dep("day", optional=True)})
    def as_frame_or_none(day: pl.DataFrame | None) -> bool:
        return day is None

    make_runtime(build_registry([day, size, as_list, lazily, as_frame, as_frame_or_none]))
    assert materialize_sync(as_frame_or_none).result() is True
    with pytest.raises(
        RunFailed, match=r"'as_frame' reads 'day' as one frame, but there is no"
    ) as e:
        materialize_sync(as_frame)
    assert "DataFrame | None" in str(e.value)
    materialize_sync(size, partition="2024-02-28")
    materialize_sync(day, partition="2024-02-28")
    assert materialize_sync(as_list).result() == [None, None, 28, None]
    assert materialize_sync(lazily).result() == [None, None, 28, None]
    assert materialize_sync(as_frame).result() == [28]


def test_frames_that_do_not_make_one_name_two_partitions(make_runtime: RuntimeFactory) -> None:
    @asset(partitions=DAYS)
    def odd(context: Context) -> pl.DataFrame:
        is_odd = context.partition == MISSING
        return pl.DataFrame({"x" if is_odd else "y": [1]})

    @asset(partitions=MONTH)
    def month(odd: pl.DataFrame) -> int:
        return odd.height

    make_runtime(build_registry([odd, month]))
    with pytest.raises(
        RunFailed, match="'month' reads 'odd' as one frame: the frames of "
    ) as error:
        materialize_sync(month, partition="2024-02", upstream=True)
    said = "2024-02-26 and 2024-02-27 do not make one: the columns are y and x"
    assert said in str(error.value)


@pytest.mark.parametrize("library", [pl.DataFrame, pa.table])
def test_types_that_do_not_fit_name_two_partitions(library: Any) -> None:
    parts = {"a": library({"x": [1]}), "b": library({"x": [2]}), "c": library({"x": [["text"]]})}
    with pytest.raises(flowstone.FlowStoneError, match=r"the frames of a and c do not make one: "):
        concatenated(parts)
    assert len(concatenated({"a": parts["a"], "b": parts["b"]})) == 2


def test_pandas_keeps_an_index_that_says_something() -> None:
    one = pd.DataFrame({"x": [1]}, index=["p"])
    made = concatenated({"a": one, "b": pd.DataFrame({"x": [2.5]}, index=["q"])})
    assert made.to_dict() == {"x": {"p": 1.0, "q": 2.5}}


def test_an_asset_reads_its_own_day_before(make_runtime: RuntimeFactory) -> None:
    @asset(partitions=DAYS, deps={"before": Dep("balance", TimeWindow(-1)), "size": "size"})
    def balance(size: int, before: int | None) -> int:
        return size + (before or 0)

    @asset(partitions=DAYS, deps={"week": Dep("size", TimeWindow(-6, 0))})
    def last_week(week: dict[date, int]) -> list[int]:
        return list(week.values())

    make_runtime(build_registry([size, balance, last_week]))
    made = materialize_sync(balance, partition="2024-02-29", upstream=True)
    assert made.result()[date(2024, 2, 29)] == 26 + 27 + 28 + 29
    assert flowstone.get("balance", partition="2024-02-26") == 26
    assert materialize_sync(last_week, partition="2024-02-27").result() == [26, 27]


def test_sequences_and_tuples_arrive_as_they_are_asked_for(make_runtime: RuntimeFactory) -> None:
    @asset(partitions=MONTH)
    def sequence(size: Sequence[int]) -> list[Any]:
        return [type(size).__name__, *size]

    @asset(partitions=MONTH)
    def collection(size: Collection[int] | None) -> list[Any]:
        assert size is not None
        return [type(size).__name__, *size]

    @asset(partitions=MONTH)
    def iterable(size: Iterable[int]) -> list[Any]:
        return [type(size).__name__, *size]

    @asset(partitions=MONTH)
    def as_tuple(size: tuple[int, ...]) -> list[Any]:
        return [type(size).__name__, *size]

    @asset(partitions=MONTH)
    def mapping(size: Mapping[date, int]) -> list[Any]:
        return [type(size).__name__, *size.values()]

    readers = [sequence, collection, iterable, as_tuple, mapping]
    make_runtime(build_registry([size, *readers]))
    made = [materialize_sync(r, partition="2024-02", upstream=True).result() for r in readers]
    assert [(kind, values) for kind, *values in made] == [
        (kind, [26, 27, 28, 29]) for kind in ("list", "list", "list", "tuple", "dict")
    ]


@pytest.mark.parametrize("said", [int, str, set, set[int], pl.LazyFrame, tuple[int, int]])
def test_several_values_cannot_arrive_as_what_holds_one_or_another(said: Any) -> None:
    def month(size: Any) -> int:
        return len(size)

    month.__annotations__["size"] = said
    reader = asset(partitions=MONTH)(month)
    with pytest.raises(DefinitionError) as error:
        build_registry([size, reader])
    for part in ("'month' (", "partitions of 'size'", "parameter 'size' asks for", "list[V]"):
        assert part in error.value.message


def test_a_frame_of_values_that_are_none_names_the_partition(make_runtime: RuntimeFactory) -> None:
    @asset(partitions=MONTH)
    def month(size: pl.DataFrame) -> int:
        return size.height

    make_runtime(build_registry([size, month]))
    said = "'month' reads 'size' as one frame, but the value of 2024-02-26 is no frame"
    with pytest.raises(RunFailed, match=said):
        materialize_sync(month, partition="2024-02", upstream=True)


def test_the_first_day_of_a_dynamic_dimension_reads_nothing_of_its_own(
    make_runtime: RuntimeFactory,
) -> None:
    by_day = ProductPartitions(day=DAYS, customer=DynamicPartitions("customers"))
    before = Dep("balance", mapping=PerDimension(day=TimeWindow(-1)))

    @asset(partitions=by_day, deps={"before": before})
    def balance(context: Context, before: int | None) -> int:
        return int(context.dimensions["day"].day) + (before or 0)

    make_runtime(build_registry([balance]))
    add_partitions("customers", ["acme"])
    assert materialize_sync(balance, partition="2024-02-26|acme").result() == 26
    assert materialize_sync(balance, partition="2024-02-27|acme").result() == 26 + 27


def test_a_dependency_that_the_plan_does_not_know_is_told(make_runtime: RuntimeFactory) -> None:
    def define(deps: list[Any], function: Any) -> LocalWorker:
        reader = asset(name="reader", partitions=DAYS, deps=deps)(function)
        return LocalWorker(make_runtime(build_registry([size, reader])))

    planned = define([], lambda: 1)
    run = planned.begin("reader", partition="2024-02-26")
    later = define(["size"], lambda size: size)
    later.messages = planned.messages
    later.work()
    error = later.step(run, "reader").error
    assert "expects one value of 'size', the plan has 0; the definitions" in error["message"]
