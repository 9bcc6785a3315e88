"""Retries: what is worth another try, how often, and after how long."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.errors import (
    BadPartition,
    DefinitionError,
    FlowStoneError,
    LedgerUnavailable,
    ResourceUnavailable,
    UnknownAsset,
)
from flowstone.outcome import Failed, Retrying, decide
from flowstone.retry import Retry, error_type, is_retryable
from flowstone.texts import MAX_MESSAGE


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 30), (2, 90), (3, 270)])
def test_the_default_delays_are_30_90_and_270_seconds(attempt: int, seconds: float) -> None:
    assert Retry().delay(attempt) == seconds


def test_delays_stop_growing_at_the_maximum() -> None:
    assert Retry().delay(6) == 3600
    assert Retry().delay(100_000) == 3600
    assert Retry(factor=1e300).delay(100) == 3600
    assert Retry(base=0, factor=1e300).delay(100) == 0
    assert Retry(max_delay=0).delay(1) == 0
    assert Retry(base=5, factor=1).delay(100_000) == 5


@given(st.integers(1, 20), st.floats(0, 1, exclude_max=True))
def test_full_jitter_draws_between_zero_and_the_plain_delay(attempt: int, drawn: float) -> None:
    plain, jitter = Retry(), Retry(jitter="full")
    assert 0 <= jitter.delay(attempt, lambda: drawn) <= plain.delay(attempt)
    assert jitter.delay(attempt, lambda: 0.5) == plain.delay(attempt) / 2
    assert plain.delay(attempt, lambda: drawn) == plain.delay(attempt, lambda: 0)


@pytest.mark.parametrize(
    "values", [{"max_attempts": 0}, {"base": -1}, {"factor": 0.5}, {"max_delay": -1}]
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(DefinitionError, match="needs max_attempts >= 1"):
        Retry(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError(),
        ConnectionResetError(),
        BrokenPipeError(),
        TimeoutError(),
        socket.gaierror(),
        OSError(28, "no space left"),
        LedgerUnavailable("away"),
        ResourceUnavailable("away"),
        FlowStoneError("mine", retryable=True),
    ],
)
def test_faults_of_the_world_around_are_tried_again(error: Exception) -> None:
    assert is_retryable(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        PermissionError(),
        IsADirectoryError(),
        NotADirectoryError(),
        ValueError(),
        TypeError(),
        KeyError("a"),
        ZeroDivisionError(),
        RuntimeError(),
        SystemExit(1),
        UnknownAsset("a"),
        BadPartition("a"),
        LedgerUnavailable("away", retryable=False),
    ],
)
def test_what_says_the_same_each_time_is_not_tried_again(error: BaseException) -> None:
    assert not is_retryable(error)


def test_the_ledger_names_errors_stably() -> None:
    assert error_type(UnknownAsset("a")) == "unknown_asset"
    assert error_type(ValueError("a")) == "ValueError"


def test_the_last_attempt_fails_and_those_before_it_are_retried() -> None:
    policy = Retry(max_attempts=3)
    decided = [decide(TimeoutError("slow"), "trace", n, policy) for n in (1, 2, 3, 4)]
    assert [d.delay for d in decided if isinstance(d, Retrying)] == [30, 90]
    assert [type(d) for d in decided] == [Retrying, Retrying, Failed, Failed]
    assert all(d.failure.retryable for d in decided)
    assert isinstance(decide(TimeoutError(), "", 1, Retry(max_attempts=1)), Failed)


def test_only_a_delay_beyond_the_limit_is_parked() -> None:
    policy = Retry(max_attempts=9)
    decided = [decide(TimeoutError(), "", n, policy, park_after=90) for n in (1, 2, 3)]
    assert [(d.delay, d.parked) for d in decided if isinstance(d, Retrying)] == [
        (30, False),
        (90, False),
        (270, True),
    ]
    forever = decide(TimeoutError(), "", 8, policy)
    assert isinstance(forever, Retrying)
    assert not forever.parked


def test_an_error_that_is_not_retryable_fails_at_once() -> None:
    decided = decide(ValueError("bad"), "trace", 1, Retry(max_attempts=9))
    assert isinstance(decided, Failed)
    assert decided.failure.as_json() == {"type": "ValueError", "message": "bad", "retryable": False}
    assert decided.failure.traceback == "trace"


def test_whatever_an_error_says_can_be_stored() -> None:
    odd = "nul \0, surrogate \udce9, fine ü"
    failure = decide(ValueError(odd), odd, 1, Retry()).failure
    assert failure.message == failure.traceback == "nul \\0, surrogate \\udce9, fine ü"
    long = decide(ValueError("x" * 20_000), "", 1, Retry()).failure
    assert len(long.message) == MAX_MESSAGE


def test_an_error_that_cannot_even_be_printed_is_a_failure_like_others() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError(os.curdir)

    failure = decide(Broken(), "", 1, Retry()).failure
    assert (failure.type, failure.message) == ("Broken", "<str() of this Broken failed>")
