"""Retries that are parked: out of their canvas and the window, until the clock finds them due."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from flowstone import Context, Retry, asset, coordinator, inline, materialize_sync, planning
from flowstone.client import run as run_of
from flowstone.client import runs_list
from flowstone.coordinator import Taken
from flowstone.errors import RunFailed
from flowstone.execution import Ended, execute
from flowstone.outcome import Retrying, Succeeded
from flowstone.reconcile import reconcile
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.store import cancellation, repairs, runs, steps
from flowstone.store.ledger import Ledger
from flowstone.store.steps import Claim, Refused
from tests.store.runs_by_hand import FAILURE, HandRun, query
from tests.store.test_concurrency import at_once
from tests.store.test_dispatch import request
from tests.store.test_repairs import age, runs_to_wake

CHORD = {1: (), 2: (1,), 3: (), 4: (2, 3)}
LONG = 3000.0
PATIENCE = 30
ACTIONS = "SELECT action, step_id FROM flowstone.audit WHERE actor = 'reconciler' ORDER BY id"


def park(run: HandRun, claim: Claim, delay: float = 100) -> bool:
    with run.ledger.begin() as conn:
        return steps.retry(conn, claim, FAILURE, delay, park=True)


def due(ledger: Ledger) -> list[int]:
    with ledger.begin() as conn:
        return [step.step_id for step in repairs.due_retries(conn)]


def test_a_parked_step_leaves_its_canvas_and_frees_what_waits_in_it(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    old, first = run.canvas[3], run.claim(1)
    assert park(run, run.claim(3))
    assert run.states() == {1: "running", 2: "pending", 3: "retrying", 4: "pending"}
    row = run.rows()[3]
    assert (row["canvas"], row["token"], row["error"]["message"]) == (None, None, "bad value")
    assert query(ledger, "SELECT number, outcome FROM flowstone.attempts ORDER BY step_id") == [
        (1, None),
        (1, "retrying"),
    ]
    with ledger.begin() as conn:
        late = steps.claim(conn, run.ids[3], old, worker="w", lease=60)
    assert late == Refused(None)
    # The rest of the header goes on, and its join waits in the ledger.
    assert run.commit(first)
    assert [run.numbers(c) for c in run.dispatch()] == [(2,)]
    assert run.commit(run.claim(2))
    assert run.dispatch() == []


def test_a_stale_attempt_parks_nothing(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    stale = run.claim(3, lease=-1)
    with ledger.begin() as conn:
        repairs.expired_leases(conn)
    run.dispatch()
    before = run.rows()
    assert park(run, stale) is False
    assert run.rows() == before


def test_a_parked_step_takes_no_place_in_the_window(ledger: Ledger) -> None:
    run = HandRun(ledger, dict.fromkeys(range(1, 6), ()), max_in_flight=2)
    run.dispatch()
    one, two = run.claim(1), run.claim(2)
    assert run.dispatch() == []
    park(run, one)
    assert run.needs_coordinator()
    assert [run.numbers(c) for c in run.dispatch()] == [(3,)]
    park(run, two)
    assert [run.numbers(c) for c in run.dispatch()] == [(4,)]


def test_a_run_that_only_waits_for_a_parked_step_stays_open_and_wakes_nobody(
    ledger: Ledger,
) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    run.dispatch()
    park(run, run.claim(1))
    assert run.dispatch() == []
    assert not run.needs_coordinator()
    age(ledger, 50)
    with ledger.begin() as conn:
        assert runs.close_if_done(conn, run.id, actor="test") is None
        assert runs_to_wake(conn, 5) == []


def test_a_parked_step_is_ready_again_when_it_is_due_and_not_before(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    first = run.claim(1)
    park(run, run.claim(3), delay=100)
    run.commit(first)
    run.do(2)
    age(ledger, 99)
    assert due(ledger) == []
    age(ledger, 2)
    assert due(ledger) == [run.ids[3]]
    assert due(ledger) == []
    row = run.rows()[3]
    assert (row["state"], row["retry_at"], row["canvas"]) == ("pending", None, None)
    assert query(ledger, ACTIONS) == [("step.retry_due", run.ids[3])]
    assert [run.numbers(c) for c in run.dispatch()] == [(3, 4)]
    again = run.claim(3)
    assert again.attempt == 2
    assert run.commit(again)
    assert run.commit(run.claim(4))


def test_no_other_rule_touches_a_parked_step(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: ()})
    run.dispatch()
    park(run, run.claim(1))
    run.retry(run.claim(2), delay=100)
    age(ledger, 10_000)
    with ledger.begin() as conn:
        assert repairs.expired_leases(conn) == []
        assert repairs.stranded(conn, 300) == []
        assert [step.step_id for step in repairs.overdue_retries(conn, 300)] == [run.ids[2]]
    # And this one leaves alone what a message carries.
    assert due(ledger) == [run.ids[1]]


def test_a_pass_of_the_reconciler_wakes_the_runs_of_what_is_due(
    make_runtime: Any, ledger: Ledger
) -> None:
    runtime = make_runtime(build_registry([]))
    run = HandRun(ledger, {1: (), 2: ()})
    run.dispatch()
    park(run, run.claim(1), delay=0)
    park(run, run.claim(2), delay=1000)
    woken: list[UUID] = []
    # The run is younger than those that are woken because nobody else has done so.
    counts = reconcile(runtime, lambda run_id, _: woken.append(run_id))
    assert (counts["retry_due"], counts["retry_overdue"], counts["run_woken"]) == (1, 0, 1)
    assert woken == [run.id]
    assert run.states() == {1: "pending", 2: "retrying"}


def test_two_passes_at_once_let_each_step_go_on_once(ledger: Ledger) -> None:
    run = HandRun(ledger, dict.fromkeys(range(1, 21), ()))
    run.dispatch()
    for number in run.ids:
        park(run, run.claim(number), delay=0)
    passes = [partial(due, ledger)] * 3
    found = [step for ids in at_once(*passes) if isinstance(ids, list) for step in ids]
    assert sorted(found) == sorted(run.ids.values())
    assert len(query(ledger, ACTIONS)) == 20


def test_a_cancelled_run_takes_its_parked_steps_with_it(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    park(run, run.claim(1), delay=0)
    with ledger.begin() as conn:
        done = cancellation.request(conn, run.id, grace=30, reason=None, actor="me")
    assert (done.state, done.cancelled) == ("cancelled", 4)
    assert due(ledger) == []


def test_parking_and_what_else_happens_in_a_chord_do_not_deadlock(ledger: Ledger) -> None:
    for other in (HandRun.commit, HandRun.fail, park):
        for _ in range(5):
            run = HandRun(ledger, CHORD)
            run.dispatch()
            one, three = run.claim(1), run.claim(3)
            assert at_once(partial(park, run, three), partial(other, run, one)) == [True, True]
            assert run.states()[3] == "retrying"
            assert run.states()[4] == ("upstream_failed" if other is HandRun.fail else "pending")
            with ledger.begin() as conn:
                cancellation.request(conn, run.id, grace=0, reason=None, actor="test")
                cancellation.overdue(conn, actor="test")


def shaky_runtime(make_runtime: Any) -> Runtime:
    @asset(retry=Retry(max_attempts=3, base=50, factor=2))
    def shaky(context: Context) -> int:
        if context.attempt < 3:
            raise ConnectionError("away")
        return context.attempt

    made: Runtime = make_runtime(build_registry([shaky]), park_after=100.0)
    return made


def test_a_delay_beyond_the_setting_is_parked_and_a_shorter_one_is_not(make_runtime: Any) -> None:
    here = shaky_runtime(make_runtime)
    run_id = request(here, "shaky")
    planning.plan_run(here, run_id)
    first_canvas = coordinator.take_ready(here, run_id)
    first = attempt(here, first_canvas)
    assert isinstance(first.outcome, Retrying)
    assert (first.outcome.delay, first.outcome.parked) == (100, False)
    age(here.ledger, 100)
    assert due(here.ledger) == []
    # Its message comes again, in the same canvas.
    second = attempt(here, first_canvas)
    assert isinstance(second.outcome, Retrying)
    assert (second.outcome.delay, second.outcome.parked) == (200, True)
    age(here.ledger, 200)
    assert due(here.ledger) == [first.claim.step_id]
    third = attempt(here, coordinator.take_ready(here, run_id))
    assert isinstance(third.outcome, Succeeded)
    assert third.claim.canvas != first.claim.canvas
    with here.ledger.begin() as conn:
        assert runs.close_if_done(conn, run_id, actor="test") == "succeeded"


def attempt(here: Runtime, taken: Taken) -> Ended:
    """Do what the task does with the message of the one step."""
    (step,) = taken.steps
    park_after = here.settings.park_after
    ended = execute(here, step, taken.steps[step].canvas, worker="w", park_after=park_after)
    assert isinstance(ended, Ended)
    return ended


def test_a_run_in_this_process_waits_here_whatever_the_setting(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shaky_runtime(make_runtime)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        age(here.ledger, seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(inline, "POLL_SECONDS", 50)
    assert materialize_sync("shaky").result() == 3
    assert waited == [50] * 6
    assert query(here.ledger, ACTIONS) == []


def in_a_thread(name: str) -> tuple[threading.Thread, list[object]]:
    """Drive a run in this process; return what ends it up with as well."""
    ends: list[object] = []

    def drive() -> None:
        try:
            ends.append(materialize_sync(name).result())
        except RunFailed as error:
            ends.append(error.message)

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    return thread, ends


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


STATES = "SELECT state, canvas IS NULL FROM flowstone.steps"


def test_a_run_in_this_process_gives_its_slots_back_until_its_retry_is_due(
    make_runtime: Any,
) -> None:
    @asset(pool="warehouse", retry=Retry(base=LONG, factor=1))
    def shaky(context: Context) -> int:
        if context.attempt < 2:
            raise ConnectionError("away")
        return context.attempt

    @asset(pool="warehouse")
    def other() -> int:
        return 1

    here = make_runtime(build_registry([shaky, other]), pools={"warehouse": 1})
    thread, ends = in_a_thread("shaky")
    until(lambda: query(here.ledger, STATES) == [("retrying", True)])
    assert materialize_sync("other").result() == 1
    age(here.ledger, LONG)
    # By itself: no reconciler looks, nor does its own pass of the rules come so soon.
    thread.join(PATIENCE)
    assert ends == [2]


@pytest.mark.parametrize("takes", [{}, {"max_running": 1}])
def test_a_run_in_this_process_that_waits_for_a_retry_notices_its_cancellation(
    make_runtime: Any, takes: dict[str, Any]
) -> None:
    @asset(retry=Retry(base=LONG, factor=1), **takes)
    def shaky() -> int:
        raise ConnectionError("away")

    here = make_runtime(build_registry([shaky]))
    thread, ends = in_a_thread("shaky")
    until(lambda: query(here.ledger, STATES) == [("retrying", bool(takes))])
    (handle,) = runs_list()
    run_of(handle.id).cancel()
    thread.join(PATIENCE)
    assert "cancelled" in str(ends)


def test_whoever_has_joined_a_parked_step_takes_its_turn_when_that_is_due(
    make_runtime: Any, ledger: Ledger
) -> None:
    runtime = make_runtime(build_registry([]))
    run, other = HandRun(ledger, {1: ()}), HandRun(ledger, {1: ()})
    run.dispatch()
    park(run, run.claim(1), delay=100)
    other.dispatch()
    assert (run.states(), other.states()) == ({1: "retrying"}, {1: "joined"})
    woken: list[UUID] = []
    reconcile(runtime, lambda run_id, _: woken.append(run_id))
    assert (woken, other.states()) == ([], {1: "joined"})
    age(ledger, 101)
    reconcile(runtime, lambda run_id, _: woken.append(run_id))
    assert set(woken) == {run.id, other.id}
    assert (run.states(), other.states()) == ({1: "pending"}, {1: "pending"})
    other.do(1)
    assert other.states() == {1: "succeeded"}
