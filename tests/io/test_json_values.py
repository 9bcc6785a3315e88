"""JSON values of every kind: what is stored comes back, or is refused with the remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict, defaultdict
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone.errors import OutputError
from flowstone.io import Outputs
from flowstone.io.formats import decode, encode
from flowstone.io.json_values import dump, is_same, load
from flowstone.key_map import KeyMap
from flowstone.partition_key import Month
from tests.io.places import place
from tests.strategies import fixed_offsets, moments, months, zones

NEW_YORK = ZoneInfo("America/New_York")

PLAIN: list[Any] = [
    None, True, False, 0, 1, -1, 2**70, 1.0, -0.0, 1e300, "", "ü", "\0", "\U0001f600", [], {},
    [None], {"": None}, [True, 1, 1.0], {"b": 1, "a": 2}, {"a": [{"b": [1.5]}]},
    {"$": 1}, {"$": "date", "v": "2013-01-01"},
]  # fmt: skip

TAGGED: list[Any] = [
    date(2013, 1, 15),
    datetime(2013, 1, 15, 12, 30, 1, 5),  # noqa: DTZ001 - a value of a user
    datetime(2013, 1, 15, tzinfo=UTC),
    datetime(2013, 11, 3, 1, 30, tzinfo=NEW_YORK),
    datetime(2013, 11, 3, 1, 30, tzinfo=NEW_YORK, fold=1),
    datetime(2013, 6, 3, 1, 30, tzinfo=NEW_YORK, fold=1),
    datetime(2013, 3, 10, 2, 30, tzinfo=NEW_YORK),
    datetime(1850, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2013, 1, 15, fold=1),  # noqa: DTZ001 - as above
    datetime(2013, 1, 15, tzinfo=timezone(timedelta(hours=5, seconds=1, microseconds=7))),
    datetime.min,  # noqa: DTZ901 - as above
    datetime.max.replace(tzinfo=UTC),
    time(1, 2, 3),
    time(1, 2, fold=1, tzinfo=UTC),
    time(1, 2, tzinfo=NEW_YORK),
    timedelta(days=-1, microseconds=1),
    timedelta.max,
    Decimal("1.10"),
    Decimal("1E+3"),
    Decimal("-0.00"),
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("-Infinity"),
    b"",
    b"\0\xff",
    UUID(int=5),
    Month(2013, 1),
    KeyMap({"env": "prod", "of": (Month(2013, 1), {"tier": 1})}),
    {KeyMap({"env": "prod"}): 1},
    (),
    (1, "a", (None,)),
    set(),
    {1, "a", None, 1.5, (1, 2), frozenset({"x", "y"})},
    {frozenset({date(2013, 1, 1), "a"}), frozenset()},
    frozenset({Decimal("1.0")}),
    {2: "a", "2": "b", None: "c", (1, "x"): "d", date(2013, 1, 1): "e", True: "f"},
    {"a": {"$": [b"x"]}, "b": ({"$": {"$": ()}},)},
    float("nan"),
    [float("inf"), float("-inf"), float("nan")],
    {float("nan")},
    {"deep": [({"x": {Decimal(1): {date(2013, 1, 1): {b"y"}}}},)]},
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_json_stays_plain(value: Any) -> None:
    format, data = dump(value, None)
    assert format == "json"
    assert json.loads(data) == value
    assert is_same(load(format, data), value)


@pytest.mark.parametrize("value", TAGGED, ids=range(len(TAGGED)))
def test_what_json_has_no_word_for_is_tagged(value: Any) -> None:
    format, data = dump(value, None)
    assert format == "tagged.json"
    back = load(format, data)
    assert type(back) is type(value)
    assert is_same(back, value)
    # By the eyes of Python, where those tell: the order of a set may differ.
    if not isinstance(value, set | frozenset | dict):
        assert repr(back) == repr(value)


@pytest.mark.parametrize("number", range(3))
def test_every_manager_keeps_every_kind(outputs: Outputs, number: int) -> None:
    """One value that has all kinds in it, None, and one that is plain."""
    value = [{"plain": PLAIN, "tagged": TAGGED}, None, PLAIN][number]
    stored = outputs.store(value, place())
    assert is_same(outputs.load(stored), value)
    assert stored.location.endswith(".json")
    assert outputs.exists(stored)
    assert outputs.describe(stored).size == stored.size


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Items(list[Any]):
    pass


class Thing:
    pass


class Zone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "my own"


class Moment(datetime):
    pass


def circle() -> list[Any]:
    made: list[Any] = []
    made.append({"again": made})
    return made


def circle_with_a_tag() -> dict[str, Any]:
    made: dict[str, Any] = {"at": date(2013, 1, 1)}
    made["again"] = (made,)
    return made


def nested(depth: int) -> Any:
    made: Any = ()
    for _ in range(depth):
        made = (made,)
    return made


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Text("a"), "Text"),
        (Number(1), "Number"),
        (Items([1]), "Items"),
        ({"a": Text("a")}, "dict"),
        ({Text("a"): 1}, "dict"),
        ((Number(1),), "tuple"),
        ({Number(1)}, "set"),
        (OrderedDict(a=1), "OrderedDict"),
        (defaultdict(list), "defaultdict"),
        (bytearray(b"a"), "bytearray"),
        (memoryview(b"a"), "memoryview"),
        (1j, "complex"),
        (range(3), "range"),
        (Thing(), "Thing"),
        (Thing, "type"),
        (len, "builtin_function_or_method"),
        (iter([1]), "list_iterator"),
        (np.float64(1.5), "float64"),
        (np.float64("nan"), "float64"),
        (np.int64(1), "int64"),
        (np.bool_(True), "bool"),
        (np.array([1]), "ndarray"),
        ([np.float64(1.5)], "list"),
        (pd.Timestamp("2013-01-01"), "Timestamp"),
        (pd.Series([1]), "Series"),
        (pl.LazyFrame({"a": [1]}), "LazyFrame"),
        (Moment(2013, 1, 1), "Moment"),
        (datetime(2013, 1, 1, tzinfo=Zone()), "datetime"),
        (datetime(2013, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")), "datetime"),
        (time(1, tzinfo=timezone(timedelta(hours=1), "CET")), "time"),
        ("\ud800", "str"),
        ([10**5000], "list"),
        (circle(), "list"),
        (circle_with_a_tag(), "dict"),
        (nested(100_000), "tuple"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else "value",
)
def test_what_would_not_come_back_is_refused_with_its_type_and_the_remedy(
    value: Any, named: str
) -> None:
    with pytest.raises(OutputError, match=rf"\b{named}\b") as caught:
        encode(value)
    assert "return JSON values, dates" in caught.value.message
    assert "pickle=True" in caught.value.message
    assert len(caught.value.message) < 500
    assert not caught.value.retryable


def test_nothing_of_a_refused_value_is_stored(outputs: Outputs) -> None:
    with pytest.raises(OutputError):
        outputs.store(Thing(), place())
    assert list(outputs.manager("default").stored()) == []


def test_text_that_is_tagged_is_code_of_nobody() -> None:
    with pytest.raises(OutputError, match=r"with the tag 'os.system' cannot be read"):
        load("tagged.json", b'{"$": "os.system", "v": "true"}')


def test_a_format_of_another_version_is_refused() -> None:
    with pytest.raises(OutputError, match="format 'msgpack' cannot be read by this version"):
        decode("msgpack", b"")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["$", "v", "date", "model", "dict"]
)

atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    st.binary(max_size=8),
    st.decimals(allow_nan=True),
    st.uuids(),
    st.dates(),
    months(),
    moments(),
    st.times(timezones=st.none() | zones() | fixed_offsets()),
    st.timedeltas(),
)


def _hashable(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(parts, max_size=4).map(tuple) | st.frozensets(parts, max_size=4)


# A signalling NaN has no hash.
keys = st.recursive(
    atoms.filter(lambda v: not (isinstance(v, Decimal) and v.is_snan())), _hashable, max_leaves=4
)

values = st.recursive(
    atoms,
    lambda v: st.one_of(
        st.lists(v, max_size=4),
        st.lists(v, max_size=4).map(tuple),
        st.dictionaries(keys, v, max_size=4),
        st.dictionaries(texts, v, max_size=4),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
    ),
    max_leaves=10,
)


def types_and_values(value: Any) -> Any:
    """Say what a value is, by other means than the code that is tested."""
    if isinstance(value, dict):
        return "dict", [(types_and_values(k), types_and_values(v)) for k, v in value.items()]
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(map(repr, map(types_and_values, value)))
    if isinstance(value, list | tuple):
        return type(value).__name__, [types_and_values(part) for part in value]
    return type(value).__name__, repr(value)


@settings(deadline=None, max_examples=300)
@given(values)
def test_any_value_comes_back_as_what_it_was(value: Any) -> None:
    encoded = encode(value)
    back = decode(encoded.format, encoded.data)
    assert types_and_values(back) == types_and_values(value)
    # What came back is stored as the same bytes: what reads it finds its input unchanged.
    assert encode(back).data == encoded.data


@given(st.lists(keys, max_size=8))
def test_equal_sets_are_equal_bytes_whatever_their_order(parts: list[Any]) -> None:
    one: set[Any] = set(parts)
    other: set[Any] = set()
    for part in reversed(list(one)):
        other.add(part)
    assert encode(one).data == encode(other).data
    assert encode({"a": (frozenset(one),)}).data == encode({"a": (frozenset(other),)}).data


@given(values, values)
def test_values_that_differ_are_told_apart(one: Any, other: Any) -> None:
    same = types_and_values(one) == types_and_values(other)
    assert is_same(one, other) == same
    assert (encode(one).data == encode(other).data) == same


def test_equal_sets_are_equal_bytes_in_every_process() -> None:
    """Python draws the hashes of texts anew in each process, and by them the order of sets."""
    script = (
        "from flowstone.io.formats import encode\n"
        "print(encode({frozenset({'a', 'b', 'c', n}) for n in 'defgh'}).data)"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert len(said) == 1
    assert "frozenset" in said.pop()
