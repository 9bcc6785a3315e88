"""Deadlines: a run that has not ended by then stops, and has failed; it can be resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

from flowstone import (
    Context,
    Retry,
    RunHandle,
    RunState,
    asset,
    materialize_sync,
    planning,
)
from flowstone.errors import RunFailed
from flowstone.reconcile import reconcile
from flowstone.registry import build_registry
from flowstone.request import Request
from flowstone.runtime import Runtime
from flowstone.store import deadlines, resumption, runs, steps
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import FAILURE, HandRun, query, run_sql
from tests.store.test_cancellation import actions, coordinate, let_grace_pass, state

CHORD = {1: (), 2: (1,), 3: (), 4: (2, 3)}
SAID = "the run did not end within 60 s, its deadline"
LONG = 20.0


def with_deadline(ledger: Ledger, dag: Any = None, **options: Any) -> HandRun:
    """A run with a deadline in a minute."""
    run = HandRun(ledger, dag or CHORD, **options)
    with ledger.begin() as conn:
        run_sql(
            conn,
            "UPDATE flowstone.runs SET deadline_at = created_at + interval '60 s', "
            """request = request || '{"deadline": 60}' WHERE id = :r""",
            r=run.id,
        )
    return run


def let_it_pass(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        sql = "UPDATE flowstone.runs SET deadline_at = deadline_at - interval '61 s'"
        run_sql(conn, sql)


def error(run: HandRun) -> Any:
    with run.ledger.begin() as conn:
        return runs.get(conn, run.id).error


@pytest.fixture
def here(make_runtime: RuntimeFactory) -> Runtime:
    return make_runtime(build_registry([]))


@pytest.fixture
def killed() -> list[tuple[int, UUID]]:
    """What the reconciler has had killed."""
    return []


@pytest.fixture
def put_right(here: Runtime, killed: list[tuple[int, UUID]]) -> Callable[[], dict[str, int]]:
    def kill(found: Iterable[tuple[int, UUID]]) -> None:
        killed.extend(found)

    return lambda: dict(reconcile(here, lambda *_: None, kill))


Pass = Callable[[], dict[str, int]]


def test_before_its_deadline_a_run_is_left_alone(ledger: Ledger, put_right: Pass) -> None:
    run = with_deadline(ledger)
    run.dispatch()
    before = run.rows()
    assert put_right()["deadline_passed"] == 0
    assert run.rows() == before


def test_what_waits_is_cancelled_what_runs_is_asked_to_stop_and_then_killed(
    ledger: Ledger, here: Runtime, put_right: Pass, killed: list[tuple[int, UUID]]
) -> None:
    run = with_deadline(ledger, {1: (), 2: (1,), 3: (), 4: (2, 3), 5: (), 6: ()}, max_in_flight=5)
    run.dispatch()
    claim = run.claim(1)
    run.retry(run.claim(3), delay=1000)
    run.commit(run.claim(5))
    let_it_pass(ledger)
    assert put_right()["deadline_passed"] == 1
    assert run.states() == {
        1: "running",
        2: "cancelled",
        3: "cancelled",
        4: "cancelled",
        5: "succeeded",
        6: "cancelled",
    }
    assert run.rows()[3]["error"] == {"type": "cancelled", "message": f"cancelled: {SAID}"}
    assert state(run) == RunState.RUNNING
    handle = RunHandle(run.id, here)
    assert handle.progress().cancelling
    assert handle.explain().endswith(f"running: {SAID}; resume it, or give it more time")
    coordinate(run, here)
    assert killed == []

    let_grace_pass(ledger)
    counts = put_right()
    assert (counts["deadline_passed"], counts["cancel_overdue"]) == (0, 1)
    assert killed == [(run.ids[1], run.canvas[1])]
    assert run.states()[1] == "cancelled"
    assert not run.commit(claim)
    assert state(run) == RunState.FAILED
    assert error(run)["type"] == "deadline_exceeded"
    assert handle.explain().endswith(f"failed: {SAID}; resume it, or give it more time")
    assert actions(run)[-3:] == ["run.deadline_passed", "step.cancelled", "run.failed"]
    assert "step.lost" not in actions(run)


def test_a_step_that_ends_within_the_grace_keeps_its_output_and_closes_the_run(
    ledger: Ledger, here: Runtime, put_right: Pass
) -> None:
    run = with_deadline(ledger)
    run.dispatch()
    claim = run.claim(3)
    let_it_pass(ledger)
    put_right()
    assert run.commit(claim)
    assert run.needs_coordinator()
    coordinate(run, here)
    assert run.states() == {1: "cancelled", 2: "cancelled", 3: "succeeded", 4: "cancelled"}
    assert (state(run), error(run)["type"]) == (RunState.FAILED, "deadline_exceeded")


def test_a_run_whose_last_step_ends_within_the_grace_has_succeeded(
    ledger: Ledger, here: Runtime, put_right: Pass
) -> None:
    run = with_deadline(ledger, {1: ()})
    run.dispatch()
    claim = run.claim(1)
    let_it_pass(ledger)
    put_right()
    run.commit(claim)
    coordinate(run, here)
    assert (state(run), error(run)) == (RunState.SUCCEEDED, None)
    assert query(ledger, "SELECT error IS NULL FROM flowstone.runs") == [(True,)]


def test_parked_retries_do_not_outlive_the_deadline(ledger: Ledger, put_right: Pass) -> None:
    run = with_deadline(ledger, {1: (), 2: (1,)})
    run.dispatch()
    claim = run.claim(1)
    with ledger.begin() as conn:
        steps.retry(conn, claim, FAILURE, 1000, park=True)
    let_it_pass(ledger)
    put_right()
    assert run.states() == {1: "cancelled", 2: "cancelled"}
    assert state(run) == RunState.FAILED


@pytest.mark.parametrize("was", ["planned", "waiting"])
def test_a_run_of_which_nothing_runs_fails_at_once(
    ledger: Ledger, put_right: Pass, was: str
) -> None:
    run = with_deadline(ledger)
    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.runs SET state = :s", s=was)
    let_it_pass(ledger)
    assert put_right()["deadline_passed"] == 1
    assert state(run) == RunState.FAILED
    assert set(run.states().values()) == {"cancelled"}


def test_a_request_that_nobody_has_planned_fails(
    ledger: Ledger, here: Runtime, put_right: Pass
) -> None:
    run_id = uuid4()
    with ledger.begin() as conn:
        runs.create(
            conn,
            run_id,
            Request(("a1",), "-", upstream=False, deadline=60),
            config={},
            driver="celery",
            max_in_flight=1,
            actor="test",
        )
    let_it_pass(ledger)
    assert put_right()["deadline_passed"] == 1
    planning.plan_run(here, run_id)
    handle = RunHandle(run_id, here)
    assert handle.status() == RunState.FAILED
    with pytest.raises(RunFailed, match=SAID):
        handle.result()


def test_a_coordinator_that_comes_late_starts_nothing(ledger: Ledger, here: Runtime) -> None:
    run = with_deadline(ledger)
    let_it_pass(ledger)
    coordinate(run, here)
    assert state(run) == RunState.FAILED


def test_neither_a_paused_run_nor_one_that_has_ended_or_is_being_cancelled_is_touched(
    ledger: Ledger, here: Runtime, put_right: Pass
) -> None:
    paused, done, cancelling = (with_deadline(ledger, {1: ()}, name=name) for name in "abc")
    with ledger.begin() as conn:
        runs.move(conn, paused.id, RunState.PAUSED, actor="test")
    done.do(1)
    coordinate(done, here)
    cancelling.dispatch()
    cancelling.claim(1)
    RunHandle(cancelling.id, here).cancel(grace=1000)
    let_it_pass(ledger)
    assert put_right()["deadline_passed"] == 0
    coordinate(cancelling, here)
    assert [state(run) for run in (paused, done, cancelling)] == ["paused", "succeeded", "running"]
    assert error(cancelling) is None


def test_resumed_it_has_as_much_time_anew(ledger: Ledger, put_right: Pass) -> None:
    run = with_deadline(ledger)
    run.do(3)
    let_it_pass(ledger)
    put_right()
    with ledger.begin() as conn:
        again = resumption.create(conn, uuid4(), run.id, actor="test")
        left = runs.get(conn, again).seconds_left
        planned = conn.exec_driver_sql(
            "SELECT asset FROM flowstone.steps WHERE run_id = %s ORDER BY asset", (again,)
        ).scalars()
        assert list(planned) == ["a1", "a2", "a4"]
    assert left is not None
    assert 55 < left <= 60


def test_two_that_see_the_same_deadline_end_the_run_once(ledger: Ledger) -> None:
    run = with_deadline(ledger)
    run.dispatch()
    let_it_pass(ledger)

    def end(_: int) -> int:
        return len(ledger.in_turn(lambda conn: deadlines.passed(conn, actor="test")))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(end, range(4))) == 1
    assert actions(run).count("run.deadline_passed") == 1


def test_a_run_in_this_process_stops_between_its_steps(make_runtime: RuntimeFactory) -> None:
    done: list[str] = []

    @asset
    def first() -> int:
        done.append("first")
        time.sleep(1)
        return 1

    @asset
    def second(first: int) -> None:
        done.append("second")

    here = make_runtime(build_registry([first, second]))
    with pytest.raises(RunFailed, match=r"did not end within 0\.5 s, its deadline"):
        materialize_sync("second", upstream=True, deadline=0.5)
    assert done == ["first"]
    states = "SELECT asset, state FROM flowstone.steps ORDER BY id"
    assert query(here.ledger, states) == [("first", "succeeded"), ("second", "cancelled")]
    assert query(here.ledger, "SELECT state FROM flowstone.runs") == [("failed",)]


def test_a_run_in_this_process_does_not_wait_for_a_retry_after_its_deadline(
    make_runtime: RuntimeFactory,
) -> None:
    @asset(retry=Retry(base=LONG, factor=1))
    def flaky(context: Context) -> None:
        raise ConnectionError("no answer")

    here = make_runtime(build_registry([flaky]))
    started = time.monotonic()
    with pytest.raises(RunFailed, match=r"did not end within 0\.3 s, its deadline"):
        materialize_sync(flaky, deadline=0.3)
    assert time.monotonic() - started < LONG / 2
    assert query(here.ledger, "SELECT state FROM flowstone.steps") == [("cancelled",)]
