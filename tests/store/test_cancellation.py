"""Cancelling a run: nothing more starts, what runs may end or is made to, and the run ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection

import flowstone
from flowstone import Cancelled, Context, Retry, RunState, StepState, asset, coordinator, planning
from flowstone.errors import BadConfig, RunEnded, RunFailed
from flowstone.execution import _record
from flowstone.outcome import Failed, Failure, Retrying, Stopped, Succeeded, decide
from flowstone.reconcile import reconcile
from flowstone.registry import build_registry
from flowstone.request import Request
from flowstone.runtime import Runtime
from flowstone.store import cancellation, repairs, runs, steps
from flowstone.store.cancellation import Cancellation
from flowstone.store.ledger import Ledger
from flowstone.store.steps import Claim, Refused
from tests.store.runs_by_hand import MADE_OF, HandRun, output, query, run_sql
from tests.store.test_concurrency import at_once, until_somebody_waits_for_a_lock
from tests.store.test_repairs import runs_to_wake

CHORD = {1: (), 2: (1,), 3: (), 4: (2, 3)}
STOPPED = Failure("cancelled", "was asked to stop", "the trace", retryable=False)
PATIENCE = 20.0


def cancel(run: HandRun, grace: float = 30, reason: str | None = "a typo") -> Cancellation:
    with run.ledger.begin() as conn:
        return cancellation.request(conn, run.id, grace=grace, reason=reason, actor="me@here")


def coordinate(run: HandRun, here: Runtime) -> None:
    """Be the coordinator; there must be nothing to publish."""
    coordinator.coordinate(here, run.id, lambda *_: pytest.fail("something was dispatched"))


def state(run: HandRun) -> RunState:
    with run.ledger.begin() as conn:
        return runs.get(conn, run.id).state


def actions(run: HandRun) -> list[str]:
    sql = "SELECT action FROM flowstone.audit WHERE run_id = :r ORDER BY id"
    return [row.action for row in query(run.ledger, sql, r=run.id)]


def let_grace_pass(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        run_sql(
            conn,
            "UPDATE flowstone.runs SET cancel_requested_at = "
            "cancel_requested_at - make_interval(secs => cancel_grace + 1)",
        )


@pytest.fixture
def here(make_runtime: Any) -> Runtime:
    made: Runtime = make_runtime(build_registry([]))
    return made


def test_a_run_of_which_nothing_runs_is_cancelled_at_once(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    run.retry(run.claim(1), delay=100)
    run.commit(run.claim(3))
    done = cancel(run)
    assert done == Cancellation(RunState.CANCELLED, cancelled=3, running=0, grace=30)
    assert run.states() == {1: "cancelled", 2: "cancelled", 3: "succeeded", 4: "cancelled"}
    assert run.rows()[4]["error"] == {
        "type": "cancelled",
        "message": "cancelled by me@here: a typo",
    }
    assert query(
        ledger, "SELECT actor, reason, details FROM flowstone.audit WHERE action LIKE '%requested%'"
    )[1:] == [("me@here", "a typo", {"grace": 30, "cancelled": 3, "running": 0})]
    assert actions(run)[-2:] == ["run.cancel_requested", "run.cancelled"]
    with ledger.begin() as conn:
        error = runs.get(conn, run.id).error
    assert error == {"type": "cancelled", "message": "cancelled by me@here: a typo"}


def test_a_planned_run_is_cancelled_before_it_has_begun(ledger: Ledger, here: Runtime) -> None:
    run = HandRun(ledger, CHORD)
    assert cancel(run).state == RunState.CANCELLED
    coordinate(run, here)
    assert set(run.states().values()) == {"cancelled"}


def test_a_request_that_is_not_planned_yet_never_will_be(ledger: Ledger, here: Runtime) -> None:
    run_id = uuid4()
    with ledger.begin() as conn:
        runs.create(
            conn,
            run_id,
            Request(("a1",), "-", upstream=False),
            config={},
            driver="celery",
            max_in_flight=1,
            actor="test",
        )
    handle = flowstone.RunHandle(run_id, here)
    assert handle.cancel().state == RunState.CANCELLED
    planning.plan_run(here, run_id)
    assert handle.status() == RunState.CANCELLED
    assert "cancelled by" in handle.explain()
    with pytest.raises(RunFailed, match="cancelled by"):
        handle.result()


def test_no_late_message_of_a_cancelled_run_claims_anything(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    run.retry(run.claim(3), delay=0)
    cancel(run)
    with ledger.begin() as conn:
        for number, id in run.ids.items():
            refused = steps.claim(conn, id, run.canvas[number], worker="w", lease=60)
            assert refused == Refused(StepState.CANCELLED)


def test_what_runs_may_end_well_and_what_reads_it_stays_cancelled(
    ledger: Ledger, here: Runtime
) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    claim = run.claim(1)
    done = cancel(run)
    assert (done.state, done.cancelled, done.running) == (RunState.RUNNING, 3, 1)
    coordinate(run, here)
    assert state(run) == RunState.RUNNING
    assert flowstone.RunHandle(run.id, here).progress().cancelling
    assert run.commit(claim)
    assert run.needs_coordinator()
    assert run.states() == {1: "succeeded", 2: "cancelled", 3: "cancelled", 4: "cancelled"}
    coordinate(run, here)
    assert state(run) == RunState.CANCELLED
    assert query(ledger, "SELECT count(*) FROM flowstone.outputs") == [(1,)]


def test_a_run_whose_every_step_was_done_in_spite_of_it_has_succeeded(
    ledger: Ledger, here: Runtime
) -> None:
    run = HandRun(ledger, {1: ()})
    run.dispatch()
    claim = run.claim(1)
    assert cancel(run).running == 1
    run.commit(claim)
    coordinate(run, here)
    assert state(run) == RunState.SUCCEEDED
    with ledger.begin() as conn:
        assert runs.get(conn, run.id).error is None


def test_a_step_that_fails_while_it_is_asked_to_stop_leaves_the_run_cancelled(
    ledger: Ledger, here: Runtime
) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    claim = run.claim(1)
    cancel(run)
    assert run.fail(claim)
    coordinate(run, here)
    assert run.states() == {1: "failed", 2: "cancelled", 3: "cancelled", 4: "cancelled"}
    assert state(run) == RunState.CANCELLED


def test_a_step_stops_only_for_a_run_that_is_being_cancelled(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    claim = run.claim(1)
    with ledger.begin() as conn:
        assert not cancellation.stop(conn, claim, STOPPED)
    cancel(run)
    with ledger.begin() as conn:
        assert cancellation.stop(conn, claim, STOPPED)
        assert not cancellation.stop(conn, claim, STOPPED)
    row = run.rows()[1]
    assert (row["state"], row["token"], row["lease_until"]) == ("cancelled", None, None)
    assert query(ledger, "SELECT outcome, error_type, traceback FROM flowstone.attempts") == [
        ("cancelled", "cancelled", "the trace")
    ]
    assert not run.commit(claim)


def test_a_step_whose_worker_died_is_not_run_again(ledger: Ledger, here: Runtime) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    run.claim(1, lease=0.001)
    cancel(run)
    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.runs SET created_at = now() - interval '1 hour'")
    woken: list[UUID] = []
    assert reconcile(here, lambda run_id, _: woken.append(run_id))["lease_expired"] == 1
    assert woken == [run.id]
    coordinate(run, here)
    assert set(run.states().values()) == {"cancelled"}
    assert state(run) == RunState.CANCELLED


def test_a_step_that_does_not_stop_is_taken_from_its_attempt_when_the_grace_is_over(
    ledger: Ledger, here: Runtime
) -> None:
    run, other = HandRun(ledger, CHORD), HandRun(ledger, CHORD, name="b")
    run.dispatch()
    other.dispatch()
    # The worker is silent as well; that it was asked to stop counts, and not the lease.
    claim = run.claim(1, lease=0.001)
    other.claim(1)
    cancel(run)
    killed: list[tuple[int, UUID]] = []

    def kill(found: Iterable[tuple[int, UUID]]) -> None:
        killed.extend(found)

    with ledger.begin() as conn:
        assert cancellation.overdue(conn, actor="test") == []
    let_grace_pass(ledger)
    counts = reconcile(here, lambda *_: None, kill)
    assert counts["cancel_overdue"] == 1
    assert counts["lease_expired"] == 0
    assert killed == [(run.ids[1], run.canvas[1])]
    assert set(run.states().values()) == {"cancelled"}
    assert state(run) == RunState.CANCELLED
    assert query(ledger, "SELECT outcome, error_message FROM flowstone.attempts ORDER BY 1")[
        :1
    ] == [("cancelled", "cancelled by me@here: a typo; the step did not stop in time")]
    assert "step.cancelled" in actions(run)
    assert "step.lost" not in actions(run)
    # Fenced off: neither its value nor its failure is recorded any more.
    assert not run.commit(claim)
    assert not run.fail(claim)
    assert not run.retry(claim)
    assert other.states()[1] == "running"
    assert reconcile(here, lambda *_: None, kill)["cancel_overdue"] == 0


def test_the_grace_also_ends_a_run_whose_process_is_gone(ledger: Ledger, here: Runtime) -> None:
    # Nobody is woken for a run of `materialize_sync`, so nobody else would close it.
    run = HandRun(ledger, CHORD, driver="inline")
    run.dispatch()
    claim = run.claim(1)
    cancel(run, grace=5)
    run.commit(claim)
    let_grace_pass(ledger)
    assert reconcile(here, lambda *_: None)["cancel_overdue"] == 1
    assert state(run) == RunState.CANCELLED


def test_to_cancel_again_changes_nothing(ledger: Ledger, here: Runtime) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    claim = run.claim(1)
    cancel(run)
    before = (run.rows(), actions(run))
    assert cancel(run, reason="again") == Cancellation(RunState.RUNNING, 0, 1, 30, already=True)
    assert (run.rows(), actions(run)) == before
    run.commit(claim)
    coordinate(run, here)
    assert cancel(run) == Cancellation(RunState.CANCELLED, 0, 0, 30, already=True)


def test_a_run_that_has_ended_cannot_be_cancelled(ledger: Ledger, here: Runtime) -> None:
    run = HandRun(ledger, {1: ()})
    run.do(1)
    coordinate(run, here)
    with pytest.raises(RunEnded, match=f"run {run.id} has succeeded already"):
        cancel(run)
    with pytest.raises(BadConfig, match="grace"):
        flowstone.RunHandle(run.id, here).cancel(grace=-1)


def test_a_cancellation_and_a_claim_that_meet_leave_a_step_that_one_of_them_has(
    ledger: Ledger,
) -> None:
    for number in range(10):
        run = HandRun(ledger, CHORD, name=f"run{number}_")
        run.dispatch()

        def claim(run: HandRun = run) -> Claim | Refused:
            with ledger.begin() as conn:
                return steps.claim(conn, run.ids[1], run.canvas[1], worker="w", lease=60)

        claimed, done = at_once(claim, partial(cancel, run))
        assert isinstance(done, Cancellation)
        if isinstance(claimed, Claim):
            assert (run.states()[1], done.running, done.state) == ("running", 1, "running")
        else:
            assert claimed in (Refused(StepState.CANCELLED), Refused(StepState.QUEUED))
            assert (run.states()[1], done.running, done.state) == ("cancelled", 0, "cancelled")


def test_a_cancellation_and_a_commit_that_meet_both_hold(ledger: Ledger, here: Runtime) -> None:
    for _ in range(10):
        run = HandRun(ledger, CHORD)
        run.dispatch()
        one = run.claim(1)
        committed, done = at_once(partial(run.commit, one), partial(cancel, run))
        assert isinstance(done, Cancellation)
        assert committed
        coordinate(run, here)
        assert run.states() == {1: "succeeded", 2: "cancelled", 3: "cancelled", 4: "cancelled"}
        assert state(run) == RunState.CANCELLED


def test_a_commit_that_has_begun_is_waited_for_and_its_readers_are_cancelled(
    ledger: Ledger,
) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    run.dispatch()
    claim = run.claim(1)
    with ThreadPoolExecutor(1) as pool:
        with ledger.begin() as conn:
            steps.commit(conn, claim, Succeeded(output(), MADE_OF))
            cancelled = pool.submit(cancel, run)
            until_somebody_waits_for_a_lock(ledger)
        assert cancelled.result(PATIENCE).state == RunState.CANCELLED
    assert run.states() == {1: "succeeded", 2: "cancelled"}


def test_a_step_that_ends_unseen_by_a_cancellation_leaves_no_run_open(
    ledger: Ledger, here: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The step ends after the cancellation has counted what runs, and asks whether to wake the
    # coordinator before the cancellation has committed.
    run = HandRun(ledger, {1: (), 2: ()})
    run.dispatch()
    claim = run.claim(1)
    real = cancellation.running

    def count_then_commit(conn: Connection, run_id: UUID) -> int:
        found = real(conn, run_id)
        assert run.commit(claim)
        assert not run.needs_coordinator()
        return found

    monkeypatch.setattr(cancellation, "running", count_then_commit)
    assert flowstone.RunHandle(run.id, here).cancel().state == RunState.CANCELLED
    assert run.states() == {1: "succeeded", 2: "cancelled"}


def test_of_two_that_cancel_at_once_one_does(ledger: Ledger) -> None:
    for _ in range(5):
        run = HandRun(ledger, CHORD)
        run.dispatch()
        done = at_once(*[partial(cancel, run)] * 3)
        assert sorted(d.already for d in done if isinstance(d, Cancellation)) == [False, True, True]
        assert actions(run).count("run.cancel_requested") == 1
        assert actions(run).count("run.cancelled") == 1


def test_a_retry_and_a_cancellation_that_meet_leave_nothing_to_retry(
    ledger: Ledger, here: Runtime
) -> None:
    for _ in range(10):
        run = HandRun(ledger, CHORD)
        run.dispatch()
        claim = run.claim(1)

        retry = partial(_record, here, claim, Retrying(STOPPED, 0))
        recorded, done = at_once(retry, partial(cancel, run))
        assert isinstance(done, Cancellation)
        # Whoever came second has cancelled it.
        assert isinstance(recorded, Retrying if done.state == RunState.CANCELLED else Stopped)
        coordinate(run, here)
        assert set(run.states().values()) == {"cancelled"}
        assert state(run) == RunState.CANCELLED


def test_a_cancellation_that_loses_a_deadlock_is_tried_again(ledger: Ledger, here: Runtime) -> None:
    # Somebody has step 3 and goes on to 1, while the cancellation has 1 and comes to 3.
    run = HandRun(ledger, CHORD)
    run.dispatch()
    handle = flowstone.RunHandle(run.id, here)
    lock = "SELECT id FROM flowstone.steps WHERE id = ANY(:ids) FOR NO KEY UPDATE"
    with ThreadPoolExecutor(1) as pool:
        with ledger.begin() as conn:
            # This one is in no hurry to look for deadlocks, so the other one is ended.
            run_sql(conn, "SET LOCAL deadlock_timeout = '20s'")
            run_sql(conn, lock, ids=[run.ids[3]])
            cancelled = pool.submit(handle.cancel)
            until_somebody_waits_for_a_lock(ledger)
            run_sql(conn, lock, ids=[run.ids[1]])
        assert cancelled.result(PATIENCE).state == RunState.CANCELLED
    assert set(run.states().values()) == {"cancelled"}


def test_only_a_step_that_was_asked_to_stop_ends_as_stopped() -> None:
    error = Cancelled("stop")
    assert isinstance(decide(error, "", 1, Retry(), cancelled=True), Stopped)
    assert isinstance(decide(error, "", 1, Retry()), Failed)
    assert isinstance(decide(ValueError(), "", 1, Retry(), cancelled=True), Failed)
    assert isinstance(decide(OSError(), "", 1, Retry(), cancelled=True), Retrying)


def test_a_running_step_learns_of_it_and_ends_as_cancelled(make_runtime: Any) -> None:
    started, seen = threading.Event(), threading.Event()

    @asset
    def slow(context: Context) -> None:
        assert not context.cancelled
        context.raise_if_cancelled()
        started.set()
        end = time.monotonic() + PATIENCE
        while not context.cancelled:
            assert time.monotonic() < end, "nobody has told it"
            time.sleep(0.01)
        seen.set()
        context.raise_if_cancelled()

    @asset
    def after(slow: None) -> None: ...

    here = make_runtime(build_registry([slow, after]), lease_seconds=0.6)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(flowstone.materialize_sync, "after", upstream=True)
        assert started.wait(PATIENCE)
        (summary,) = flowstone.client.runs_list()
        done = flowstone.cancel(summary.id, reason="enough")
        assert (done.cancelled, done.running) == (1, 1)
        with pytest.raises(RunFailed, match=r"cancelled by .*: enough"):
            working.result(PATIENCE)
    assert seen.is_set()
    rows = query(
        here.ledger,
        "SELECT s.asset, s.state, a.outcome, a.error_type FROM flowstone.steps s "
        "LEFT JOIN flowstone.attempts a ON a.step_id = s.id ORDER BY s.id",
    )
    assert rows == [
        ("slow", "cancelled", "cancelled", "cancelled"),
        ("after", "cancelled", None, None),
    ]


def test_an_attempt_that_would_be_retried_ends_with_the_run(make_runtime: Any) -> None:
    @asset(retry=Retry(max_attempts=3, base=100))
    def flaky(context: Context) -> None:
        flowstone.cancel(context.run_id)
        raise ConnectionError("no answer")

    here = make_runtime(build_registry([flaky]))
    with pytest.raises(RunFailed, match="cancelled by"):
        flowstone.materialize_sync("flaky")
    assert query(here.ledger, "SELECT outcome, error_type FROM flowstone.attempts") == [
        ("cancelled", "ConnectionError")
    ]


def test_an_asset_that_raises_cancelled_of_its_own_accord_has_failed(make_runtime: Any) -> None:
    @asset
    def moody() -> None:
        raise Cancelled("I do not want to")

    make_runtime(build_registry([moody]))
    with pytest.raises(RunFailed, match="moody: cancelled: I do not want to"):
        flowstone.materialize_sync("moody")


def test_nothing_of_a_run_that_is_being_cancelled_counts_as_stranded(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    run.claim(1)
    cancel(run)
    with ledger.begin() as conn:
        assert repairs.stranded(conn, 0) == []
        assert repairs.overdue_retries(conn, 0) == []
        assert runs_to_wake(conn, -1) == []
