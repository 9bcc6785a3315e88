from __future__ import annotations

import json
from datetime import date
from typing import Any

import numpy as np
import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from flowstone.asset import asset
from flowstone.check import Check, Checked, CheckResult, check, examine
from flowstone.errors import (
    BadSignature,
    Cancelled,
    DefinitionError,
    DuplicateAsset,
    OutputError,
    StepTimeout,
    UnknownAsset,
)
from flowstone.registry import build_registry


@asset
def numbers() -> list[int]:
    return [1]


def said(declared: Check, value: Any = 1, partition: Any = "eu") -> Checked:
    (one,) = examine([declared], lambda _: value, partition)
    return one


def test_a_check_takes_the_value_and_if_it_likes_the_partition() -> None:
    @check(asset=numbers)
    def positive(value: int) -> bool:
        return value > 0

    @check(asset="numbers", name="in.europe")
    def europe(value: int, partition: str) -> CheckResult:
        return CheckResult(value > 0 and partition == "eu", "where", {"value": value})

    assert (positive.asset, positive.name, positive.blocking) == ("numbers", "positive", False)
    assert said(positive).passed
    assert not said(positive, -1).passed
    assert positive(3) is True
    assert said(europe) == Checked("in.europe", True, False, "error", "where", {"value": 1})
    assert not said(europe, partition="us").passed


@pytest.mark.parametrize("value", [np.bool_(True), np.False_])
def test_the_bool_of_numpy_is_one(value: Any) -> None:
    @check(asset=numbers)
    def returns(_value: int) -> Any:
        return value

    assert said(returns).passed is bool(value)


def test_a_failed_assertion_is_a_check_that_did_not_pass() -> None:
    @check(asset=numbers, blocking=True)
    def asserts(value: int) -> bool:
        assert value > 1, f"{value} is too small"
        return True

    assert not said(asserts).passed
    assert said(asserts).message.startswith("1 is too small")
    assert said(asserts).refuses
    assert not said(asserts, 2).refuses


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "must return True, False or a CheckResult of one, not a NoneType"),
        (1, "not a int"),
        (CheckResult(passed=1), "not a int"),  # type: ignore[arg-type]
    ],
)
def test_whatever_else_is_returned_is_an_error(returned: Any, message: str) -> None:
    @check(asset=numbers, blocking=True)
    def blocks(_value: int) -> Any:
        return returned

    @check(asset=numbers)
    def watches(_value: int) -> Any:
        return returned

    with pytest.raises((TypeError, ValueError), match=message):
        said(blocks)
    assert not said(watches).passed
    assert message in said(watches).message


def test_a_verdict_is_never_lost_over_its_words() -> None:
    @check(asset=numbers, blocking=True)
    def odd(_value: int) -> CheckResult:
        day = date(2013, 1, 15)
        numbers: dict[Any, Any] = {1: np.int64(7), "nan": float("nan"), "day": day, "s": {"\ud800"}}
        return CheckResult(np.False_, "a\0b \ud800 \\u0000" + "x" * 20_000, numbers)  # type: ignore[arg-type]

    one = said(odd)
    assert one.passed is False
    assert one.message.startswith("a\\0b \\ud800 \\u0000xx")
    assert len(one.message) == 10_000
    assert one.metadata == {"1": 7, "nan": "nan", "day": "2013-01-15", "s": ["\\ud800"]}
    json.dumps(one.metadata).encode()


def test_each_check_reads_the_value_for_itself() -> None:
    @check(asset=numbers)
    def spoils(value: list[int]) -> bool:
        value.clear()
        return True

    @check(asset=numbers, blocking=True)
    def counts(value: list[int]) -> bool:
        return len(value) == 2

    assert [one.passed for one in examine([spoils, counts], lambda _: [1, 2], None)] == [True, True]


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), StepTimeout("late"), Cancelled("stop")])
def test_the_end_of_the_time_or_of_the_run_is_no_opinion(error: Exception) -> None:
    @check(asset=numbers)
    def watches(_value: int) -> bool:
        raise error

    with pytest.raises(type(error)):
        said(watches)


def test_a_value_that_cannot_be_read_has_not_passed() -> None:
    @check(asset=numbers)
    def watches(value: int) -> bool:
        return value > 0

    def load(_kind: Any) -> Any:
        raise OutputError("it cannot be read as that")

    (one,) = examine([watches], load, None)
    assert (one.passed, one.message) == (False, "raised OutputError: it cannot be read as that")


def test_a_blocking_check_that_raises_says_nothing() -> None:
    @check(asset=numbers, blocking=True)
    def blocks(_value: int) -> bool:
        raise ConnectionError("the reference is away")

    with pytest.raises(ConnectionError):
        said(blocks)


def test_a_check_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(BadSignature, match="cannot be blocking"):
        check(asset=numbers, blocking=True, severity="warn")
    with pytest.raises(BadSignature, match="'warn' or 'error', not 'fatal'"):
        check(asset=numbers, severity="fatal")  # type: ignore[arg-type]
    declare = check(asset=numbers)
    with pytest.raises(BadSignature, match="must take the value"):
        declare(lambda: True)
    with pytest.raises(BadSignature, match="must take the value"):
        declare(lambda _value, _other: True)

    async def later(_value: int) -> bool:
        return True

    with pytest.raises(BadSignature, match="plain function"):
        declare(later)
    with pytest.raises(DefinitionError, match="'no name' is not a name"):
        check(asset=numbers, name="no name")(lambda _value: True)


def test_a_check_is_of_an_asset_that_there_is_and_has_a_name_of_its_own() -> None:
    @check(asset="numbrs")
    def lost(_value: int) -> bool:
        return True

    with pytest.raises(UnknownAsset, match=r"'numbrs'.*did you mean 'numbers'.*checked by 'lost'"):
        build_registry([numbers], checks=[lost])

    @check(asset=numbers, name="same")
    def one(_value: int) -> bool:
        return True

    @check(asset=numbers, name="same")
    def two(_value: int) -> bool:
        return True

    with pytest.raises(DuplicateAsset, match="check 'same' of 'numbers' is defined twice"):
        build_registry([numbers], checks=[one, two])
    assert list(build_registry([numbers], checks=[one]).checks["numbers"]) == [one]
