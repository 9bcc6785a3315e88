"""Retries: what is worth another try, how often, and after how long."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.errors import DefinitionError, RetryAfter
from flowstone.outcome import Failed, Retrying, decide
from flowstone.retry import Retry
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
    "values",
    [
        {"max_attempts": 0},
        {"max_lost": 0},
        {"base": -1},
        {"factor": 0.5},
        {"max_delay": -1},
        {"base": math.nan},
        {"max_delay": math.inf},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(DefinitionError, match="needs max_attempts >= 1"):
        Retry(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"jitter": "some"}, {"jitter": None}])
def test_another_jitter_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(DefinitionError, match="jitter is 'none' or 'full'"):
        Retry(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", ["TimeoutError", 503, None, (ValueError("x"),), (SystemExit,)])
@pytest.mark.parametrize("name", ["on", "never"])
def test_what_is_no_class_of_exceptions_is_refused(name: str, classes: object) -> None:
    with pytest.raises(DefinitionError, match=rf"Retry\({name}=...\) holds .*; it takes classes"):
        Retry(**{name: classes})  # type: ignore[arg-type]


def test_classes_are_a_tuple_a_list_or_a_single_one() -> None:
    assert Retry(on=ValueError).on == Retry(on=[ValueError]).on == (ValueError,)  # type: ignore[arg-type]
    assert hash(Retry(never=[KeyError])) == hash(Retry(never=(KeyError,)))  # type: ignore[arg-type]


@given(st.sampled_from([TimeoutError(), ValueError(), RuntimeError()]), st.integers(1, 5))
def test_the_policy_of_an_asset_decides(error: Exception, failures: int) -> None:
    every = Retry(max_attempts=4, on=(Exception,), never=(ValueError,))
    retried = isinstance(decide(error, "", failures, every), Retrying)
    assert retried == (failures < 4 and not isinstance(error, ValueError))
    plain = isinstance(decide(error, "", failures, Retry(max_attempts=4), unknown=True), Retrying)
    assert plain == retried


@given(st.floats(0, 10**6), st.integers(1, 4))
def test_a_delay_that_was_asked_for_is_that_of_no_policy(seconds: float, failures: int) -> None:
    policy = Retry(max_attempts=4, max_delay=50, jitter="full")
    decided = decide(RetryAfter(seconds), "", failures, policy, park_after=60)
    assert decided.failure.retry_after == seconds
    if failures < 4:
        assert decided == Retrying(decided.failure, seconds, parked=seconds > 60)
    else:
        assert isinstance(decided, Failed), "it is an attempt like others"
    assert "retry_after" not in decided.failure.as_json()


def test_the_texts_of_a_failure_are_masked_and_the_error_itself_decides() -> None:
    def mask(text: str) -> str:
        return text.replace("hunter2", "***")

    decided = decide(ConnectionError("no hunter2"), "the trace", 1, Retry(), mask=mask)
    assert isinstance(decided, Retrying)
    assert decided.failure.message == "no ***"


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
