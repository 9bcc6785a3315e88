"""The reconciler: it puts right what was lost, and leaves alone what is well."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

from flowstone.reconcile import reconcile
from flowstone.registry import build_registry
from flowstone.request import Request
from flowstone.rules import RULES
from flowstone.store import repairs, runs, workers
from flowstone.store.ledger import Connection, Ledger
from tests.store.runs_by_hand import HandRun, overtake, query, run_sql

CHORD = {1: (), 2: (1,), 3: (), 4: (2, 3)}


def age(ledger: Ledger, seconds: float) -> None:
    """Let all that has happened lie `seconds` further back."""
    with ledger.begin() as conn:
        for column in ("queued_at", "started_at", "finished_at", "lease_until", "retry_at"):
            sql = f"UPDATE flowstone.steps SET {column} = {column} - make_interval(secs => :s)"
            run_sql(conn, sql, s=seconds)
        sql = "UPDATE flowstone.runs SET created_at = created_at - make_interval(secs => :s)"
        run_sql(conn, sql, s=seconds)


def runs_to_wake(conn: Connection, patience: float) -> list[UUID]:
    """Return the runs that the reconciler would wake, older than `patience` seconds."""
    looks = (repairs.unplanned, repairs.idle, repairs.unclosed)
    return [run.run_id for look in looks for run in look(conn, patience) if run.run_id]


def test_a_step_whose_lease_has_expired_is_free_again_and_its_canvas_with_it(
    ledger: Ledger,
) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    claim = run.claim(1)
    age(ledger, 61)
    with ledger.begin() as conn:
        found = repairs.expired_leases(conn)
    assert [(r.step_id, r.run_id) for r in found] == [(run.ids[1], run.id)]
    assert run.states() == {1: "pending", 2: "pending", 3: "queued", 4: "pending"}
    row = run.rows()[1]
    assert (row["token"], row["canvas"], row["attempt"]) == (None, None, 1)
    assert query(ledger, "SELECT number, outcome, finished_at IS NULL FROM flowstone.attempts") == [
        (1, "lost", False)
    ]
    assert query(ledger, "SELECT action FROM flowstone.audit WHERE actor = 'reconciler'") == [
        ("step.lost",)
    ]
    assert run.commit(claim) is False
    run.dispatch()
    assert run.claim(1).attempt == 2


def test_a_retry_that_never_came_is_free_again(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    run.retry(run.claim(1), delay=30)
    age(ledger, 329)
    with ledger.begin() as conn:
        assert repairs.overdue_retries(conn, 300) == []
    age(ledger, 2)
    with ledger.begin() as conn:
        assert [r.step_id for r in repairs.overdue_retries(conn, 300)] == [run.ids[1]]
    assert run.states() == {1: "pending", 2: "pending", 3: "queued", 4: "pending"}
    assert query(ledger, "SELECT outcome FROM flowstone.attempts") == [("retrying",)]


def stranded(ledger: Ledger, patience: float = 300) -> set[int]:
    with ledger.begin() as conn:
        return {step.step_id for step in repairs.stranded(conn, patience)}


def test_a_message_is_lost_where_one_that_was_sent_later_has_begun(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    age(ledger, 301)
    elsewhere = HandRun(ledger, {1: ()}, name="c", queue="backfill")
    elsewhere.dispatch()
    elsewhere.claim(1)
    inline = HandRun(ledger, {1: ()}, name="d", driver="inline")
    inline.dispatch()
    inline.claim(1)
    assert stranded(ledger) == set()
    overtake(ledger)
    assert stranded(ledger, 302) == set()
    assert stranded(ledger) == {run.ids[1], run.ids[3]}
    assert set(run.states().values()) == {"pending"}
    # What is sent anew is behind it.
    run.dispatch()
    assert stranded(ledger, 0) == set()


def test_a_full_queue_is_no_fault_however_long_it_is(ledger: Ledger) -> None:
    made = [HandRun(ledger, dict.fromkeys(range(1, 31), ()), name=name) for name in "abc"]
    for run in made:
        run.dispatch()
    busy = made[0].claim(1, lease=10_000)
    for _ in range(30):
        age(ledger, 60)
        assert stranded(ledger) == set()
    # The next in the line were sent at the same time, in whatever order.
    made[0].commit(busy)
    made[2].claim(30)
    assert stranded(ledger) == set()


@pytest.mark.parametrize(("level", "is_lost"), [(3, False), (4, True), (9, True)])
def test_what_is_more_urgent_overtakes_nothing(ledger: Ledger, level: int, is_lost: bool) -> None:
    waits = HandRun(ledger, {1: ()})
    waits.dispatch()
    age(ledger, 400)
    overtake(ledger)
    sql = "UPDATE flowstone.steps SET level = CASE state WHEN 'queued' THEN 4 ELSE :l END"
    with ledger.begin() as conn:
        run_sql(conn, sql, l=level)
    assert (stranded(ledger) == {waits.ids[1]}) is is_lost


def test_what_is_well_is_left_alone(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (), 3: (2,), 4: (), 5: (4,), 6: ()}, max_in_flight=5)
    run.dispatch()
    run.claim(1)
    run.retry(run.claim(2), delay=1000)
    run.commit(run.claim(4))
    before = run.rows()
    with ledger.begin() as conn:
        assert repairs.expired_leases(conn) == []
        assert repairs.overdue_retries(conn, 300) == []
        assert repairs.stranded(conn, 300) == []
    assert run.rows() == before


def test_runs_are_woken_where_a_coordinator_could_do_something(ledger: Ledger) -> None:
    ready = HandRun(ledger, {1: ()})
    busy = HandRun(ledger, {1: (), 2: (1,)}, name="b")
    busy.dispatch()
    done = HandRun(ledger, {1: ()}, name="c")
    done.do(1)
    closed = HandRun(ledger, {1: ()}, name="d")
    closed.do(1)
    inline = HandRun(ledger, {1: ()}, driver="inline")
    # Its window is full, so that a coordinator could do nothing.
    full = HandRun(ledger, {1: (), 2: ()}, max_in_flight=1, name="e")
    full.dispatch()
    requested = uuid4()
    with ledger.begin() as conn:
        runs.close_if_done(conn, closed.id, actor="test")
        runs.create(
            conn,
            requested,
            Request(("a1",), "-", upstream=False),
            config={},
            driver="celery",
            max_in_flight=1,
            actor="test",
        )
        assert runs_to_wake(conn, 5) == []
    age(ledger, 6)
    with ledger.begin() as conn:
        found = runs_to_wake(conn, 5)
    assert set(found) == {ready.id, done.id, requested}
    assert inline.id not in found


def test_a_pass_counts_its_repairs_and_wakes_the_runs(make_runtime: Any, ledger: Ledger) -> None:
    runtime = make_runtime(build_registry([]))
    run = HandRun(ledger, CHORD)
    run.dispatch()
    run.claim(1)
    run.retry(run.claim(3), delay=0)
    age(ledger, 1000)
    woken: list[UUID] = []
    counts = reconcile(runtime, lambda run_id, _: woken.append(run_id))
    nothing = dict.fromkeys([*(rule.name for rule in RULES), "run_woken"], 0)
    assert counts == {
        **nothing,
        "lease_expired": 1,
        "retry_overdue": 1,
        "run_idle": 1,
        "run_woken": 1,
    }
    assert woken == [run.id]
    assert set(run.states().values()) == {"pending"}
    again = reconcile(runtime, lambda run_id, _: woken.append(run_id))
    assert again == {**nothing, "run_idle": 1, "run_woken": 1}


def test_two_reconcilers_at_once_repair_each_fault_once(make_runtime: Any, ledger: Ledger) -> None:
    runtime = make_runtime(build_registry([]))
    made = [HandRun(ledger, CHORD, name=name) for name in "abcde"]
    for run in made:
        run.dispatch()
        run.claim(1)
        run.claim(3)
    age(ledger, 1000)
    with ThreadPoolExecutor(2) as pool:
        passes = [pool.submit(reconcile, runtime, lambda *_: None) for _ in range(2)]
        counts = [future.result(20) for future in passes]
    assert sum(c["lease_expired"] for c in counts) == 10
    assert query(ledger, "SELECT count(*) FROM flowstone.audit WHERE action = 'step.lost'") == [
        (10,)
    ]
    assert all(set(run.states().values()) == {"pending"} for run in made)


def test_a_step_that_kills_its_worker_each_time_fails_at_last(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: ()})
    for _ in range(3):
        assert run.states()[1] != "failed"
        run.dispatch()
        run.claim(1, lease=-1)
        with ledger.begin() as conn:
            repairs.expired_leases(conn)
    states = run.states()
    assert (states[1], states[2]) == ("failed", "upstream_failed")
    assert states[3] != "failed"
    assert run.rows()[1]["error"]["type"] == "poison"
    lost = "SELECT count(*) FROM flowstone.attempts WHERE outcome = 'lost'"
    assert query(ledger, lost) == [(3,)]


@pytest.mark.parametrize(("ageing", "after"), [(300, 360), (1000, 1060)])
def test_a_message_counts_as_lost_only_after_its_run_has_moved_up(
    make_runtime: Any, ledger: Ledger, ageing: float, after: float
) -> None:
    runtime = make_runtime(build_registry([]), ageing=ageing)
    with ledger.begin() as conn:
        workers.report(conn, "w", ["assets"], up=0)
    run = HandRun(ledger, {1: ()})
    run.dispatch()
    age(ledger, after - 10)
    overtake(ledger)
    assert reconcile(runtime, lambda *_: None)["step_stranded"] == 0
    assert run.states() == {1: "queued"}
    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.steps SET queued_at = queued_at - interval '20 s'")
    assert reconcile(runtime, lambda *_: None)["step_stranded"] == 1
