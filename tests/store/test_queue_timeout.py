"""Queues that no worker consumes are noted, and what waits in them for too long fails."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from flowstone.request import Request
from flowstone.store import cancellation, queue_timeout, repairs, runs, steps, workers
from flowstone.store.ledger import Ledger
from flowstone.store.steps import Refused
from flowstone.store.workers import GONE_SECONDS
from tests.store.runs_by_hand import HandRun, overtake, query, run_sql

TIMEOUT = 3600.0
READ = {1: (), 2: (1,), 3: ()}


def attend(ledger: Ledger, name: str, *queues: str) -> None:
    with ledger.begin() as conn:
        workers.report(conn, name, queues, up=0)


def leave(ledger: Ledger, name: str) -> None:
    with ledger.begin() as conn:
        workers.remove(conn, name)


def let_pass(ledger: Ledger, seconds: float, *, while_looking: bool = True) -> None:
    """Let what has waited do so for longer; the reconciler has looked meanwhile, or has not."""
    noted = ["since"] if while_looking else ["since", "seen_at"]
    with ledger.begin() as conn:
        for column in noted:
            sql = f"UPDATE flowstone.unattended SET {column} = {column} - make_interval(secs => :s)"
            run_sql(conn, sql, s=seconds)
        sql = "UPDATE flowstone.steps SET queued_at = queued_at - make_interval(secs => :s)"
        run_sql(conn, sql, s=seconds)


def look(ledger: Ledger) -> list[str]:
    """Be the reconciler, and return the queues that it warns of."""
    with ledger.begin() as conn:
        return [one.queue for one in queue_timeout.note(conn)]


def fail_late(ledger: Ledger) -> list[int]:
    with ledger.begin() as conn:
        return [step.step_id for step in queue_timeout.time_out(conn, TIMEOUT)]


def waits(ledger: Ledger, run_id: UUID | None = None) -> list[str]:
    with ledger.begin() as conn:
        return [str(one) for one in workers.unattended(conn, run_id)]


def test_a_worker_is_there_until_it_is_silent_for_three_beats(ledger: Ledger) -> None:
    attend(ledger, "one@host", "assets", "gpu")
    attend(ledger, "other@host", "control")
    with ledger.begin() as conn:
        sql = "UPDATE flowstone.workers SET seen_at = now() - make_interval(secs => :s)"
        run_sql(conn, f"{sql} WHERE name = 'one@host'", s=GONE_SECONDS - 1)
        run_sql(conn, f"{sql} WHERE name = 'other@host'", s=GONE_SECONDS + 1)
        found = workers.listed(conn)
        assert [(w.name, w.queues) for w in found] == [("one@host", ("assets", "gpu"))]
        assert GONE_SECONDS - 1 <= found[0].silent < GONE_SECONDS
        assert workers.gone(conn) == ["other@host"]
        assert workers.gone(conn) == []
    assert [row.name for row in query(ledger, "SELECT name FROM flowstone.workers")] == ["one@host"]


def test_a_worker_that_reports_again_has_the_queues_and_the_age_that_it_says(
    ledger: Ledger,
) -> None:
    attend(ledger, "one@host", "assets")
    with ledger.begin() as conn:
        workers.report(conn, "one@host", ["gpu"], up=500)
        (found,) = workers.listed(conn)
    assert found.queues == ("gpu",)
    (row,) = query(
        ledger, "SELECT extract(epoch FROM seen_at - started_at) AS up FROM flowstone.workers"
    )
    assert float(row.up) == 500


def test_what_waits_in_a_queue_that_nobody_consumes_is_told(ledger: Ledger) -> None:
    run = HandRun(ledger, READ, queue="gpu", max_in_flight=1)
    other = HandRun(ledger, {1: ()}, name="b")
    run.dispatch()
    gpu = (
        "2 steps wait in the queue 'gpu', which no worker consumes; "
        "start one: celery -A tasks worker -Q gpu"
    )
    assets = (
        "1 step waits in the queue 'assets', which no worker consumes; "
        "start one: celery -A tasks worker -Q assets"
    )
    assert waits(ledger, run.id) == [gpu]
    assert waits(ledger) == [assets, gpu]
    attend(ledger, "one@host", "assets", "control")
    assert waits(ledger) == [gpu]
    assert waits(ledger, other.id) == []
    attend(ledger, "two@host", "gpu")
    assert waits(ledger) == []


def test_a_run_that_nobody_plans_waits_in_the_queue_of_control(ledger: Ledger) -> None:
    for _ in range(2):
        with ledger.begin() as conn:
            runs.create(
                conn,
                run_id := uuid4(),
                Request(("a1",), "-", upstream=False),
                config={},
                driver="celery",
                max_in_flight=1,
                actor="test",
            )
    said = (
        "in the queue 'control', which no worker consumes; "
        "start one: celery -A tasks worker -Q control"
    )
    assert waits(ledger, run_id) == [f"1 run waits {said}"]
    assert waits(ledger) == [f"2 runs wait {said}"]
    attend(ledger, "one@host", "control")
    assert waits(ledger) == []


def test_a_step_whose_queue_nobody_has_consumed_for_too_long_fails_with_its_readers(
    ledger: Ledger,
) -> None:
    run = HandRun(ledger, READ, queue="gpu")
    (_, _) = run.dispatch()
    assert look(ledger) == ["gpu"]
    let_pass(ledger, TIMEOUT - 1)
    assert fail_late(ledger) == []
    let_pass(ledger, 2)
    # It is known already.
    assert look(ledger) == []
    assert fail_late(ledger) == [run.ids[1], run.ids[3]]
    assert run.states() == {1: "failed", 2: "upstream_failed", 3: "failed"}
    error = run.rows()[1]["error"]
    assert error["type"] == "queue_timeout"
    assert error["message"] == (
        "no worker has consumed the queue 'gpu' for 3600 s; start one, "
        "celery -A tasks worker -Q gpu, and resume the run"
    )
    # The message that comes late claims nothing.
    with ledger.begin() as conn:
        late = steps.claim(conn, run.ids[1], run.canvas[1], worker="w", lease=60)
    assert isinstance(late, Refused)
    with ledger.begin() as conn:
        runs.close_if_done(conn, run.id, actor="test")
        assert runs.get(conn, run.id).state == "failed"
    # With the last step that waits, the queue is forgotten.
    assert look(ledger) == []
    assert query(ledger, "SELECT * FROM flowstone.unattended") == []


def test_the_time_begins_anew_when_a_worker_was_there(ledger: Ledger) -> None:
    run = HandRun(ledger, READ, queue="gpu")
    run.dispatch()
    look(ledger)
    let_pass(ledger, TIMEOUT + 10)
    attend(ledger, "one@host", "gpu")
    assert look(ledger) == []
    assert fail_late(ledger) == []
    leave(ledger, "one@host")
    assert look(ledger) == ["gpu"]
    assert fail_late(ledger) == []
    assert set(run.states().values()) == {"queued"}


def test_only_time_counts_in_which_somebody_has_looked(ledger: Ledger) -> None:
    run = HandRun(ledger, READ, queue="gpu")
    run.dispatch()
    look(ledger)
    let_pass(ledger, 3 * TIMEOUT, while_looking=False)
    # All was down for days; the first worker that is back is not the one for this queue.
    look(ledger)
    assert fail_late(ledger) == []
    let_pass(ledger, TIMEOUT + 1)
    look(ledger)
    assert len(fail_late(ledger)) == 2
    assert set(run.states().values()) == {"failed", "upstream_failed"}


def test_a_step_that_was_queued_a_moment_ago_has_its_time(ledger: Ledger) -> None:
    old, new = HandRun(ledger, READ, queue="gpu"), HandRun(ledger, READ, queue="gpu", name="b")
    old.dispatch()
    look(ledger)
    let_pass(ledger, TIMEOUT + 1)
    new.dispatch()
    look(ledger)
    assert fail_late(ledger) == [old.ids[1], old.ids[3]]
    assert set(new.states().values()) == {"queued"}


def test_what_the_window_has_kept_back_fails_as_well_however_many_passes_it_takes(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = HandRun(ledger, dict.fromkeys(range(1, 11), ()), queue="gpu", max_in_flight=3)
    run.dispatch()
    look(ledger)
    let_pass(ledger, TIMEOUT + 1)
    look(ledger)
    monkeypatch.setattr(queue_timeout, "BATCH", 4)
    assert [len(fail_late(ledger)) for _ in range(4)] == [4, 4, 2, 0]
    assert set(run.states().values()) == {"failed"}


def test_other_queues_of_the_run_go_on(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: ()}, queue="gpu")
    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.steps SET queue = 'assets' WHERE id = :i", i=run.ids[2])
    run.dispatch()
    attend(ledger, "one@host", "assets")
    look(ledger)
    let_pass(ledger, TIMEOUT + 1)
    attend(ledger, "one@host", "assets")
    look(ledger)
    assert fail_late(ledger) == [run.ids[1]]
    assert run.states() == {1: "failed", 2: "queued"}


def test_a_message_that_nobody_could_take_is_not_taken_for_lost(ledger: Ledger) -> None:
    run = HandRun(ledger, READ, queue="gpu")
    run.dispatch()
    look(ledger)
    let_pass(ledger, 301)
    with ledger.begin() as conn:
        assert repairs.stranded(conn, 300) == []
    attend(ledger, "one@host", "gpu")
    look(ledger)
    overtake(ledger, "gpu")
    with ledger.begin() as conn:
        assert len(repairs.stranded(conn, 300)) == 2


def test_a_run_that_is_being_cancelled_is_left_alone(ledger: Ledger) -> None:
    run = HandRun(ledger, READ, queue="gpu")
    run.dispatch()
    look(ledger)
    with ledger.begin() as conn:
        cancellation.request(conn, run.id, grace=30, reason=None, actor="test")
    let_pass(ledger, TIMEOUT + 1)
    assert look(ledger) == []
    assert fail_late(ledger) == []
    assert set(run.states().values()) == {"cancelled"}
