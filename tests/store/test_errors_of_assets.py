"""What an asset raises or returns: what is recorded of it, and what a caller gets."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from celery.result import AsyncResult
from pydantic import SecretStr

from flowstone import Context, Retry, RetryAfter, asset, inline, resource
from flowstone.asset import Asset
from flowstone.client import materialize_sync
from flowstone.coordinator import take_ready
from flowstone.errors import FlowStoneError, OutputError, RunFailed
from flowstone.execution import Ended, execute
from flowstone.outcome import Failed, Retrying, Skipped
from flowstone.planning import plan_run
from flowstone.registry import build_registry
from flowstone.request import Request
from flowstone.runtime import Runtime
from flowstone.store import repairs, runs, steps
from flowstone.store.steps import Claim
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import query
from tests.store.test_resources import SECRET, Config


class OneStep:
    """A run of one asset, whose step the test brings from attempt to attempt."""

    def __init__(self, here: Runtime, made: Asset) -> None:
        self.here = here
        self.id = uuid4()
        with here.ledger.begin() as conn:
            runs.create(
                conn,
                self.id,
                Request((made.name,), "-", upstream=False, force=True),
                config={},
                driver="celery",
                max_in_flight=1,
                actor="test",
            )
        plan_run(here, self.id)

    def attempt(self) -> Ended:
        """Dispatch the step, and run it once."""
        dispatched = take_ready(self.here, self.id).steps
        ((step, member),) = dispatched.items()
        ended = execute(self.here, step, member.canvas, worker="test", park_after=0)
        assert isinstance(ended, Ended)
        return ended

    def lose(self) -> None:
        """Dispatch the step to a worker whose process dies."""
        dispatched = take_ready(self.here, self.id).steps
        ((step, member),) = dispatched.items()
        with self.here.ledger.begin() as conn:
            assert isinstance(steps.claim(conn, step, member.canvas, worker="w", lease=-1), Claim)
        with self.here.ledger.begin() as conn:
            assert len(repairs.expired_leases(conn)) == 1

    def come_due(self) -> None:
        """Let the delay of a parked retry pass."""
        (row,) = query(
            self.here.ledger,
            "UPDATE flowstone.steps SET retry_at = now() WHERE state = 'retrying' RETURNING id",
        )
        with self.here.ledger.begin() as conn:
            assert [step.step_id for step in repairs.due_retries(conn)] == [row.id]

    def failures(self) -> int:
        (row,) = query(self.here.ledger, "SELECT failures FROM flowstone.steps")
        return int(row.failures)


def test_only_failures_use_up_attempts_and_lengthen_delays(make_runtime: RuntimeFactory) -> None:
    numbers = []

    @asset(retry=Retry(max_attempts=3))
    def shaky(context: Context) -> None:
        numbers.append(context.attempt)
        raise TimeoutError("slow")

    run = OneStep(make_runtime(build_registry([shaky])), shaky)
    run.lose()
    outcomes = [run.attempt().outcome]
    assert run.failures() == 1
    run.come_due()
    run.lose()
    outcomes.append(run.attempt().outcome)
    run.come_due()
    outcomes.append(run.attempt().outcome)
    assert [o.delay for o in outcomes if isinstance(o, Retrying)] == [30, 90]
    assert isinstance(outcomes[-1], Failed)
    assert run.failures() == 3
    assert numbers == [2, 4, 5], "the number of an attempt is that of all of them"


def test_retry_after_is_the_delay_whatever_the_policy_and_counts_as_an_attempt(
    make_runtime: RuntimeFactory,
) -> None:
    @asset(retry=Retry(max_attempts=2, max_delay=5))
    def waits() -> None:
        raise RetryAfter(7200, "the report is not ready")

    here = make_runtime(build_registry([waits]))
    run = OneStep(here, waits)
    first = run.attempt().outcome
    assert isinstance(first, Retrying)
    assert (first.delay, first.parked, first.failure.retry_after) == (7200, True, 7200)
    (row,) = query(
        here.ledger,
        "SELECT extract(epoch FROM s.retry_at - a.finished_at)::float AS delay, error, error_type "
        "FROM flowstone.steps s JOIN flowstone.attempts a ON a.step_id = s.id",
    )
    assert row.delay == 7200
    assert row.error_type == "retry_after"
    assert row.error == {
        "type": "retry_after",
        "message": "the report is not ready",
        "retryable": True,
    }
    run.come_due()
    assert isinstance(run.attempt().outcome, Failed)


def test_a_date_that_a_server_names_is_heeded(make_runtime: RuntimeFactory) -> None:
    class Busy(Exception):
        status = 503
        headers = {"Retry-After": "Wed, 01 Jan 2031 00:00:00 GMT"}  # noqa: RUF012

    @asset
    def asks() -> None:
        raise Busy

    assert datetime.now(UTC).year < 2031
    outcome = OneStep(make_runtime(build_registry([asks])), asks).attempt().outcome
    assert isinstance(outcome, Retrying)
    assert outcome.delay == 86_400, "a day is as far as it goes"


class Odd(Exception):
    """One that nobody has classified."""


@pytest.mark.parametrize("retry_unknown", [True, False])
def test_the_setting_decides_on_what_nobody_knows(
    make_runtime: RuntimeFactory, retry_unknown: bool
) -> None:
    @asset
    def odd() -> None:
        raise Odd("?")

    here = make_runtime(build_registry([odd]), retry_unknown=retry_unknown)
    outcome = OneStep(here, odd).attempt().outcome
    assert isinstance(outcome, Retrying if retry_unknown else Failed)
    assert not isinstance(outcome, Skipped)


def test_the_policy_of_the_asset_comes_before_the_table(make_runtime: RuntimeFactory) -> None:
    @asset(retry=Retry(on=(ValueError,), never=(UnicodeError,)))
    def picky(context: Context) -> None:
        raise ValueError("now and then") if context.attempt == 1 else UnicodeError("always")

    run = OneStep(make_runtime(build_registry([picky])), picky)
    assert isinstance(run.attempt().outcome, Retrying)
    run.come_due()
    assert isinstance(run.attempt().outcome, Failed)


# What the caller gets.


def fail_deep_down() -> None:
    try:
        int("nothing")
    except ValueError as error:
        raise LookupError("the line of the user") from error


def test_a_failed_run_is_raised_from_the_error_of_its_first_failed_step(
    make_runtime: RuntimeFactory,
) -> None:
    @asset
    def first() -> None:
        fail_deep_down()

    @asset
    def second() -> None:
        raise ValueError("another one")

    make_runtime(build_registry([first, second]))
    with pytest.raises(RunFailed) as caught:
        materialize_sync([first, second])
    failed = caught.value
    assert isinstance(failed.original, LookupError)
    assert failed.__cause__ is failed.original
    shown = "".join(traceback.format_exception(failed))
    assert 'raise LookupError("the line of the user") from error' in shown
    assert "invalid literal for int()" in shown
    with pytest.raises(LookupError, match="the line of the user") as raised:
        failed.unwrap()
    assert raised.value is failed.original
    assert isinstance(raised.value.__cause__, ValueError)
    assert "fail_deep_down" in [f.name for f in traceback.extract_tb(raised.value.__traceback__)]


def test_a_run_that_did_not_fail_by_an_error_here_has_no_original(
    make_runtime: RuntimeFactory,
) -> None:
    make_runtime(build_registry([]))
    with pytest.raises(RunFailed, match="'nothing' is not defined") as caught:
        materialize_sync("nothing")
    assert (caught.value.original, caught.value.__cause__) == (None, None)
    with pytest.raises(RunFailed) as raised:
        caught.value.unwrap()
    assert raised.value is caught.value


def test_an_earlier_attempt_is_not_what_a_run_has_failed_by(
    make_runtime: RuntimeFactory,
) -> None:
    @asset(retry=Retry(base=0))
    def shaky(context: Context) -> None:
        raise TimeoutError("slow") if context.attempt == 1 else ValueError("wrong")

    make_runtime(build_registry([shaky]))
    with pytest.raises(RunFailed) as caught:
        materialize_sync(shaky)
    assert isinstance(caught.value.original, ValueError)


def test_the_error_of_a_failed_run_holds_no_secret(
    make_runtime: RuntimeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    @resource(config=Config)
    def db(config: Config) -> Iterator[Config]:
        yield config

    @asset(requires=["db"], retry=Retry(on=(Odd,), base=0, max_attempts=2))
    def tells(db: Config) -> None:
        raise Odd(f"cannot log in with {db.password and db.password.get_secret_value()}")

    monkeypatch.setenv("DB_PASSWORD", SECRET)
    settings = {"db": {"password": {"env": "DB_PASSWORD"}}}
    here = make_runtime(build_registry([tells], [db]), resources=settings)
    assert SecretStr(SECRET) != SECRET
    with pytest.raises(RunFailed, match=r"tells: Odd: cannot log in with \*\*\*") as caught:
        materialize_sync(tells)
    assert str(caught.value.original) == "cannot log in with ***"
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    rows = query(here.ledger, "SELECT outcome, error_type, traceback FROM flowstone.attempts")
    # Its own class decides, though the error that is told is of another one.
    assert [row.outcome for row in rows] == ["retrying", "failed"]
    assert all(row.error_type == "Odd" and "def" not in row.traceback for row in rows)
    assert all("***" in row.traceback and SECRET not in row.traceback for row in rows)


# Whatever an asset returns is its value.


@pytest.mark.parametrize("value", [("retry", 3), {"state": "failed"}, ["skip"], None, False])
def test_nothing_that_an_asset_returns_is_taken_for_an_outcome(
    make_runtime: RuntimeFactory, value: Any
) -> None:
    @asset
    def returns() -> Any:
        return value

    make_runtime(build_registry([returns]))
    assert materialize_sync(returns).result() == value


def test_even_an_outcome_is_a_value_where_the_annotation_says_so(
    make_runtime: RuntimeFactory,
) -> None:
    @asset
    def returns() -> Skipped:
        return Skipped(reuses=3)

    make_runtime(build_registry([returns]))
    handle = materialize_sync(returns)
    assert handle.result() == Skipped(reuses=3)
    assert handle.progress().steps["returns"] == {"succeeded": 1}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Skipped(reuses=3), "flowstone.outcome.Skipped"),
        (ConnectionError("away"), "builtins.ConnectionError"),
        (RetryAfter(3), "flowstone.errors.RetryAfter"),
        (AsyncResult("some-task"), "celery.result.AsyncResult"),
        (object(), "builtins.object"),
    ],
)
def test_what_cannot_be_stored_fails_at_once_and_says_what_to_do(
    make_runtime: RuntimeFactory, value: Any, named: str
) -> None:
    @asset
    def returns() -> Any:
        return value

    here = make_runtime(build_registry([returns]), retry_unknown=True)
    with pytest.raises(RunFailed) as caught:
        materialize_sync(returns)
    assert isinstance(caught.value.original, OutputError)
    said = caught.value.original.message
    assert said.startswith(f"asset 'returns' returned a {named}: ")
    assert said.endswith("or annotate the model, dataclass or enum; or set pickle=True")
    assert query(here.ledger, "SELECT outcome FROM flowstone.attempts") == [("failed",)]


# unwrap.


def test_unwrap_changes_nothing_of_the_original() -> None:
    cause, context = ValueError("cause"), KeyError("context")
    with pytest.raises(LookupError) as caught:
        fail_deep_down()
    original = caught.value
    original.__cause__, original.__context__ = cause, context
    (*_, (innermost, _)) = traceback.walk_tb(original.__traceback__)
    wrapped = FlowStoneError("wrapped", original=original)

    def handle() -> None:
        try:
            fail_deep_down()
        except LookupError:
            # Whatever is being handled is not the context of the original.
            wrapped.unwrap()

    with pytest.raises(LookupError) as again:
        handle()
    assert again.value is original
    assert (original.__cause__, original.__context__) == (cause, context)
    (*_, (frame, _)) = traceback.walk_tb(original.__traceback__)
    assert frame is innermost


def test_a_retry_in_this_process_that_comes_too_early_waits(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asset(retry=Retry(max_attempts=2, base=1.5, factor=1))
    def early(context: Context) -> int:
        if context.attempt < 2:
            raise ConnectionError("not yet")
        return context.attempt

    make_runtime(build_registry([early]))
    # As if the clock of this process were ahead of that of the ledger.
    wait = inline._wait
    monkeypatch.setattr(inline, "_wait", lambda here, run, s: wait(here, run, min(s, 0.2)))
    assert materialize_sync(early).result() == 2
