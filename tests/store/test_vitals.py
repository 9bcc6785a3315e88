"""What the ledger knows of workers, beat and the reconciler, for the doctor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from flowstone.store import vitals, watch, workers
from flowstone.store.ledger import Ledger
from flowstone.store.workers import Work, Worker
from tests.store.runs_by_hand import HandRun, run_sql

WORK = Work("0.9", processes=2, busy=0, taken=5, clock=0.0)

Report = Callable[[Work], Worker]


@pytest.fixture
def later(ledger: Ledger) -> Report:
    """A worker that reports anew after 20 seconds, as it looks then."""

    def report(work: Work) -> Worker:
        with ledger.begin() as conn:
            for column in ("started_at", "taken_at", "seen_at"):
                run_sql(
                    conn,
                    f"UPDATE flowstone.workers SET {column} = {column} - interval '20 s'",
                )
            workers.report(conn, "w@host", ["assets"], up=3600, work=work)
            (found,) = workers.listed(conn)
        return found

    return report


def test_a_worker_is_idle_since_it_took_something_or_had_no_process_free(later: Report) -> None:
    idle = [round(later(replace(WORK, taken=taken, busy=busy)).idle) for taken, busy in (
        (5, 0),  # the first report
        (5, 1), (5, 1), (6, 1),  # it takes one
        (6, 1), (6, 2),  # all are busy
        (6, 2), (6, 1), (6, 0),
        (0, 0),  # another one of the same name
    )]  # fmt: skip
    assert idle == [0, 20, 40, 0, 20, 0, 0, 20, 40, 0]


def test_a_worker_that_is_there_again_has_not_been_idle_before(
    ledger: Ledger, later: Report
) -> None:
    later(WORK)
    later(WORK)
    with ledger.begin() as conn:
        workers.report(conn, "w@host", ["assets"], up=1, work=WORK)
        (found,) = workers.listed(conn)
    assert 0 <= found.idle < 2


@pytest.mark.parametrize("ahead", [-100.0, 0.0, 100.0])
def test_the_clock_of_a_worker_is_compared_to_that_of_the_ledger(
    later: Report, ahead: float
) -> None:
    found = later(replace(WORK, clock=time.time() + ahead))
    assert found.clock_ahead == pytest.approx(ahead, abs=2)
    assert (found.version, found.processes, found.busy) == ("0.9", 2, 0)


def test_beat_and_the_reconciler_are_told_apart(ledger: Ledger) -> None:
    def seen() -> tuple[bool, bool]:
        with ledger.begin() as conn:
            found = vitals.vitals(conn)
        assert found.clock == pytest.approx(time.time(), abs=2)
        return found.ticked is not None, found.passed is not None

    assert seen() == (False, False)
    with ledger.begin() as conn:
        # One who waits for a run of its own looks after some of it.
        watch.look(conn, 60, is_pass=False)
    assert seen() == (False, False)
    with ledger.begin() as conn:
        watch.look(conn, 60)
        watch.look(conn, 60, is_pass=False)
    assert seen() == (False, True)
    with ledger.begin() as conn:
        vitals.tick(conn)
    assert seen() == (True, True)


def test_what_waits_in_a_queue_waits_since_its_oldest_step_was_sent(ledger: Ledger) -> None:
    def waits() -> dict[str, int]:
        with ledger.begin() as conn:
            return {queue: round(seconds) for queue, seconds in vitals.waits(conn).items()}

    assert waits() == {}
    run = HandRun(ledger, {1: (), 2: (), 3: (1, 2)}, queue="gpu")
    assert waits() == {}
    run.dispatch()
    with ledger.begin() as conn:
        run_sql(
            conn,
            "UPDATE flowstone.steps SET queued_at = queued_at - make_interval(secs => 100 * id)"
            " WHERE open_deps = 0",
        )
        run_sql(
            conn,
            "UPDATE flowstone.steps SET queued_at = now() - interval '1 day' WHERE open_deps > 0",
        )
    (longest,) = waits().values()
    ids = [row["id"] for key, row in run.rows().items() if key != 3]
    assert longest == 100 * max(ids)


def test_a_run_and_beat_wait_in_the_queue_of_control(ledger: Ledger) -> None:
    def waits() -> int:
        with ledger.begin() as conn:
            return round(vitals.waits(conn).get("control", 0))

    with ledger.begin() as conn:
        vitals.tick(conn)
        run_sql(conn, "UPDATE flowstone.watch SET ticked_at = ticked_at - interval '50 s'")
    assert waits() == 50
    HandRun(ledger, {1: ()})
    with ledger.begin() as conn:
        run_sql(
            conn,
            "UPDATE flowstone.runs SET state = 'requested', created_at = now() - interval '70 s'",
        )
    assert waits() == 70
