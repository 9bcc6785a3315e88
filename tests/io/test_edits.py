"""Edits are checked by the annotation of their asset, and come back as the values that they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from flowstone import hints
from flowstone.approval import WaitForApproval
from flowstone.errors import BadDecision
from flowstone.io.edits import as_edited, checked, edited_value, readable
from flowstone.io.json_values import is_same
from flowstone.partition_key import Month
from flowstone.signalling import WaitForSignal


class Size(Enum):
    SMALL = "s"


class Report(BaseModel):
    total: Decimal
    day: date
    note: str | None = Field(default=None, alias="remark")
    size: Size = Size.SMALL


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: date


@dataclass
class Row:
    name: str
    counts: tuple[int, ...]


class Sealed(BaseModel):
    password: SecretStr
    count: int


def kept(edit: Any, as_type: Any) -> Any:
    """Return what the continuation reads of an edit, after it was a row of PostgreSQL."""
    edited = json.loads(json.dumps(as_edited(checked(edit, as_type), as_type)))
    return edited_value(edited, as_type)


@pytest.mark.parametrize(
    ("edit", "as_type", "value"),
    [
        (
            {"total": "1.50", "day": "2026-01-31", "remark": "x", "size": "s"},
            Report,
            Report(total=Decimal("1.50"), day=date(2026, 1, 31), remark="x"),
        ),
        (
            {"total": 2, "day": "2026-01-31", "note": "by name"},
            Report,
            Report(total=Decimal(2), day=date(2026, 1, 31), remark="by name"),
        ),
        (
            Report(total=Decimal("1.5"), day=date(2026, 1, 31), remark=None),
            Report,
            Report(total=Decimal("1.5"), day=date(2026, 1, 31), remark=None),
        ),
        ({"day": "2026-01-31"}, Strict, Strict(day=date(2026, 1, 31))),
        ([{"name": "a", "counts": [1, 2]}], list[Row], [Row("a", (1, 2))]),
        ({"2026-01-31": ["1.10"]}, dict[date, set[Decimal]], {date(2026, 1, 31): {Decimal("1.1")}}),
        ("2026-01-31T12:00:00+00:00", datetime, datetime.fromisoformat("2026-01-31T12:00:00Z")),
        (1, float, 1.0),
        (1e300, float, 1e300),
        ({"b": 1, "a": [None, True, 0.0]}, None, {"b": 1, "a": [None, True, 0.0]}),
        ({"$": "model", "v": {}}, None, {"$": "model", "v": {}}),
        (Month(2026, 1), None, Month(2026, 1)),
    ],
)
def test_an_edit_comes_back_as_the_value_that_it_is(edit: Any, as_type: Any, value: Any) -> None:
    back = kept(edit, as_type)
    assert type(back) is type(value)
    assert back == value


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
def test_any_value_comes_back_and_can_be_shown(value: Any) -> None:
    try:
        edited = as_edited(value, None)
    except BadDecision:
        return  # There are texts that nothing can store.
    assert is_same(edited_value(json.loads(json.dumps(edited)), None), value)
    assert "\\u0000" not in json.dumps(edited["value"], allow_nan=False)


@pytest.mark.parametrize(
    ("edit", "as_type", "said"),
    [
        ({"total": "many", "day": "2026-01-31"}, Report, "total: Input should be a valid decimal"),
        ({"total": "many"}, Report, r"\(and 1 more\)"),
        ([1, "x"], list[int], "1: Input should be a valid integer"),
        (date(2026, 1, 31), int, "should be a valid integer"),
        (1, type("Odd", (), {}), "cannot be checked as"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(edit: Any, as_type: Any, said: str) -> None:
    with pytest.raises(BadDecision, match=said) as caught:
        checked(edit, as_type)
    assert "\n" not in caught.value.message


def test_no_secret_is_told() -> None:
    with pytest.raises(BadDecision, match="count") as caught:
        checked({"password": "hunter2", "count": "x"}, Sealed)
    assert "hunter2" not in caught.value.message
    assert "hunter2" not in json.dumps(readable(Sealed(password=SecretStr("hunter2"), count=1)))


def test_what_is_no_json_is_shown_as_text() -> None:
    assert readable({"a": b"\xff", 1: {2.5, float("inf")}.pop, "m": Month(2026, 1)})["a"] == "_w=="
    assert readable(float("nan")) == "nan"


def test_a_wait_that_is_returned_is_no_value() -> None:
    def one() -> Report | WaitForApproval: ...  # type: ignore[empty-body]
    def two() -> int | str | WaitForApproval | WaitForSignal: ...  # type: ignore[empty-body]
    def three() -> WaitForSignal: ...  # type: ignore[empty-body]
    def four() -> int | None: ...

    kinds = [hints.of_result(function) for function in (one, two, three, four)]
    assert kinds == [Report, int | str, None, int | None]
