"""Ageing: a run that starves moves up, and back when one of its steps starts."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest

from flowstone.expand import Chain, Chord
from flowstone.priority import FIRST, MAX_BOOST, Priority, urgency
from flowstone.store import ageing
from flowstone.store import urgency as urgency_in_sql
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun, query, run_sql
from tests.strategies import Dag

AGEING = 300.0
WIDE: Dag = dict.fromkeys(range(1, 21), ())


def age(ledger: Ledger, passed: float = 0.0) -> dict[UUID, int]:
    """Let time pass for what waits, and be the reconciler; return how far runs have moved up."""
    with ledger.begin() as conn:
        sql = "UPDATE flowstone.runs SET waits_since = waits_since - make_interval(secs => :s)"
        run_sql(conn, sql, s=passed)
        sql = "UPDATE flowstone.attempts SET started_at = started_at - make_interval(secs => :s)"
        run_sql(conn, sql, s=passed)
        return {run.run_id: run.boost for run in ageing.age(conn, AGEING)}


def boost(run: HandRun) -> int:
    (found,) = query(run.ledger, "SELECT boost FROM flowstone.runs WHERE id = :r", r=run.id)
    return int(found.boost)


def test_a_run_of_which_nothing_starts_moves_up_once_a_period_and_no_further_than_to_the_top(
    ledger: Ledger,
) -> None:
    run = HandRun(ledger, {1: ()}, priority=Priority.LOW)
    run.dispatch()
    assert age(ledger) == {}
    assert age(ledger, 299) == {}
    assert age(ledger, 2) == {run.id: 1}
    run.dispatch()
    assert age(ledger) == {}
    assert age(ledger, 298) == {}
    assert age(ledger, 2) == {run.id: 2}
    run.dispatch()
    assert age(ledger, 3000) == {}
    assert boost(run) == 2


def test_a_run_goes_back_when_a_step_of_it_starts(ledger: Ledger) -> None:
    run = HandRun(ledger, WIDE, priority=Priority.LOW)
    run.dispatch()
    age(ledger)
    assert age(ledger, 301) == {run.id: 1}
    run.dispatch()
    run.claim(1)
    assert age(ledger) == {}
    assert boost(run) == 0
    assert age(ledger, 299) == {}
    # The step that runs is no start any more.
    assert age(ledger, 2) == {run.id: 1}
    actions = "SELECT action FROM flowstone.audit WHERE run_id = :r AND actor = 'reconciler'"
    assert [row.action for row in query(ledger, f"{actions} ORDER BY id", r=run.id)] == [
        "run.aged", "run.unaged", "run.aged",
    ]  # fmt: skip


def test_a_run_that_makes_progress_overtakes_nobody(ledger: Ledger) -> None:
    run = HandRun(ledger, WIDE, priority=Priority.LOW)
    run.dispatch()
    age(ledger)
    for number in range(1, 6):
        run.commit(run.claim(number))
        assert age(ledger, 250) == {}
    assert boost(run) == 0


@pytest.mark.parametrize("number", [1, 2])
def test_a_second_attempt_is_a_start_as_well(ledger: Ledger, number: int) -> None:
    run = HandRun(ledger, WIDE)
    run.dispatch()
    run.retry(run.claim(1))
    age(ledger)
    age(ledger, 200)
    run.claim(number)
    assert age(ledger, 0) == {}
    assert age(ledger, 299) == {}


def test_the_first_steps_are_made_ready_again_and_no_others(ledger: Ledger) -> None:
    run = HandRun(ledger, WIDE)
    run.dispatch()
    before = run.rows()
    age(ledger)
    assert age(ledger, 301) == {run.id: 1}
    states = run.states()
    assert [n for n, state in states.items() if state == "pending"] == list(range(1, FIRST + 1))
    assert {n: row for n, row in run.rows().items() if n > FIRST} == {
        n: row for n, row in before.items() if n > FIRST
    }
    # What was sent for them claims nothing.
    old = run.canvas[1]
    run.dispatch()
    assert run.canvas[1] != old


def test_what_followed_in_their_canvases_waits_in_the_ledger(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: (), 4: (2, 3)})
    (canvas,) = run.dispatch()
    assert isinstance(canvas, Chord)
    age(ledger)
    age(ledger, 301)
    assert set(run.states().values()) == {"pending"}


def test_a_chain_that_has_begun_is_left_alone(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    assert [type(canvas) for canvas in run.dispatch()] == [Chain]
    run.claim(1)
    age(ledger)
    assert age(ledger, 301) == {}
    assert run.states() == {1: "running", 2: "queued"}


def test_what_is_ready_and_not_dispatched_starves_as_well(ledger: Ledger) -> None:
    run = HandRun(ledger, WIDE)
    age(ledger)
    assert age(ledger, 301) == {run.id: 1}


def test_the_time_counts_from_when_a_step_could_start(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    run.dispatch()
    claim = run.claim(1)
    age(ledger)
    age(ledger, 10_000)
    run.commit(claim)
    assert age(ledger) == {}
    assert age(ledger, 299) == {}
    assert age(ledger, 2) == {run.id: 1}


def test_who_waits_for_a_worker_that_is_not_there_gains_nothing(ledger: Ledger) -> None:
    run = HandRun(ledger, WIDE, queue="gpu")
    run.dispatch()
    with ledger.begin() as conn:
        run_sql(conn, "INSERT INTO flowstone.unattended (queue) VALUES ('gpu')")
    age(ledger)
    assert age(ledger, 10_000) == {}


@pytest.mark.parametrize("state", ["paused", "cancelled", "inline"])
def test_a_run_that_is_not_to_start_does_not_starve(ledger: Ledger, state: str) -> None:
    HandRun(ledger, WIDE, driver="inline" if state == "inline" else "celery")
    with ledger.begin() as conn:
        if state == "paused":
            run_sql(conn, "UPDATE flowstone.runs SET state = 'paused'")
        if state == "cancelled":
            run_sql(
                conn,
                "UPDATE flowstone.runs SET cancel_requested_at = now(), cancel_grace = 9,"
                " cancel_reason = 'x'",
            )
    age(ledger)
    assert age(ledger, 10_000) == {}


def test_a_run_that_starves_goes_first_in_the_order_of_the_ledger(ledger: Ledger) -> None:
    made = [HandRun(ledger, {1: ()}, name=p.value, priority=p) for p in Priority]
    sql = f"SELECT priority, boost, {urgency_in_sql.urgency('r')} AS now FROM flowstone.runs r"
    for moved in range(MAX_BOOST + 1):
        with ledger.begin() as conn:
            run_sql(conn, "UPDATE flowstone.runs SET boost = :b", b=moved)
        rows: Sequence[tuple[int, int, int]] = query(ledger, sql)
        assert len(rows) == len(made)
        assert all(now == urgency(priority, b) for priority, b, now in rows)


def take_slots(run: HandRun, *numbers: int) -> None:
    ids = [run.ids[number] for number in numbers]
    with run.ledger.begin() as conn:
        sql = """UPDATE flowstone.steps SET takes = '{"pool:p": 1}' WHERE id = ANY(:ids)"""
        run_sql(conn, sql, ids=ids)


def test_what_waits_for_slots_makes_nothing_more_urgent(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: ()}, priority=Priority.LOW)
    take_slots(run, 1, 2)
    age(ledger)
    assert age(ledger, 10_000) == {}
    assert boost(run) == 0


def test_what_has_slots_and_waits_in_the_broker_starves_as_any_other(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: ()}, priority=Priority.LOW)
    run.dispatch()
    take_slots(run, 1, 2)
    age(ledger)
    assert age(ledger, 301) == {run.id: 1}
