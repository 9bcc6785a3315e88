"""Where the values of an attempt go."""

from __future__ import annotations

import pytest
from hypothesis import given

from flowstone.errors import BadPartition
from flowstone.partition_key import Key, encode_key
from tests.io.places import place
from tests.strategies import keys


def folders(key: Key) -> list[str]:
    return place(encode_key(key)).location(".json").split("/")[1:-1]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("", []),
        ("..", ["%2E%2E"]),
        ("2013-01-15", ["2013-01-15"]),
        ("a/b", ["a%2Fb"]),
        (("2013-01-15", "eu"), ["2013-01-15|eu"]),
    ],
)
def test_folders_can_be_read(key: Key, expected: list[str]) -> None:
    assert folders(key) == expected


def test_long_keys_that_begin_alike_have_folders_of_their_own() -> None:
    (one,), (other,) = folders("a" * 300 + "b"), folders("a" * 300 + "c")
    assert one != other
    assert len(one) == len(other) == 100


def test_each_attempt_has_a_place_of_its_own() -> None:
    places = [place(attempt=1), place(attempt=1), place(attempt=2)]
    assert len({one.location(".json") for one in places}) == 3
    assert places[0].location(".json") == f"made/7-1-{places[0].token.hex[:8]}.json"


@given(keys())
def test_no_key_leads_out_of_its_folder(key: Key) -> None:
    try:
        partition = encode_key(key)
    except BadPartition:
        return
    parts = place(partition).location(".json").split("/")
    assert parts[0] == "made"
    assert 2 <= len(parts) <= 3
    assert all(part and part.strip(".") and len(part.encode()) <= 255 for part in parts)
    assert all(part.isprintable() and part.isascii() for part in parts)
