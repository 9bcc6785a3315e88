"""Partitions of several dimensions, and of keys that are added at run time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from itertools import islice, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.choice import chosen, parse_choice
from flowstone.context import Context, Resources
from flowstone.errors import BadPartition, DefinitionError
from flowstone.partition import (
    UNPARTITIONED,
    DailyPartitions,
    DynamicPartitions,
    HourlyPartitions,
    Moment,
    MonthlyPartitions,
    PartitionSet,
    ProductPartitions,
    StaticPartitions,
    UnpartitionedSet,
)
from flowstone.partition_key import Key, decode_key, encode_key, label

DAYS = DailyPartitions("2013-01-01", "2013-01-31")
REGIONS = StaticPartitions(["eu", "us", "asia"])
CUSTOMERS = DynamicPartitions("customers")
ADDED: dict[str, dict[str, Key]] = {
    "customers": {encode_key(key): key for key in ("globex", "acme", 7)},
    "none": {},
}
AT = Moment(datetime(2024, 6, 15, tzinfo=UTC), lambda name: ADDED[name])

TWO = ProductPartitions(day=DAYS, region=REGIONS)
THREE = ProductPartitions({"region": REGIONS, "customer": CUSTOMERS, "day": DAYS})


def keys(partitions: PartitionSet, given_: Any) -> list[Key]:
    return list(chosen(partitions, parse_choice(given_), AT))


def test_the_keys_are_all_combinations_the_last_dimension_fastest() -> None:
    found = list(TWO.keys(AT))
    assert found[:4] == [
        (date(2013, 1, 1), "eu"),
        (date(2013, 1, 1), "us"),
        (date(2013, 1, 1), "asia"),
        (date(2013, 1, 2), "eu"),
    ]
    assert len(found) == 31 * 3
    assert len(list(THREE.keys(AT))) == 3 * 3 * 31
    endless = ProductPartitions(day=DailyPartitions("0001-01-01", "9999-12-31"), region=REGIONS)
    assert len(list(islice(endless.keys(AT), 4))) == 4


@pytest.mark.parametrize(
    "given_",
    [
        (date(2013, 1, 15), "eu"),
        ("2013-01-15", "eu"),
        {"region": "eu", "day": date(2013, 1, 15)},
        {"day": "2013-01-15", "region": "eu"},
        "2013-01-15|eu",
        " 2013-01-15 | eu ",
    ],
)
def test_a_key_is_given_as_a_tuple_a_mapping_or_a_text(given_: Key) -> None:
    key = (date(2013, 1, 15), "eu")
    assert TWO.coerce(given_, AT) == key
    # As it is after it was kept with a request.
    assert TWO.coerce(decode_key(encode_key(given_)), AT) == key
    assert TWO.named(key) == {"day": date(2013, 1, 15), "region": "eu"}


@given(st.sampled_from(list(THREE.keys(AT))))
def test_each_key_is_found_by_what_people_read(key: Key) -> None:
    assert THREE.coerce(label(encode_key(key)), AT) == key


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ("2013-01-15", "does not say one key of each of day, region; write it as DAY|REGION"),
        ("2013-01-15|eu|x", "does not say one key of each"),
        (UNPARTITIONED, "partition UNPARTITIONED does not say one key of each"),
        (("2013-01-15",), "does not say one key of each"),
        ({"day": "2013-01-15"}, "does not say one key of each"),
        (
            {"day": "2013-01-15", "regoin": "eu"},
            "'regoin' is none of the dimensions day, region; did",
        ),
        ("2013-02-15|eu", "day: partition 2013-02-15 lies outside 2013-01-01 to 2013-01-31"),
        ("2013-01-15|europe", "region: partition 'europe' is not one of eu, us, asia"),
    ],
)
def test_what_is_no_key_of_a_product_is_refused(given_: Key, said: str) -> None:
    with pytest.raises(BadPartition) as caught:
        TWO.coerce(given_, AT)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (ProductPartitions, "at least two dimensions"),
        (lambda: ProductPartitions(day=DAYS), "at least two dimensions"),
        (lambda: ProductPartitions({"a b": DAYS, "c": DAYS}), "'a b' is no name of a dimension"),
        (lambda: ProductPartitions(a=TWO, b=DAYS), "give a set of one dimension"),
        (lambda: ProductPartitions(a=UnpartitionedSet(), b=DAYS), "give a set of one dimension"),
        (lambda: ProductPartitions(a=["eu"], b=DAYS), "the dimension 'a' is a list"),  # type: ignore[arg-type]
        (lambda: DynamicPartitions("a b"), "'a b' is no name for dynamic partitions"),
    ],
)
def test_a_set_that_makes_no_sense_is_refused_where_it_is_defined(
    make: Callable[[], PartitionSet], said: str
) -> None:
    with pytest.raises(DefinitionError) as caught:
        make()
    assert said in caught.value.message


def test_a_product_is_a_value_that_says_how_it_cuts_time() -> None:
    assert ProductPartitions({"day": DAYS, "region": REGIONS}) == TWO
    assert len({TWO, ProductPartitions(day=DAYS, region=REGIONS), THREE}) == 2
    assert TWO.cut == "day: daily, UTC"
    assert ProductPartitions(a=REGIONS, b=CUSTOMERS).cut is None
    both = ProductPartitions(month=MonthlyPartitions("2013-01"), hour=HourlyPartitions("2013"))
    assert both.cut == "month: monthly, UTC; hour: hourly, UTC"
    assert str(TWO) == ("day (daily, 2013-01-01 to 2013-01-31, UTC) x region (3 static keys)")
    assert list(THREE.dimensions) == ["region", "customer", "day"]


def context(partitions: PartitionSet, key: Key) -> Context:
    return Context("run", "asset", key, partitions, 1, None, Resources({}), None)  # type: ignore[arg-type]


def test_a_step_is_told_its_dimensions_and_its_window() -> None:
    one = context(TWO, (date(2013, 1, 15), "eu"))
    assert one.dimensions == {"day": date(2013, 1, 15), "region": "eu"}
    assert one.window == DAYS.window(date(2013, 1, 15))
    two_of_time = ProductPartitions(day=DAYS, sent=DAYS)
    assert context(two_of_time, (date(2013, 1, 1), date(2013, 1, 2))).window is None
    assert context(ProductPartitions(a=REGIONS, b=CUSTOMERS), ("eu", "acme")).window is None
    assert context(DAYS, date(2013, 1, 1)).dimensions == {}
    assert context(UnpartitionedSet(), UNPARTITIONED).window is None


TWO_DAYS = [date(2013, 1, 1), date(2013, 1, 2)]


@pytest.mark.parametrize(
    ("given_", "meant"),
    [
        ("all", list(TWO.keys(AT))),
        ("*|*", list(TWO.keys(AT))),
        ("..2013-01-02|eu", [(day, "eu") for day in TWO_DAYS]),
        ("..2013-01-02|eu..us", list(product(TWO_DAYS, ["eu", "us"]))),
        ("2013-01|asia", [(key, "asia") for key in DAYS.keys(AT)]),
        ({"day": "2013-01-01", "region": "*"}, list(product(TWO_DAYS[:1], ["eu", "us", "asia"]))),
        ((date(2013, 1, 1), "us"), [(date(2013, 1, 1), "us")]),
        (
            ["2013-01-02|us", "2013-01-01|*", ("2013-01-02", "eu"), "..2013-01-02|us"],
            [*product(TWO_DAYS[:1], ["eu", "us", "asia"]), *product(TWO_DAYS[1:], ["eu", "us"])],
        ),
    ],
)
def test_a_choice_names_keys_or_ranges_of_each_dimension(given_: Any, meant: list[Key]) -> None:
    assert keys(TWO, given_) == meant


days_ = st.integers(1, 31).map(lambda n: date(2013, 1, n))
boxes = st.tuples(
    st.lists(st.sampled_from(["eu", "us", "asia"]), min_size=1, max_size=2, unique=True),
    st.sampled_from(["globex", "acme", 7, "*"]),
    st.tuples(days_, days_).map(sorted),
)


@given(st.lists(boxes, min_size=1, max_size=4))
def test_ranges_of_a_product_are_what_filtering_would_leave(given_: list[Any]) -> None:
    parts = [
        (region, customer, f"{low}..{high}")
        for regions, customer, (low, high) in given_
        for region in regions
    ]
    wanted = [
        key
        for key in THREE.keys(AT)
        if any(
            key[0] in regions and customer in ("*", key[1]) and low <= key[2] <= high  # type: ignore[index]
            for regions, customer, (low, high) in given_
        )
    ]
    assert keys(THREE, parts) == wanted


def test_many_single_keys_of_a_product_are_not_compared_with_each_other() -> None:
    many = ProductPartitions(n=StaticPartitions(range(3000)), region=REGIONS)
    assert keys(many, [(n, "eu") for n in range(3000)]) == [(n, "eu") for n in range(3000)]


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ("2013-01", "does not say one key of each of day, region"),
        ("2014|eu", "day: no partition lies in '2014'"),
        ("2013-01|eu..nowhere", "region: partition 'nowhere' is not one of eu"),
    ],
)
def test_a_choice_of_a_product_that_means_nothing_is_refused(given_: Any, said: str) -> None:
    with pytest.raises(BadPartition) as caught:
        keys(TWO, given_)
    assert said in caught.value.message


def test_dynamic_keys_are_those_that_there_are_in_the_order_in_which_they_came() -> None:
    assert list(CUSTOMERS.keys(AT)) == ["globex", "acme", 7]
    assert CUSTOMERS.coerce("acme", AT) == "acme"
    assert CUSTOMERS.coerce("7", AT) == 7
    assert keys(CUSTOMERS, ["acme", "globex"]) == ["globex", "acme"]
    assert keys(CUSTOMERS, "acme..") == ["acme", 7]
    assert keys(CUSTOMERS, "all") == ["globex", "acme", 7]
    assert keys(DynamicPartitions("none"), "all") == []
    with pytest.raises(BadPartition) as caught:
        CUSTOMERS.coerce("acmee", AT)
    assert caught.value.message == (
        "partition 'acmee' is not one of globex, acme, 7; did you mean 'acme'?; "
        "`flowstone keys add customers acmee` adds it"
    )
    with pytest.raises(BadPartition, match="'none' have no keys; `flowstone keys add none x` adds"):
        DynamicPartitions("none").coerce("x", AT)
    assert CUSTOMERS.cut is None
