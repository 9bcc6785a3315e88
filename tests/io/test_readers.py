"""What a reader's annotation does, where it says less than the function that made the value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Protocol, TypedDict

import pandas as pd
import polars as pl
import pytest
from pydantic import AnyUrl, BaseModel

from flowstone import hints
from flowstone.asset import asset
from flowstone.client import materialize_sync
from flowstone.errors import OutputError
from flowstone.io.formats import Encoded, decode, encode
from flowstone.registry import build_registry
from tests.conftest import RuntimeFactory


class Part(BaseModel):
    size: int


class Wheel(Part):
    spokes: int


class Fields(TypedDict):
    size: int


class Sized(Protocol):
    size: int


@pytest.mark.parametrize(
    ("wanted", "made_as", "expected"),
    [
        (None, None, None),
        (None, list[Part], list[Part]),
        (list[Part], None, list[Part]),
        (list, list[Part], list[Part]),
        (list | None, list[Part] | None, list[Part] | None),
        (Annotated[list, "noted"], list[Part], list[Part]),
        (Sequence, list[Part], list[Part]),
        (Mapping, dict[str, Part], dict[str, Part]),
        (Part, Wheel, Wheel),
        (Wheel, Part, Wheel),
        (list[dict[str, int]], list[Part], list[dict[str, int]]),
        (tuple, list[Part], tuple),
        (dict, Part, dict),
        (Fields, Part, Fields),
        (Sized, Part, Sized),
        (pd.DataFrame, pl.DataFrame, pd.DataFrame),
        (pl.DataFrame, pl.DataFrame, pl.DataFrame),
    ],
)
def test_who_says_less_gets_what_was_made(wanted: Any, made_as: Any, expected: Any) -> None:
    assert hints.nearer(wanted, made_as) == expected


def test_a_plain_list_and_a_base_class_lose_nothing(make_runtime: RuntimeFactory) -> None:
    @asset
    def wheels() -> list[Wheel]:
        return [Wheel(size=1, spokes=2)]

    @asset
    def wheel() -> Wheel:
        return Wheel(size=1, spokes=2)

    @asset
    def spokes(wheels: list, wheel: Part) -> int:  # type: ignore[type-arg]
        assert isinstance(wheel, Wheel)
        return int(wheels[0].spokes + wheel.spokes)

    @asset
    def plain(wheel: dict[str, int]) -> int:
        return wheel["spokes"]

    make_runtime(build_registry([wheels, wheel, spokes, plain]))
    assert materialize_sync(["spokes", "plain"], upstream=True).result("spokes") == 4
    assert materialize_sync("plain").result() == 2


@dataclass
class Host:
    address: IPv4Address
    home: Path
    page: AnyUrl
    other: PurePosixPath | None = None


def test_paths_and_addresses_come_back_by_their_annotation() -> None:
    value = Host(IPv4Address("127.0.0.1"), Path("/a b"), AnyUrl("http://host/ü"), PurePosixPath())
    encoded = encode(value, Host)
    assert decode(*_of(encoded), Host) == value
    assert decode(*_of(encode([Path("/a")], list[Path])), list[Path]) == [Path("/a")]
    # Without the annotation, they are texts.
    assert decode(*_of(encoded))["home"] == "/a b"


def _of(encoded: Encoded) -> tuple[str, bytes]:
    return encoded.format, encoded.data


def test_a_path_without_an_annotation_is_refused() -> None:
    for value in (Path("/a"), [Path("/a")], {"a": ip_address("::1")}):
        with pytest.raises(OutputError, match="would come back as another value or type"):
            encode(value)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": [1.5, None], "b": ["x", None]}, index=pd.Index(["k", "l"], name="key")),
        pd.DataFrame({"a": [[1], [2, 3]]}),
        pd.DataFrame({1: [1]}),
        pd.DataFrame({"a": [1, 2]}, index=pd.date_range("2024-01-01", periods=2, freq="D")),
        pd.DataFrame({"a": pd.Categorical(["x", "y"])}),
        pd.DataFrame(),
    ],
    ids=str,
)
def test_a_frame_of_pandas_comes_back(frame: pd.DataFrame) -> None:
    encoded = encode(frame)
    back = decode(encoded.format, encoded.data)
    pd.testing.assert_frame_equal(back, frame, check_freq=False)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": [{"x": 1}, {"y": 2}]}),
        pd.DataFrame({"a": [1, 2]}).set_index("a"),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.DataFrame({"a": [1, "x"]}),
    ],
    ids=str,
)
def test_a_frame_of_pandas_that_would_come_back_as_another_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(OutputError, match="this frame cannot be stored as Parquet: ") as caught:
        encode(frame)
    assert "\n" not in caught.value.message
