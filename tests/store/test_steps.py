"""Claims and commits: each attempt holds a token, and a stale one writes nothing."""

from __future__ import annotations

from uuid import uuid4

import pytest

from flowstone.expand import Chain
from flowstone.outcome import Succeeded
from flowstone.states import StepState
from flowstone.store import steps
from flowstone.store.ledger import Ledger
from flowstone.store.steps import Claim, Refused
from tests.store.runs_by_hand import MADE_OF, HandRun, count, output, query, run_sql

ABC = {1: (), 2: (1,), 3: (2,)}
V = {1: (), 2: (), 3: (1, 2)}


def test_of_two_connections_that_claim_a_step_one_wins(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    run.dispatch()
    with ledger.begin() as one:
        first = steps.claim(one, run.ids[1], run.canvas[1], worker="a", lease=60)
    with ledger.begin() as other:
        second = steps.claim(other, run.ids[1], run.canvas[1], worker="b", lease=60)
    assert isinstance(first, Claim)
    assert (first.attempt, first.worker, first.name) == (1, "a", "a1")
    assert second == Refused(StepState.RUNNING)
    assert query(ledger, "SELECT number, worker, outcome FROM flowstone.attempts") == [
        (1, "a", None)
    ]


def test_a_step_is_not_claimed_before_it_is_dispatched_nor_before_what_it_reads(
    ledger: Ledger,
) -> None:
    run = HandRun(ledger, ABC)
    with ledger.begin() as conn:
        assert steps.claim(conn, run.ids[1], uuid4(), worker="w", lease=60) == Refused(None)
    run.dispatch()
    with ledger.begin() as conn:
        early = steps.claim(conn, run.ids[2], run.canvas[2], worker="w", lease=60)
        unknown = steps.claim(conn, 10**12, run.canvas[2], worker="w", lease=60)
        elsewhere = steps.claim(conn, run.ids[1], uuid4(), worker="w", lease=60)
    assert early == Refused(StepState.QUEUED)
    assert unknown == elsewhere == Refused(None)
    assert count(ledger, "attempts") == 0


def test_a_commit_writes_output_lineage_pointer_counters_and_audit(ledger: Ledger) -> None:
    run = HandRun(ledger, V)
    run.dispatch()
    hashes = {1: "1" * 64, 2: "2" * 64, 3: "3" * 64}
    assert run.commit(run.claim(1), hashes[1]) is True
    assert run.rows()[3]["open_deps"] == 1
    assert run.commit(run.claim(2), hashes[2]) is True
    assert run.rows()[3]["open_deps"] == 0
    assert run.commit(run.claim(3), hashes[3]) is True
    assert set(run.states().values()) == {"succeeded"}
    assert all(row["finished_at"] and row["token"] is None for row in run.rows().values())
    lineage = query(
        ledger,
        "SELECT l.upstream_step_id, l.upstream_sha256, o.step_id FROM flowstone.lineage l "
        "JOIN flowstone.outputs o ON o.id = l.upstream_output_id ORDER BY 1",
    )
    assert lineage == [(run.ids[n], hashes[n], run.ids[n]) for n in (1, 2)]
    latest = query(
        ledger,
        "SELECT asset, sha256 FROM flowstone.latest l JOIN flowstone.outputs o "
        "ON o.id = l.output_id ORDER BY 1",
    )
    assert latest == [(f"a{n}", hashes[n]) for n in hashes]
    audit = query(
        ledger,
        "SELECT actor, step_id, details FROM flowstone.audit "
        "WHERE action = 'step.succeeded' ORDER BY id",
    )
    assert audit == [
        ("w", run.ids[n], {"asset": f"a{n}", "partition": "-", "attempt": 1}) for n in (1, 2, 3)
    ]
    assert query(ledger, "SELECT DISTINCT outcome FROM flowstone.attempts") == [("succeeded",)]


def test_a_stale_token_writes_nothing_at_all(ledger: Ledger) -> None:
    run = HandRun(ledger, ABC)
    run.dispatch()
    stale = run.claim(1)
    with ledger.begin() as conn:
        run_sql(
            conn, "UPDATE flowstone.steps SET token = :t WHERE id = :i", t=uuid4(), i=run.ids[1]
        )
    tables = ("outputs", "lineage", "latest", "audit", "attempts")
    before = {table: query(ledger, f"SELECT * FROM flowstone.{table}") for table in tables}
    rows = run.rows()
    assert run.commit(stale) is False
    assert run.fail(stale) is False
    assert run.retry(stale) is False
    assert {table: query(ledger, f"SELECT * FROM flowstone.{table}") for table in tables} == before
    assert run.rows() == rows


def test_a_step_commits_once(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    run.dispatch()
    claim = run.claim(1)
    assert run.commit(claim) is True
    assert run.commit(claim) is False
    assert run.fail(claim) is False
    assert count(ledger, "outputs") == 1


def test_the_middle_of_a_chain_wakes_nobody_and_its_end_does(ledger: Ledger) -> None:
    run = HandRun(ledger, ABC)
    run.dispatch()
    needed = []
    for number in (1, 2, 3):
        run.commit(run.claim(number))
        needed.append(run.needs_coordinator())
    assert needed == [False, False, True]


def test_a_step_that_becomes_ready_and_is_carried_by_nobody_needs_the_coordinator(
    ledger: Ledger,
) -> None:
    run = HandRun(ledger, {1: (), 2: (), 3: (1, 2)}, max_in_flight=2)
    assert len(run.dispatch()) == 2
    run.do(1)
    assert run.states()[3] == "pending"
    assert not run.needs_coordinator()
    run.commit(run.claim(2))
    assert run.needs_coordinator()


def test_a_slot_that_a_chord_leaves_free_is_filled_when_the_broker_runs_low(
    ledger: Ledger,
) -> None:
    # The chord of 1, 2 and 3 takes the whole window, so 4 has to stay in the ledger.
    run = HandRun(ledger, {1: (), 2: (), 3: (1, 2), 4: ()}, max_in_flight=3)
    run.dispatch()
    first = run.claim(1)
    run.claim(2)
    run.commit(first)
    assert run.needs_coordinator()
    assert run.dispatch() == [Chain((run.ids[4],))]


def test_a_slot_that_comes_free_wakes_nobody_while_the_broker_has_enough(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (), 3: (1, 2), 4: ()}, max_in_flight=3)
    run.dispatch()
    run.commit(run.claim(1))
    assert not run.needs_coordinator()


def test_the_last_step_of_a_broken_canvas_needs_the_coordinator(ledger: Ledger) -> None:
    # Else nobody would close the run: the failure came while this step still ran.
    run = HandRun(ledger, V)
    run.dispatch()
    failing, working = run.claim(1), run.claim(2)
    assert run.fail(failing)
    assert not run.needs_coordinator()
    run.commit(working)
    assert run.needs_coordinator()


def test_a_failure_takes_down_all_that_depends_on_it_and_nothing_else(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (), 3: (1,), 4: (3,), 5: (2,), 6: (4, 5), 7: (5,)})
    run.dispatch()
    run.fail(run.claim(1))
    states = run.states()
    assert states[1] == "failed"
    assert {n for n, state in states.items() if state == "upstream_failed"} == {3, 4, 6}
    reason = {"type": "upstream_failed", "message": "a1 failed: ValueError: bad value",
              "step": "a1", "step_id": run.ids[1]}  # fmt: skip
    assert [run.rows()[n]["error"] for n in (3, 4, 6)] == [
        reason | {"via": run.ids[via]} for via in (1, 3, 4)
    ]
    assert all(run.rows()[n]["finished_at"] is not None for n in (1, 3, 4, 6))
    run.do(2, 5, 7)
    assert run.states()[7] == "succeeded"


