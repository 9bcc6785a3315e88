"""Timeouts of attempts: the soft one interrupts the asset, the hard one takes the step from it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, field_validator

import flowstone
from flowstone import Context, Retry, Timeout, asset, check, materialize_sync, resource
from flowstone.errors import DefinitionError, RunFailed, StepTimeout
from flowstone.reconcile import reconcile
from flowstone.registry import build_registry
from flowstone.store import cancellation
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import HandRun, query, run_sql

SOFT = Timeout(0.2, 30)
LONG = 20.0
ONCE = Retry(max_attempts=1)
AT_ONCE = Retry(max_attempts=2, base=0)
CHORD = {1: (), 2: (1,), 3: (), 4: (2, 3)}


def sleep_long(*_: object) -> None:
    time.sleep(LONG)
    pytest.fail("nothing has interrupted it")


def attempts(ledger: Ledger) -> Sequence[Any]:
    sql = "SELECT outcome, error_type FROM flowstone.attempts ORDER BY step_id, number"
    return query(ledger, sql)


@pytest.fixture(autouse=True)
def _no_alarm_is_left() -> Any:
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_an_asset_that_takes_too_long_is_interrupted_and_tried_again(
    make_runtime: RuntimeFactory,
) -> None:
    @asset(timeout=SOFT, retry=AT_ONCE)
    def slow(context: Context) -> int:
        if context.attempt == 1:
            sleep_long()
        return context.attempt

    here = make_runtime(build_registry([slow]))
    assert materialize_sync(slow).result() == 2
    assert attempts(here.ledger) == [("retrying", "timeout"), ("succeeded", None)]
    (row,) = query(
        here.ledger,
        "SELECT error_message, traceback FROM flowstone.attempts WHERE error_type = 'timeout'",
    )
    assert row.error_message == (
        "slow took longer than 0.2 s, the timeout= of the asset; raise that, or let it do less at "
        "a time"
    )
    assert "sleep_long" in row.traceback


def test_an_asset_that_catches_it_cleans_up_and_may_return(make_runtime: RuntimeFactory) -> None:
    @asset(timeout=SOFT)
    def slow(context: Context) -> list[object]:
        said: list[object] = [context.cancelled]
        try:
            sleep_long()
        except StepTimeout:
            time.sleep(0.3)
            said += ["what there is", context.cancelled]
        return said

    here = make_runtime(build_registry([slow]))
    assert materialize_sync(slow).result() == [False, "what there is", True]
    assert attempts(here.ledger) == [("succeeded", None)]


def test_what_it_raises_instead_is_its_failure(make_runtime: RuntimeFactory) -> None:
    @asset(timeout=SOFT)
    def slow() -> None:
        try:
            sleep_long()
        except StepTimeout as error:
            raise ValueError("no answer") from error

    make_runtime(build_registry([slow]))
    with pytest.raises(RunFailed, match="ValueError: no answer"):
        materialize_sync(slow)


def test_without_one_of_its_own_those_of_the_settings_hold(make_runtime: RuntimeFactory) -> None:
    @asset(retry=ONCE)
    def slow() -> None:
        sleep_long()

    here = make_runtime(build_registry([slow]), soft_time_limit=0.2, time_limit=50.0)
    with pytest.raises(RunFailed, match=r"slow took longer than 0\.2 s, FLOWSTONE_SOFT_TIME_LIMIT"):
        materialize_sync(slow)
    (row,) = query(
        here.ledger, "SELECT extract(epoch FROM ends_by - started_at) FROM flowstone.steps"
    )
    assert row[0] == 50
    assert attempts(here.ledger) == [("failed", "timeout")]


def test_the_steps_keep_the_timeout_of_their_plan(make_runtime: RuntimeFactory) -> None:
    @asset(timeout=Timeout(5, 7))
    def quick() -> int:
        return 1

    here = make_runtime(build_registry([quick]))
    materialize_sync(quick)
    sql = "SELECT extract(epoch FROM ends_by - started_at) FROM flowstone.steps"
    assert query(here.ledger, sql)[0][0] == 7


def test_an_outcome_is_recorded_however_long_that_takes(
    make_runtime: RuntimeFactory, ledger: Ledger
) -> None:
    with ledger.begin() as conn:
        slow_down(conn, "latest")

    @asset(timeout=Timeout(0.5, 30))
    def quick() -> int:
        return 1

    here = make_runtime(build_registry([quick]))
    started = time.monotonic()
    assert materialize_sync(quick).result() == 1
    assert time.monotonic() - started > 1
    assert attempts(here.ledger) == [("succeeded", None)]


def slow_down(conn: Any, table: str, seconds: float = 1) -> None:
    """Let each row that is inserted into a table take its time."""
    run_sql(
        conn,
        "CREATE FUNCTION flowstone.slow() RETURNS trigger LANGUAGE plpgsql AS "
        f"'BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END'",
    )
    run_sql(
        conn,
        f"CREATE TRIGGER slow BEFORE INSERT ON flowstone.{table} FOR EACH ROW "
        "EXECUTE FUNCTION flowstone.slow()",
    )


class Slow(BaseModel):
    """A config that takes long to check in an attempt, and not when it is submitted."""

    value: int = 1

    @field_validator("value")
    @classmethod
    def _check(cls, value: int) -> int:
        if value == 2 and signal.getitimer(signal.ITIMER_REAL) != (0, 0):
            sleep_long()
        return value


def test_whatever_is_slow_in_an_attempt_it_is_a_timeout(make_runtime: RuntimeFactory) -> None:
    """It is not said that a check, a resource, a config, or the storage is at fault."""

    @resource
    def client() -> None:
        sleep_long()

    @asset(timeout=SOFT, retry=ONCE, requires=["client"])
    def starts(client: None) -> None: ...

    @asset(timeout=SOFT, retry=ONCE)
    def checked() -> int:
        return 1

    @check(asset=checked)
    def watches(_value: int) -> bool:
        sleep_long()
        return True

    @asset(timeout=SOFT, retry=ONCE, config=Slow)
    def configured(context: Context) -> int:
        return 1

    @asset(timeout=SOFT, retry=ONCE, io="rows")
    def stored() -> int:
        return 1

    @asset(timeout=SOFT, retry=ONCE)
    def encoded() -> Slow:
        return Slow.model_construct(value=2)

    assets = [starts, checked, configured, stored, encoded]
    here = make_runtime(build_registry(assets, [client], [watches]), io={"rows": "postgresql:"})
    with here.ledger.begin() as conn:
        slow_down(conn, "stored_values", LONG)
    for one in assets:
        config = {"configured": {"value": 2}} if one is configured else None
        with pytest.raises(RunFailed) as failed:
            materialize_sync(one.name, config=config)
        assert f"{one.name}: timeout: {one.name} took longer than 0.2 s" in failed.value.message


def test_in_a_thread_the_asset_is_told_and_stops_by_itself(make_runtime: RuntimeFactory) -> None:
    @asset(timeout=SOFT, retry=ONCE)
    def patient(context: Context) -> None:
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            context.raise_if_cancelled()
            time.sleep(0.01)

    make_runtime(build_registry([patient]))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(materialize_sync, "patient")
        with pytest.raises(RunFailed, match=r"timeout: patient took longer than 0\.2 s"):
            future.result(LONG)


def test_an_asset_that_computes_others_is_interrupted_when_these_are_recorded(
    make_runtime: RuntimeFactory,
) -> None:
    @asset(timeout=Timeout(10))
    def inner() -> int:
        time.sleep(1.6)
        return 1

    @asset(timeout=Timeout(1.5, 30), retry=ONCE)
    def outer() -> None:
        materialize_sync("inner")
        sleep_long()

    here = make_runtime(build_registry([inner, outer]))
    with pytest.raises(RunFailed, match=r"outer: timeout: outer took longer than 1\.5 s"):
        materialize_sync("outer")
    sql = "SELECT asset, state FROM flowstone.steps ORDER BY asset"
    assert query(here.ledger, sql) == [("inner", "succeeded"), ("outer", "failed")]


def let_time_pass(ledger: Ledger, seconds: float = 1) -> None:
    """Let the hard timeouts of what runs be over since then."""
    with ledger.begin() as conn:
        sql = "UPDATE flowstone.steps SET ends_by = now() - make_interval(secs => :s)"
        run_sql(conn, sql, s=seconds)


@pytest.fixture
def killed() -> list[tuple[int, UUID]]:
    """What the reconciler has had killed."""
    return []


@pytest.fixture
def put_right(
    make_runtime: RuntimeFactory, killed: list[tuple[int, UUID]]
) -> Callable[[], dict[str, int]]:
    """A pass of the reconciler that knows an asset `a1`, and none of the others."""

    @asset(name="a1", retry=Retry(max_attempts=2, base=1000, factor=1))
    def a1() -> None: ...

    here = make_runtime(build_registry([a1]))

    def kill(found: Iterable[tuple[int, UUID]]) -> None:
        killed.extend(found)

    return lambda: dict(reconcile(here, lambda *_: None, kill))


def test_a_step_that_was_killed_leaves_its_canvas_and_is_parked(
    ledger: Ledger, put_right: Callable[[], dict[str, int]], killed: list[tuple[int, UUID]]
) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    claim = run.claim(1)
    canvas = run.canvas[1]
    assert put_right()["timed_out"] == 0
    let_time_pass(ledger)
    counts = put_right()
    assert (counts["timed_out"], counts["lease_expired"]) == (1, 0)
    assert killed == [(run.ids[1], canvas)]
    assert run.states() == {1: "retrying", 2: "pending", 3: "queued", 4: "pending"}
    row = run.rows()[1]
    assert (row["canvas"], row["token"], row["lost"]) == (None, None, 0)
    assert row["error"]["message"] == (
        "a1 was killed after 3660 s, FLOWSTONE_TIME_LIMIT: it did not end when it was interrupted "
        "after 3600 s; raise that, or let it do less at a time"
    )
    # The policy is that of the asset.
    (delay,) = query(
        ledger, "SELECT retry_at - now() > '900 s' FROM flowstone.steps WHERE id = :i", i=run.ids[1]
    )[0]
    assert delay
    assert attempts(ledger) == [("retrying", "timeout")]
    assert not run.commit(claim)
    assert put_right()["timed_out"] == 0


def test_after_its_last_attempt_it_fails_and_what_reads_it_does_not_run(
    ledger: Ledger, put_right: Callable[[], dict[str, int]]
) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    with ledger.begin() as conn:
        run_sql(
            conn,
            "UPDATE flowstone.steps SET attempt = 1, failures = 1, soft_timeout = 5, "
            "hard_timeout = 7",
        )
    run.claim(1)
    let_time_pass(ledger)
    assert put_right()["timed_out"] == 1
    assert run.states() == {1: "failed", 2: "upstream_failed", 3: "queued", 4: "upstream_failed"}
    said = run.rows()[1]["error"]
    assert said["type"] == "timeout"
    assert said["message"].startswith("a1 was killed after 7 s, the hard timeout= of the asset")
    assert "step.lost" not in [
        r.action for r in query(ledger, "SELECT action FROM flowstone.audit")
    ]


def test_an_asset_that_the_reconciler_does_not_know_is_left_to_one_that_does(
    ledger: Ledger, put_right: Callable[[], dict[str, int]]
) -> None:
    run = HandRun(ledger, {1: ()}, name="b")
    run.dispatch()
    run.claim(1)
    let_time_pass(ledger)
    assert put_right()["timed_out"] == 0
    assert run.states() == {1: "running"}


def test_a_run_that_is_being_cancelled_does_not_try_again(
    ledger: Ledger, put_right: Callable[[], dict[str, int]]
) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    run.claim(1)
    with ledger.begin() as conn:
        cancellation.request(conn, run.id, grace=100, reason=None, actor="test")
    let_time_pass(ledger)
    put_right()
    assert run.states()[1] == "cancelled"


def test_a_process_that_was_silent_before_its_time_was_over_is_lost(
    ledger: Ledger, put_right: Callable[[], dict[str, int]]
) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    run.claim(1, lease=0.001)
    let_time_pass(ledger, 0)
    counts = put_right()
    assert (counts["timed_out"], counts["lease_expired"]) == (0, 1)


def test_an_attempt_in_this_process_that_goes_on_has_lost_its_step(
    make_runtime: RuntimeFactory, ledger: Ledger
) -> None:
    @asset(timeout=Timeout(50, 60), retry=AT_ONCE)
    def stubborn(context: Context) -> int:
        if context.attempt == 1:
            let_time_pass(ledger)
            reconcile(here, lambda *_: None)
        return context.attempt

    here = make_runtime(build_registry([stubborn]), lease_seconds=1.0)
    assert materialize_sync("stubborn").result() == 2
    assert attempts(ledger) == [("retrying", "timeout"), ("succeeded", None)]
    assert query(ledger, "SELECT count(*) FROM flowstone.outputs") == [(1,)]


def test_a_hard_timeout_above_the_setting_is_refused_when_definitions_are_loaded(
    make_runtime: RuntimeFactory,
) -> None:
    @asset(timeout=3650)
    def slow() -> None: ...

    here = make_runtime(build_registry([slow]))
    with pytest.raises(DefinitionError) as refused:
        _ = here.registry
    assert refused.value.message.startswith("asset 'slow' (")
    assert refused.value.message.endswith(
        "has a hard timeout of 3710 s, above FLOWSTONE_TIME_LIMIT (3660 s); lower its timeout=, or "
        "raise the setting for all processes"
    )
    with pytest.raises(RunFailed, match=r"above FLOWSTONE_TIME_LIMIT \(3660 s\)"):
        flowstone.materialize_sync("slow")
    make_runtime(build_registry([slow]), time_limit=3710.0)
    materialize_sync("slow")
