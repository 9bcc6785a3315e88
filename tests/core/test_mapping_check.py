"""What is told of a mapping when the definitions are loaded, before anything is planned."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from flowstone import partition_set
from flowstone.asset import Dep, asset
from flowstone.errors import BadMapping, CyclicGraph
from flowstone.graph import AssetGraph
from flowstone.mapping import AllKeys, Keys, LastKeys, Mapped, PartitionMapping, SameKey, TimeWindow
from flowstone.partition import (
    DailyPartitions,
    DynamicPartitions,
    HourlyPartitions,
    Key,
    Moment,
    MonthlyPartitions,
    PartitionSet,
    ProductPartitions,
    StaticPartitions,
)

DAYS = DailyPartitions("2024-01-10", "2024-01-20")
GROWING = DailyPartitions("2024-01-10")
EU_US = StaticPartitions(["eu", "us"])
CITIES = StaticPartitions(["rome", "nyc", "oslo"])
REGION = {"rome": "eu", "nyc": "us", "oslo": "eu"}


def cities(region: str) -> list[str]:
    return [city for city, its in REGION.items() if its == region]


def load(down: PartitionSet, up: PartitionSet, dep: Dep) -> AssetGraph:
    upstream = asset(name="up", partitions=up)(lambda: 1)
    reader = asset(name="reader", partitions=down, deps=[dep])(lambda: 1)
    return AssetGraph.build([upstream, reader])


@pytest.mark.parametrize(
    ("down", "up", "mapping", "said"),
    [
        (
            GROWING,
            DailyPartitions("2024-01-12"),
            None,
            "by same key, partition 2024-01-10 leads outside of (daily, 2024-01-12 to today, UTC)",
        ),
        (
            DailyPartitions("2024-01-12", "2024-01-21"),
            DAYS,
            SameKey(),
            "partition 2024-01-21 leads outside of (daily, 2024-01-10 to 2024-01-20, UTC)",
        ),
        (
            DailyPartitions("2024-01-30", "2024-02-02"),
            MonthlyPartitions("2024-01", "2024-01"),
            None,
            "by the window around, partition 2024-02-01 leads outside",
        ),
        (DAYS, EU_US, Keys("eu", "asia"), "partition 'asia' is not one of eu, us"),
        (EU_US, DAYS, SameKey(), "partition eu leads outside of (daily"),
        (EU_US, DAYS, TimeWindow(-1), "needs time partitions on both sides, not (2 static keys)"),
        (DAYS, EU_US, TimeWindow(), "needs time partitions on both sides, not (2 static keys)"),
        (
            CITIES,
            EU_US,
            Mapped({**REGION, "oslo": "north"}.__getitem__, cities),
            "partition oslo leads outside of (2 static keys): __getitem__(oslo) returned 'north'",
        ),
        (
            CITIES,
            EU_US,
            Mapped(REGION.__getitem__, lambda region: cities(region)[:1]),
            "partition oslo reads eu, but its reverse does not lead back: it says that eu is read",
        ),
        (
            CITIES,
            EU_US,
            Mapped(REGION.__getitem__, lambda _: ["rome", "nyc", "oslo"]),
            "backwards, partition eu is read by nyc, but forwards that one reads us",
        ),
        (
            GROWING,
            GROWING,
            Mapped(lambda day: day + timedelta(days=1), lambda day: day),
            "partition 2024-01-10 reads 2024-01-11, but its reverse does not lead back",
        ),
        (
            CITIES,
            EU_US,
            Mapped({"rome": "eu", "oslo": "eu"}.__getitem__, cities),
            "__getitem__(nyc) failed: KeyError: 'nyc'",
        ),
    ],
)
def test_a_mapping_that_leads_nowhere_is_refused_when_it_is_loaded(
    down: PartitionSet, up: PartitionSet, mapping: PartitionMapping | None, said: str
) -> None:
    with pytest.raises(BadMapping, match=re.escape(said)) as caught:
        load(down, up, Dep("up", mapping))
    assert caught.value.message.startswith("'reader' (")
    assert ") cannot read 'up': " in caught.value.message


class Own:
    """What a user may write: it may return keys that nothing has looked at."""

    fan_in = False

    def __init__(self, forward: Callable[[Key], Any], reverse: Callable[[Key], Any]) -> None:
        self.forward, self.reverse = forward, reverse

    def upstream_keys(self, key: Key, *_: PartitionSet | Moment) -> Any:
        return self.forward(key)

    def downstream_keys(self, key: Key, *_: PartitionSet | Moment) -> Any:
        return self.reverse(key)

    def __str__(self) -> str:
        return "own"


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (Own(lambda _: ["a", "b", "c", "d"], lambda _: []), "partition rome reads a, b, c, ..."),
        (Own(lambda _: ["eu"], lambda _: ["paris"]), "its reverse does not lead back"),
        (Own(lambda _: [], lambda _: ["paris"]), "backwards, partition eu is read by paris, which"),
        (Own(lambda _: 1 // 0, lambda _: []), "upstream_keys(rome) of the mapping (own) failed"),
        (Own(lambda _: [], lambda _: 1 // 0), "downstream_keys(eu) of the mapping (own) failed"),
    ],
)
def test_a_mapping_of_a_users_own_is_tried(own: Own, said: str) -> None:
    with pytest.raises(BadMapping, match=re.escape(said)):
        load(CITIES, EU_US, Dep("up", own))
    load(
        CITIES,
        EU_US,
        Dep("up", Own(lambda _: ["us"], lambda key: CITIES.values if key == "us" else ())),
    )


def test_many_readers_are_no_fault_and_are_asked_for_once() -> None:
    asked: list[str] = []
    many = DailyPartitions("1990-01-01", "2024-12-31")
    numbers = StaticPartitions(range(3000))

    def readers(keys: Any) -> Callable[[Any], Any]:
        def reverse(key: Any) -> Any:
            asked.append(key)
            return keys

        return reverse

    # Of very many readers only the first are told, and the last day need not be among them.
    days = [date(1990, 1, 1) + timedelta(days=one) for one in range(12_784)]
    load(many, StaticPartitions(["eu"]), Dep("up", Mapped(lambda _: "eu", readers(days))))
    asked.clear()
    load(numbers, StaticPartitions(["eu"]), Dep("up", Mapped(lambda _: "eu", readers(range(3000)))))
    assert asked == ["eu", "eu"]


@pytest.mark.parametrize(
    "down",
    [
        DailyPartitions("1990-01-01", "2024-12-31"),
        HourlyPartitions("2013-01-01", "2014-12-31"),
        ProductPartitions(
            day=DailyPartitions("2020-01-01", "2024-12-31"), store=StaticPartitions(range(10))
        ),
        StaticPartitions(range(4000)),
    ],
)
def test_the_way_back_of_what_is_known_is_not_tried(
    down: PartitionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Key] = []
    read = Keys.upstream_keys

    def counted(self: Keys, key: Key, *args: Any) -> Any:
        asked.append(key)
        return read(self, key, *args)

    monkeypatch.setattr(Keys, "upstream_keys", counted)
    load(down, EU_US, Dep("up", Keys("eu")))
    assert len(asked) == 1


def test_an_error_of_a_long_list_is_made_for_those_who_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> str:
        raise AssertionError("nobody reads it")

    monkeypatch.setattr(partition_set, "did_you_mean", refuse)
    some, dynamic = StaticPartitions(range(10)), DynamicPartitions("some")
    at = Moment(datetime.now(UTC), lambda _: {"i:1": 1})
    for readers in (some, dynamic):
        assert list(SameKey().downstream_keys("eu", readers, EU_US, at)) == []
        assert list(SameKey().downstream_keys(1, readers, some, at)) == [1]
        assert list(Mapped(str, lambda _: ["1", "eu"]).downstream_keys(1, readers, some, at)) == [1]
    product = ProductPartitions(a=some, b=dynamic)
    assert [product.has(key, at) for key in ((1, 1), "1|1", (1, 2), (1,), 1.5)] == [  # type: ignore[arg-type]
        True,
        True,
        False,
        False,
        False,
    ]
    load(StaticPartitions(range(9)), EU_US, Dep("up", SameKey(), optional=True))


def test_a_mapping_without_a_way_back_is_refused() -> None:
    class Old:
        fan_in = False

        def upstream_keys(self, *_: Any) -> Any: ...

    with pytest.raises(BadMapping, match="the mapping Old has no downstream_keys; write it"):
        load(CITIES, EU_US, Dep("up", Old()))  # type: ignore[arg-type]


def test_what_fits_is_loaded_and_what_is_optional_may_lead_outside() -> None:
    later = DailyPartitions("2024-01-12")
    with pytest.raises(BadMapping):
        load(GROWING, later, Dep("up", SameKey()))
    load(GROWING, later, Dep("up", SameKey(), optional=True))
    # Where an offset leads outside, there is nothing to read.
    for fits in (TimeWindow(-1), TimeWindow(-6, 0), LastKeys(7), AllKeys()):
        load(GROWING, later, Dep("up", fits))
    load(CITIES, EU_US, Dep("up", Mapped(REGION.__getitem__, cities)))
    # Next year there will be days that the upstream set lacks; today, nobody is kept from loading.
    load(GROWING, DAYS, Dep("up", SameKey()))
    load(DAYS, GROWING, Dep("up", Mapped(lambda d: d, lambda d: d)))
    load(DailyPartitions("9999-12-25"), DailyPartitions("9999-12-01"), Dep("up"))


@pytest.mark.parametrize(
    "mapping", [SameKey(), AllKeys(), LastKeys(2), TimeWindow(-6, 0), Keys(date(2024, 1, 10))]
)
def test_an_asset_that_reads_the_same_partition_of_itself_is_refused(
    mapping: PartitionMapping,
) -> None:
    def own(mapping: PartitionMapping) -> AssetGraph:
        deps = {"before": Dep("balance", mapping)}
        return AssetGraph.build(
            [asset(name="balance", partitions=DAYS, deps=deps)(lambda before: before)]
        )

    with pytest.raises(CyclicGraph, match=r"'balance' \(.*reads itself by .*TimeWindow\(offset=-1"):
        own(mapping)
    assert own(TimeWindow(-1)).order == ("balance",)
    assert own(Mapped(lambda _: [], lambda _: [])).order == ("balance",)
