"""Whatever changes a state has a row in the audit log: from where, to where, by whom and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from flowstone.asset import asset
from flowstone.client import materialize_sync, save_plan
from flowstone.errors import LedgerRefused
from flowstone.outcome import Failure
from flowstone.planning import ACTOR as COORDINATOR
from flowstone.registry import build_registry
from flowstone.states import FINAL_STEP_STATES, RUN_MOVES, STEP_MOVES, RunState, StepState
from flowstone.store import cancellation, failing, flights, repairs, resumption, runs, steps
from flowstone.store.failing import Reason
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun, overtake, query, run_sql

DISPATCHED = {StepState.PENDING, StepState.QUEUED}


def rows(ledger: Ledger, run_id: UUID) -> list[Any]:
    sql = "SELECT * FROM flowstone.audit WHERE run_id = :r ORDER BY id"
    return list(query(ledger, sql, r=run_id))


def of(ledger: Ledger, run: HandRun, number: int) -> list[tuple[str, str, str, str]]:
    """Actor, action, and the states before and after, of all rows about a step."""
    return [
        (row.actor, row.action, row.before["state"], row.after["state"])
        for row in rows(ledger, run.id)
        if row.step_id == run.ids[number]
    ]


def moves_of(ledger: Ledger, run_id: UUID) -> list[tuple[str | None, str]]:
    return [
        (row.before and row.before["state"], row.after["state"])
        for row in rows(ledger, run_id)
        if row.step_id is None and row.after
    ]


def assert_whole(ledger: Ledger) -> None:
    """Hold the log against the ledger: every state, and each legal move on the way to it."""
    for run in query(ledger, "SELECT id, state FROM flowstone.runs"):
        before: str | None = None
        for was, became in moves_of(ledger, run.id):
            assert was == before
            assert was is None or was == became or RunState(became) in RUN_MOVES[RunState(was)]
            before = became
        assert before == run.state
    found = "SELECT id, run_id, state, asset, partition FROM flowstone.steps ORDER BY id"
    for step in query(ledger, found):
        said = [row for row in rows(ledger, step.run_id) if row.step_id == step.id]
        for row in said:
            assert (row.details["asset"], row.details["partition"]) == (step.asset, step.partition)
            was, became = StepState(row.before["state"]), StepState(row.after["state"])
            assert became in STEP_MOVES[was], row
        ends = [row for row in said if row.after["state"] in FINAL_STEP_STATES]
        assert len(ends) == (step.state in FINAL_STEP_STATES), step
        assert not ends or (ends[0].after["state"], ends[0]) == (step.state, said[-1])


CHAIN = {1: (), 2: (1,), 3: (2,)}


def test_a_run_that_succeeds_says_each_of_its_moves(ledger: Ledger) -> None:
    run = HandRun(ledger, CHAIN)
    run.do(1, 2, 3)
    with ledger.begin() as conn:
        runs.close_if_done(conn, run.id, actor="test")
    assert moves_of(ledger, run.id) == [
        (None, "requested"), ("requested", "planned"), ("planned", "running"),
        ("running", "succeeded"),
    ]  # fmt: skip
    assert of(ledger, run, 2) == [("w", "step.succeeded", "running", "succeeded")]
    assert_whole(ledger)


def test_a_failure_says_so_of_each_step_that_it_takes_along(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: (2,), 4: (), 5: (3, 4)})
    run.dispatch()
    run.fail(run.claim(1))
    with ledger.begin() as conn:
        said = "a1 failed: ValueError: bad value"
        found = {row.step_id: row for row in rows(ledger, run.id) if row.step_id}
        assert found[run.ids[1]].reason == "ValueError: bad value"
        for number, via in {2: 1, 3: 2, 5: 3}.items():
            row = found[run.ids[number]]
            assert (row.actor, row.action, row.reason) == ("w", "step.upstream_failed", said)
            assert row.details["via"] == run.ids[via]
            assert row.before["state"] in DISPATCHED
        assert run.ids[4] not in found
        failing.fail_pending(conn, run.ids[4], "a4", run.id, Reason("conflict", "no"), actor="me")
    assert of(ledger, run, 4) == []
    run.commit(run.claim(4))
    with ledger.begin() as conn:
        runs.close_if_done(conn, run.id, actor="test")
    closed = rows(ledger, run.id)[-1]
    assert (closed.action, closed.before, closed.after) == (
        "run.failed", {"state": "running"}, {"state": "failed"},
    )  # fmt: skip
    assert "a1: ValueError: bad value; 3 more were not run" in closed.reason
    assert_whole(ledger)


def test_a_step_that_fails_before_it_is_dispatched_says_why(ledger: Ledger) -> None:
    run = HandRun(ledger, CHAIN)
    with ledger.begin() as conn:
        failing.fail_pending(conn, run.ids[1], "a1", run.id, Reason("conflict", "no"), actor="me")
    assert of(ledger, run, 1) == [("me", "step.failed", "pending", "failed")]
    assert of(ledger, run, 3) == [("me", "step.upstream_failed", "pending", "upstream_failed")]
    assert_whole(ledger)


def test_a_retry_says_what_it_is_for(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    run.dispatch()
    run.retry(run.claim(1), delay=0)
    assert of(ledger, run, 1) == [("w", "step.retrying", "running", "retrying")]
    assert rows(ledger, run.id)[-1].reason == "ValueError: bad value"
    run.fail(run.claim(1))
    assert_whole(ledger)


def test_a_cancellation_has_the_reason_of_whoever_asked_for_it(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: ()})
    run.dispatch()
    claim = run.claim(1)
    run.retry(run.claim(3), delay=100)
    with ledger.begin() as conn:
        cancellation.request(conn, run.id, grace=30, reason="a typo", actor="me@here")
    (asked,) = (row for row in rows(ledger, run.id) if row.action == "run.cancel_requested")
    assert (asked.actor, asked.reason) == ("me@here", "a typo")
    assert (asked.before, asked.after) == (
        {"state": "running", "cancelling": False}, {"state": "running", "cancelling": True},
    )  # fmt: skip
    assert of(ledger, run, 2)[0][:2] == ("me@here", "step.cancelled")
    assert of(ledger, run, 3)[1:] == [("me@here", "step.cancelled", "retrying", "cancelled")]
    with ledger.begin() as conn:
        assert cancellation.stop(conn, claim, Failure("Cancelled", "ended", "", retryable=False))
        cancellation.settle(conn, run.id, actor="me@here")
    assert of(ledger, run, 1) == [("w", "step.cancelled", "running", "cancelled")]
    said = "cancelled by me@here: a typo"
    reasons = {row.reason for row in rows(ledger, run.id) if row.action == "step.cancelled"}
    assert reasons == {said}
    assert rows(ledger, run.id)[-1].reason == said
    assert_whole(ledger)


def test_what_is_taken_by_force_and_what_becomes_free_in_a_cancelled_run_are_told(
    ledger: Ledger,
) -> None:
    run = HandRun(ledger, {1: (), 2: ()})
    run.dispatch()
    run.claim(1)
    run.claim(2, lease=-1)
    with ledger.begin() as conn:
        cancellation.request(conn, run.id, grace=0, reason=None, actor="me")
        repairs.expired_leases(conn)
        cancellation.settle(conn, run.id, actor="sweeper")
    assert of(ledger, run, 2) == [
        ("reconciler", "step.lost", "running", "pending"),
        ("sweeper", "step.cancelled", "pending", "cancelled"),
    ]
    with ledger.begin() as conn:
        cancellation.overdue(conn, actor="reconciler")
    assert of(ledger, run, 1) == [("reconciler", "step.cancelled", "running", "cancelled")]
    assert "did not stop in time" in rows(ledger, run.id)[-2].reason
    assert_whole(ledger)


@pytest.mark.parametrize("expects", ["c.f.i", "other"])
def test_who_joins_another_run_says_when_and_how_that_ends(ledger: Ledger, expects: str) -> None:
    leader = HandRun(ledger, {1: ()})
    leader.dispatch()
    claim = leader.claim(1)
    follower = HandRun(ledger, {1: ()}, expects=expects)
    follower.dispatch()
    leader.commit(claim)
    leader.settle()
    joined = ("test", "step.joined", "pending", "joined")
    end = {
        "c.f.i": ("test", "step.succeeded", "joined", "succeeded"),
        "other": ("test", "step.left", "joined", "pending"),
    }
    assert of(ledger, follower, 1) == [joined, end[expects]]
    assert_whole(ledger)


def test_each_repair_is_told(ledger: Ledger) -> None:
    lost, late, due, still = (HandRun(ledger, {1: ()}, name=name) for name in "bcde")
    for run in (lost, late, due, still):
        run.dispatch()
    lost.claim(1, lease=-1)
    late.retry(late.claim(1), delay=-1000)
    with ledger.begin() as conn:
        steps.retry(conn, due.claim(1), Failure("E", "m", "", retryable=True), -1, park=True)
        run_sql(conn, "UPDATE flowstone.steps SET queued_at = now() - interval '1 day'")
    overtake(ledger)
    with ledger.begin() as conn:
        repairs.due_retries(conn)
        repairs.expired_leases(conn)
        repairs.overdue_retries(conn, 60)
        repairs.stranded(conn, 60)
    who = "reconciler"
    assert of(ledger, lost, 1) == [(who, "step.lost", "running", "pending")]
    assert of(ledger, late, 1)[1:] == [(who, "step.retry_overdue", "retrying", "pending")]
    assert of(ledger, due, 1)[1:] == [(who, "step.retry_due", "retrying", "pending")]
    assert of(ledger, still, 1) == [(who, "step.stranded", "queued", "pending")]
    assert_whole(ledger)


def test_a_step_that_kills_its_worker_says_so_at_its_end(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    for _ in range(3):
        run.dispatch()
        run.claim(1, lease=-1)
        with ledger.begin() as conn:
            repairs.expired_leases(conn)
    lost = ("reconciler", "step.lost", "running", "pending")
    assert of(ledger, run, 1) == [
        *[lost] * 3, ("reconciler", "step.failed", "pending", "failed"),
    ]  # fmt: skip
    assert of(ledger, run, 2)[-1][1] == "step.upstream_failed"
    assert_whole(ledger)


def test_a_plan_that_is_saved_and_started_and_what_is_fresh_are_told(
    make_runtime: Any, ledger: Ledger
) -> None:
    @asset
    def source() -> int:
        return 1

    make_runtime(build_registry([source]))
    materialize_sync(source)
    saved = save_plan(source)
    with ledger.begin() as conn:
        runs.start(conn, saved.id, actor="me")
    assert [
        (row.actor, row.action) for row in rows(ledger, saved.id) if row.action != "run.requested"
    ] == [(COORDINATOR, "run.planned"), (COORDINATOR, "run.paused"), ("me", "run.started")]
    again = materialize_sync(source, upstream=True)
    # A step that is born skipped has moved nowhere: the row of the plan counts it.
    planned = rows(ledger, again.id)[1]
    assert (planned.action, planned.details) == ("run.planned", {"steps": 1, "skipped": 1})


def test_a_resumed_run_says_of_which(ledger: Ledger) -> None:
    run = HandRun(ledger, CHAIN)
    run.dispatch()
    run.fail(run.claim(1))
    with ledger.begin() as conn:
        runs.close_if_done(conn, run.id, actor="test")
        new = resumption.create(conn, uuid4(), run.id, actor="me")
    (row,) = (row for row in rows(ledger, new) if row.action == "run.resumed")
    assert (row.actor, row.details["resumed_from"]) == ("me", str(run.id))
    assert moves_of(ledger, new) == [(None, "requested"), ("requested", "planned")]


def test_a_run_that_is_refused_or_abandoned_says_why(ledger: Ledger) -> None:
    refused = HandRun(ledger, {1: ()}, name="b")
    inline = HandRun(ledger, CHAIN, driver="inline", lease=-1)
    inline.dispatch()
    inline.claim(1)
    with ledger.begin() as conn:
        run_sql(
            conn,
            "UPDATE flowstone.runs SET state = 'requested' WHERE id = :r",
            r=refused.id,
        )
        runs.fail(conn, refused.id, {"type": "x", "message": "no such asset"}, actor="me")
        cancellation.abandoned(conn, actor="reconciler")
        flights.left(conn, actor="reconciler")
    last: Mapping[str, Any] = rows(ledger, refused.id)[-1]._mapping
    assert (last["action"], last["reason"]) == ("run.failed", "no such asset")
    died = "cancelled, as the process that drove the run has died"
    ended = rows(ledger, inline.id)[-4:]
    assert [(row.action, row.reason) for row in ended] == [
        *[("step.cancelled", died)] * 3, ("run.cancelled", died),
    ]  # fmt: skip


def test_a_change_whose_row_cannot_be_written_is_not_made(ledger: Ledger) -> None:
    """The log is no side effect that may be lost: without it, there is no change."""
    run = HandRun(ledger, CHAIN)
    run.dispatch()
    claim = run.claim(1)
    with ledger.engine.begin() as conn:
        conn.execute(text("ALTER TABLE flowstone.audit ADD CHECK (action NOT LIKE 'step.%')"))
    before = run.rows()
    for change in (lambda: run.commit(claim), lambda: run.fail(claim), lambda: run.retry(claim)):
        with pytest.raises(LedgerRefused, match="audit"):
            change()
    with pytest.raises(LedgerRefused, match="audit"), ledger.begin() as conn:
        cancellation.request(conn, run.id, grace=30, reason=None, actor="me")
    assert run.rows() == before
    assert {row.state for row in query(ledger, "SELECT state FROM flowstone.runs")} == {"running"}