def test_a_failure_is_recorded_once_an_attempt(ledger: Ledger) -> None:
    run = HandRun(ledger, ABC)
    run.dispatch()
    run.fail(run.claim(1))
    assert query(
        ledger,
        "SELECT number, outcome, error_type, error_message, traceback FROM flowstone.attempts",
    ) == [(1, "failed", "ValueError", "bad value", "the trace")]
    details = {"type": "ValueError", "message": "bad value", "retryable": False}
    audit = "SELECT details FROM flowstone.audit WHERE action = 'step.failed'"
    step = {"asset": "a1", "partition": "-", "attempt": 1}
    assert query(ledger, audit) == [(step | details,)]


def test_a_failure_lets_go_of_the_members_of_its_canvas_that_can_still_run(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: (), 4: (2, 3)})
    assert [run.numbers(c) for c in run.dispatch()] == [(1, 2, 3, 4)]
    old = run.canvas[2]
    first = run.claim(1)
    run.fail(run.claim(3))
    assert run.states() == {1: "running", 2: "pending", 3: "failed", 4: "upstream_failed"}
    assert run.commit(first) is True
    assert [run.numbers(c) for c in run.dispatch()] == [(2,)]
    with ledger.begin() as conn:
        late = steps.claim(conn, run.ids[2], old, worker="w", lease=60)
    assert late == Refused(None)
    assert run.commit(run.claim(2)) is True


