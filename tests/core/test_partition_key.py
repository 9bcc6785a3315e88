"""Partition keys: what goes into the ledger comes back as what it was."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowstone.errors import BadPartition
from flowstone.key_map import KeyMap
from flowstone.partition_key import (
    MAX_KEY_LENGTH,
    UNPARTITIONED,
    Key,
    Month,
    decode_key,
    encode_key,
    label,
    step_name,
)
from tests.strategies import keys, texts

BERLIN = ZoneInfo("Europe/Berlin")


def identity(key: Key) -> Any:
    """What makes a key itself: 1 is not True, and a fold counts where it makes a difference."""
    if isinstance(key, tuple):
        return tuple(map(identity, key))
    if isinstance(key, Mapping):
        return KeyMap, [(name, identity(part)) for name, part in key.items()]
    if isinstance(key, datetime):
        zone = getattr(key.tzinfo, "key", None)
        fold = key.fold if zone is None else None
        return datetime, key.replace(tzinfo=None, fold=0), key.utcoffset(), zone, fold
    return type(key), key


@settings(deadline=None, max_examples=400)
@given(keys())
@example(())
@example(((), ("",)))
@example(KeyMap({}))
@example(KeyMap({"b": "}", "a=": ("{", KeyMap({"=,": None}), "x=y")}))
@example((KeyMap({"a": "b"}), "x=}"))
@example(UNPARTITIONED)
@example(datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1))
@example(datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN, fold=0))
@example(datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN, fold=1))
@example(datetime(1800, 1, 1, tzinfo=BERLIN))
@example(datetime(2024, 1, 1, fold=1))  # noqa: DTZ001 - naive moments are legal keys
def test_every_key_comes_back_with_its_value_and_its_type(key: Key) -> None:
    try:
        text = encode_key(key)
    except BadPartition as error:
        assert "limit is 512" in error.message  # noqa: PT017 - long keys are refused below
        return
    assert identity(decode_key(text)) == identity(key)
    assert "\0" not in text
    assert text.isascii()


@settings(deadline=None, max_examples=300)
@given(keys(), keys())
@example(1, True)
@example("1", 1)
@example("n:", None)
@example("2013-01-15", date(2013, 1, 15))
@example(("a", "b"), ("a,s:b",))
@example(("a",), "a")
@example((("a",), "b"), ("a", ("b",)))
@example((), UNPARTITIONED)
@example("-", UNPARTITIONED)
@example(KeyMap({}), ())
@example(KeyMap({"a": "b"}), "{a=s:b}")
@example(KeyMap({"a": "b,c=s:d"}), KeyMap({"a": "b", "c": "d"}))
@example(KeyMap({"a": ("b", "c")}), KeyMap({"a": ("b,s:c",)}))
@example(date(2013, 1, 1), datetime(2013, 1, 1))  # noqa: DTZ001
@example(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")))
@example(
    datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN),
    datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
)
def test_two_different_keys_are_never_written_alike(one: Key, other: Key) -> None:
    if identity(one) != identity(other):
        assert _try_encode(one) != _try_encode(other)


def _try_encode(key: Key) -> object:
    try:
        return encode_key(key)
    except BadPartition:
        return object()


@settings(deadline=None, max_examples=400)
@given(
    st.text(max_size=30)
    | st.text("-nsbidmt:()[]{}=,!%0123456789TZ+truefals", max_size=30)
    | st.tuples(st.sampled_from("nsbidmt"), texts()).map(":".join)
)
@example("")
@example("--")
@example("s:%2c")
@example("s:%41")
@example("s:%FF")
@example("s:a b,")
@example("s:\ud800")
@example("i:01")
@example("i:+1")
@example("i:\u0661")
@example("i:1_0")
@example("i: 1")
@example("i:" + "9" * 5000)
@example("b:True")
@example("b:")
@example("n:x")
@example("d:20130115")
@example("d:2013-W03-2")
@example("m:2013-1")
@example("m:2013-13")
@example("t:2013-01-15")
@example("t:2013-01-15T00:00:00Z")
@example("t:2013-01-15T00:00:00+02:00[Europe/Berlin]")
@example("t:2013-01-15T00:00:00+01:00[Europe]")
@example("t:2013-01-15T00:00:00+01:00[Nowhere/Land]")
@example("t:2013-01-15T00:00:00+01:00[../../etc/passwd]")
@example("t:2013-01-15T00:00:00+01:00[" + "a" * 400 + "]")
@example("t:2013-01-15T00:00:00+01:00[Europe/Berlin")
@example("t:2013-01-15T00:00:00!!")
@example("(s:a")
@example("(s:a,)")
@example("(,)")
@example("(s:a))")
@example("{a=s:b")
@example("{a=s:b,}")
@example("{b=i:1,a=i:1}")
@example("{a=i:1,a=i:1}")
@example("{=i:1}")
@example("{a}")
@example("{a=s:x=y}")
@example("{a=s:x}}")
@example("({a=s:b)}")
@example("{" * 5000)
@example("{a=" * 2000 + "}" * 2000)
@example("s:" + "a" * 600)
@example("(" * 512)
@example("(" * 5000 + ")" * 5000)
def test_text_that_no_key_is_written_as_is_refused_as_a_bad_partition(text: str) -> None:
    try:
        key = decode_key(text)
    except BadPartition:
        return
    assert encode_key(key) == text


@pytest.mark.parametrize("text", ["s:%41", "i:01", "b:True", "(s:a,)", "t:2013-01-15", "", "x:1"])
def test_what_is_not_canonical_is_refused_with_the_text_in_the_message(text: str) -> None:
    with pytest.raises(BadPartition, match="is not an encoded partition key") as caught:
        decode_key(text)
    assert repr(text) in caught.value.message


def test_a_key_that_is_too_long_for_an_index_is_refused() -> None:
    assert len(encode_key("a" * (MAX_KEY_LENGTH - 2))) == MAX_KEY_LENGTH
    with pytest.raises(BadPartition, match="has 513 characters, the limit is 512"):
        encode_key("a" * (MAX_KEY_LENGTH - 1))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("-", UNPARTITIONED),
        ("s:eu", "eu"),
        ("s:a=b", "a=b"),
        ("s:{a=s:b}", "{a=s:b}"),
        ("s:a%2Cb%25 %28%29%5B%5D", "a,b% ()[]"),
        ("(s:a}b,s:{=)", ("a}b", "{=")),
        ("i:-5", -5),
        ("b:true", True),
        ("n:", None),
        ("d:2013-01-15", date(2013, 1, 15)),
        ("m:2013-01", Month(2013, 1)),
        ("t:2013-01-15T00:00:00-05:00", datetime.fromisoformat("2013-01-15T00:00:00-05:00")),
        (
            "t:2024-10-27T02:30:00+01:00[Europe/Berlin]",
            datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
        ),
        ("(d:2013-01-15,(s:eu,i:1),())", (date(2013, 1, 15), ("eu", 1), ())),
    ],
)
def test_what_was_written_before_there_were_mappings_is_read_and_written_as_it_was(
    text: str, key: Key
) -> None:
    assert identity(decode_key(text)) == identity(key)
    assert encode_key(key) == text


def test_a_dict_as_a_key_becomes_a_mapping_that_never_changes() -> None:
    text = "{env=s:prod,region=s:eu}"
    given_ = {"region": "eu", "env": "prod"}
    assert encode_key(given_) == text
    key = decode_key(text)
    assert isinstance(key, KeyMap)
    assert key == given_
    assert list(key) == ["env", "region"]
    assert {key: 1}[KeyMap(given_)] == 1
    assert pickle.loads(pickle.dumps(key)) == key  # noqa: S301 - made one line above
    # What it was made of may change; it does not.
    given_["env"] = "test"
    assert key["env"] == "prod"
    nested = KeyMap({"a": ({"b": 1},)})
    assert isinstance(nested["a"][0], KeyMap)


class NoName(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "CET"


def unnamed_zone() -> ZoneInfo:
    import importlib.resources  # noqa: PLC0415

    data = importlib.resources.files("tzdata.zoneinfo.Europe").joinpath("Berlin").read_bytes()
    return ZoneInfo.from_file(io.BytesIO(data))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (1.5, "float"),
        ([1], "list"),
        (b"a", "bytes"),
        ({"a": 1.5}, "float"),
        ({1: "a"}, "the name 1 in a partition key is not a text"),
        ({"": "a"}, "the name '' in a partition key is not a text"),
        (object(), "object"),
        (("a", 1.5), "float"),
        ("\ud800", "not valid Unicode"),
        (datetime(2024, 1, 1, tzinfo=NoName()), "NoName"),
        (datetime(2024, 1, 1, tzinfo=unnamed_zone()), "ZoneInfo"),
    ],
)
def test_a_value_that_would_not_come_back_is_refused(value: Any, named: str) -> None:
    with pytest.raises(BadPartition, match=named):
        encode_key(value)


def test_a_key_that_is_nested_without_end_is_refused() -> None:
    key: Key = "a"
    for _ in range(3000):
        key = (key,)
    with pytest.raises(BadPartition):
        encode_key(key)


@pytest.mark.parametrize(
    ("key", "shown", "step"),
    [
        ("eu", "eu", "sales[eu]"),
        (date(2013, 1, 15), "2013-01-15", "sales[2013-01-15]"),
        (Month(2013, 1), "2013-01", "sales[2013-01]"),
        ((date(2013, 1, 15), "eu"), "2013-01-15|eu", "sales[2013-01-15|eu]"),
        (None, "None", "sales[None]"),
        ({"region": "eu", "env": "prod"}, "env=prod,region=eu", "sales[env=prod,region=eu]"),
        (-5, "-5", "sales[-5]"),
        ("a\0b\n", "a%00b%0A", "sales[a%00b%0A]"),
        (UNPARTITIONED, "", "sales"),
    ],
)
def test_people_read_a_label_that_any_terminal_and_database_takes(
    key: Key, shown: str, step: str
) -> None:
    encoded = encode_key(key)
    assert label(encoded) == shown
    assert step_name("sales", encoded) == step


@pytest.mark.parametrize(
    "text", ["2013", "2013-1", "2013-00", "0000-01", "2013-13", "\u0662013-01"]
)
def test_a_month_is_written_in_one_way_only(text: str) -> None:
    with pytest.raises(BadPartition):
        Month.parse(text)


def test_the_month_after_december_is_january() -> None:
    assert Month(2013, 12).plus(1) == Month(2014, 1)
    assert Month(2013, 1).plus(1) == Month(2013, 2)
    assert Month(2013, 12) < Month(2014, 1)