def test_a_retry_waits_in_the_ledger_and_is_not_claimed_early(ledger: Ledger) -> None:
    run = HandRun(ledger, ABC)
    run.dispatch()
    assert run.retry(run.claim(1), delay=100)
    row = run.rows()[1]
    assert (row["state"], row["error"]["message"]) == ("retrying", "bad value")
    with ledger.begin() as conn:
        early = steps.claim(conn, run.ids[1], run.canvas[1], worker="w", lease=60)
        seconds = conn.exec_driver_sql(
            "SELECT extract(epoch FROM retry_at - now()) FROM flowstone.steps WHERE attempt = 1"
        ).scalar_one()
        run_sql(conn, "UPDATE flowstone.steps SET retry_at = now() WHERE id = :i", i=run.ids[1])
    assert early == Refused(StepState.RETRYING)
    assert 99 < seconds <= 100
    again = run.claim(1)
    assert again.attempt == 2
    assert (run.rows()[1]["error"], run.rows()[1]["retry_at"]) == (None, None)
    assert run.commit(again) is True
    assert query(ledger, "SELECT number, outcome FROM flowstone.attempts ORDER BY 1") == [
        (1, "retrying"),
        (2, "succeeded"),
    ]


def test_leases_are_renewed_for_running_attempts_only(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: ()})
    run.dispatch()
    ended, going = run.claim(1, lease=1), run.claim(2, lease=1)
    run.commit(ended)
    with ledger.begin() as conn:
        going_on = steps.renew(conn, [ended.token, going.token, uuid4()], lease=1000)
    assert going_on == {going.token}
    left = query(
        ledger,
        "SELECT lease_until > now() + interval '900 s' FROM flowstone.steps ORDER BY id",
    )
    assert left == [(None,), (True,)]


def test_latest_is_the_last_commit_and_not_that_of_the_last_run(ledger: Ledger) -> None:
    early, late = HandRun(ledger, {1: ()}), HandRun(ledger, {1: ()})
    for run, sha in ((late, "b" * 64), (early, "a" * 64)):
        run.dispatch()
        run.commit(run.claim(1), sha)
    found = query(
        ledger,
        "SELECT o.sha256 FROM flowstone.latest l JOIN flowstone.outputs o ON o.id = l.output_id",
    )
    assert found == [("a" * 64,)]


def test_a_pinned_input_is_read_and_recorded_as_it_was_when_planned(ledger: Ledger) -> None:
    before = HandRun(ledger, {1: ()})
    before.do(1)
    run = HandRun(ledger, {2: (1,)}, pinned={("a1", "-"): before.ids[1]})
    newer = HandRun(ledger, {1: ()})
    newer.do(1)
    assert run.rows()[2]["open_deps"] == 0
    run.do(2)
    assert query(ledger, "SELECT step_id, upstream_step_id FROM flowstone.lineage") == [
        (run.ids[2], before.ids[1])
    ]


@pytest.mark.parametrize("fails", [True, False])
def test_what_a_pinned_step_does_later_does_not_touch_its_readers(
    ledger: Ledger, fails: bool
) -> None:
    before = HandRun(ledger, {1: ()})
    run = HandRun(ledger, {2: (1,)}, pinned={("a1", "-"): before.ids[1]})
    before.dispatch()
    claim = before.claim(1)
    if fails:
        before.fail(claim)
    else:
        with ledger.begin() as conn:
            assert steps.commit(conn, claim, Succeeded(output(), MADE_OF)) is True
    assert (run.states()[2], run.rows()[2]["open_deps"]) == ("pending", 0)
