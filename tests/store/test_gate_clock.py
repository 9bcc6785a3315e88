"""Time passes at gates: reminders, escalations, ends; each once, whoever looks, and in any race."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import UUID

import pytest
from sqlalchemy import text

from flowstone import reconcile as reconciler
from flowstone.approval import Ask, Escalation, OnTimeout
from flowstone.errors import AlreadyDecided
from flowstone.quorum import Vote
from flowstone.registry import build_registry
from flowstone.signalling import OnSignalTimeout, SignalAsk
from flowstone.states import GateState
from flowstone.store import decisions, gate_clock, gates
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.gates_by_hand import ask_for, row, shift
from tests.store.runs_by_hand import HandRun, query
from tests.worker.waiting import wait_until

CHAIN = Ask(
    approvers=["ann", "role:staff"],
    quorum=2,
    timeout=100,
    on_timeout="escalate",
    escalation=[
        Escalation(approvers=["bob", "eve"], timeout=200, on_timeout="escalate"),
        Escalation(approvers=["role:heads"], timeout=300, on_timeout="escalate"),
        Escalation(approvers=["boss"], timeout=400, on_timeout="fail"),
    ],
    remind_every=80,
)


def look(ledger: Ledger) -> int:
    """Look once, and return how much was due."""
    return ledger.in_turn(gate_clock.look).count


def told(ledger: Ledger, gate: int) -> list[str]:
    """Return what people are told, in order."""
    said = "SELECT event FROM flowstone.notifications WHERE gate_id = :gate ORDER BY id"
    return [event for (event,) in query(ledger, said, gate=gate)]


def recorded(ledger: Ledger, kind: str = "approval") -> Sequence[tuple[str, str, str | None]]:
    """Return who has done what to gates of a kind, and why, in order."""
    said = "SELECT action, actor, reason FROM flowstone.audit WHERE action LIKE :kind ORDER BY id"
    return [tuple(found) for found in query(ledger, said, kind=f"{kind}.%")]


def state_of_step(ledger: Ledger, gate: int) -> str:
    said = "SELECT state FROM flowstone.steps WHERE id = :id"
    found: str = query(ledger, said, id=row(ledger, gate).step_id)[0][0]
    return found


@pytest.mark.parametrize(
    ("on_timeout", "state", "chosen"),
    [
        ("approve", "approved", "today"),
        ("reject", "rejected", None),
        ("fail", "expired", None),
        (None, "rejected", None),
    ],
)
def test_an_approval_ends_in_time_as_it_says(
    ledger: Ledger, on_timeout: OnTimeout | None, state: str, chosen: str | None
) -> None:
    ask = Ask(options=["today", "later"], timeout=60, on_timeout=on_timeout)
    gate = ask_for(ledger, ask)
    shift(ledger, gate, 59)
    assert look(ledger) == 0
    shift(ledger, gate, 2)
    assert (look(ledger), look(ledger)) == (1, 0)

    ended = row(ledger, gate)
    assert (ended.state, ended.closed_by, ended.chosen) == (state, "timeout", chosen)
    assert ended.reason == gate_clock.NO_DECISION
    assert told(ledger, gate) == ["requested", "expired"]
    assert recorded(ledger)[1:] == [(f"approval.{state}", "timeout", gate_clock.NO_DECISION)]
    # Whoever carries on what was decided does so here, too.
    assert state_of_step(ledger, gate) == "waiting_approval"


def test_what_has_ended_goes_on_in_the_same_pass(
    ledger: Ledger, make_runtime: RuntimeFactory
) -> None:
    here = make_runtime(build_registry([]))
    gate = ask_for(ledger, Ask(timeout=60))
    shift(ledger, gate, 61)
    woken: list[UUID] = []
    done = reconciler.reconcile(here, lambda run_id, _: woken.append(run_id))
    assert (done["gate_due"], done["continuation_lost"]) == (1, 1)
    assert state_of_step(ledger, gate) == "pending"
    assert len(woken) == 1


@pytest.mark.parametrize("on_timeout", ["fail", "continue"])
def test_a_signal_ends_in_time(ledger: Ledger, on_timeout: OnSignalTimeout) -> None:
    ask = SignalAsk(name="job", token="a" * 20, timeout=60, on_timeout=on_timeout)
    gate = ask_for(ledger, ask)
    shift(ledger, gate, 61)
    assert (look(ledger), look(ledger)) == (1, 0)
    ended = row(ledger, gate)
    assert (ended.state, ended.closed_by, ended.on_timeout) == ("expired", "timeout", on_timeout)
    assert recorded(ledger, "signal")[1:] == [("signal.expired", "timeout", gate_clock.NO_SIGNAL)]
    assert told(ledger, gate) == []


def test_an_escalation_goes_through_all_levels_to_its_end(ledger: Ledger) -> None:
    gate = ask_for(ledger, CHAIN)
    levels = [(1, ["bob", "eve"], 2, 200), (2, ["role:heads"], 2, 300), (3, ["boss"], 1, 400)]
    for level, approvers, quorum, timeout in levels:
        # Nothing ran for a week: each has its whole time all the same.
        shift(ledger, gate, 7 * 86400)
        assert (look(ledger), look(ledger)) == (1, 0)
        asked = row(ledger, gate)
        assert (asked.level, asked.approvers, asked.quorum) == (level, approvers, quorum)
        assert asked.state == "open"
        shift(ledger, gate, timeout - 1)
        # Now it is the turn of a reminder, and not of the end.
        assert (look(ledger), look(ledger)) == (1, 0)
        assert row(ledger, gate).level == level
    shift(ledger, gate, 7 * 86400)
    assert (look(ledger), look(ledger)) == (1, 0)

    assert row(ledger, gate).state == "expired"
    assert told(ledger, gate) == ["requested", *["escalated", "reminder"] * 3, "expired"]
    assert [action for action, *_ in recorded(ledger)] == [
        "approval.requested",
        *["approval.escalated"] * 3,
        "approval.expired",
    ]
    changed = "SELECT before, after FROM flowstone.audit WHERE action = 'approval.escalated'"
    assert [tuple(found) for found in query(ledger, f"{changed} ORDER BY id LIMIT 1")] == [
        (
            {"level": 0, "approvers": ["ann", "role:staff"], "quorum": 2},
            {"level": 1, "approvers": ["bob", "eve"], "quorum": 2},
        )
    ]


def test_where_all_who_are_asked_next_have_approved_it_is_approved(ledger: Ledger) -> None:
    next_ = Escalation(approvers=["Ann@office"])
    ask = Ask(
        options=["all", "half"],
        approvers=["ann", "bob"],
        quorum=2,
        timeout=60,
        on_timeout="escalate",
        escalation=[next_],
    )
    gate = ask_for(ledger, ask)
    vote = Vote("ann", True, "test", option="half")
    ledger.in_turn(lambda conn: decisions.decide(conn, gate, vote, roles={}))
    shift(ledger, gate, 61)
    assert (look(ledger), look(ledger)) == (1, 0)
    ended = row(ledger, gate)
    assert (ended.state, ended.chosen, ended.level) == ("approved", "half", 0)
    assert (ended.closed_by, ended.reason) == ("timeout", gate_clock.ENOUGH)
    assert recorded(ledger)[-1] == ("approval.approved", "timeout", gate_clock.ENOUGH)
    assert told(ledger, gate) == ["requested", "expired"]


def test_reminders_come_as_often_as_said_and_those_that_were_missed_once(ledger: Ledger) -> None:
    gate = ask_for(ledger, Ask(remind_every=60))
    silent = ask_for(ledger)
    for passed, due in ((40, 0), (25, 1), (30, 0), (35, 1), (100_000, 1), (0, 0)):
        for asked in (gate, silent):
            shift(ledger, asked, passed)
        assert look(ledger) == due
    assert told(ledger, gate) == ["requested", *["reminder"] * 3]
    # Who has set no time waits for ever, and a reminder is nothing that changes.
    assert told(ledger, silent) == ["requested"]
    assert [action for action, *_ in recorded(ledger)] == ["approval.requested"] * 2


def test_many_who_look_at_once_do_it_once(ledger: Ledger) -> None:
    asked = [
        *(ask_for(ledger, Ask(timeout=60)) for _ in range(4)),
        *(ask_for(ledger, CHAIN) for _ in range(4)),
        *(ask_for(ledger, Ask(remind_every=60)) for _ in range(4)),
    ]
    for gate in asked:
        shift(ledger, gate, 101)
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: look(ledger), range(8)))
    assert sum(counts) == len(asked)
    events = ["expired"] * 4 + ["escalated"] * 4 + ["reminder"] * 4
    assert [told(ledger, gate)[1:] for gate in asked] == [[event] for event in events]


def test_what_is_to_be_approved_in_time_is_void_where_an_input_has_changed(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)}, name="read")
    run.do(1)
    run.dispatch()
    gate = ask_for(ledger, Ask(timeout=60, on_timeout="approve"), run=run, step=2)
    again = HandRun(ledger, {1: ()}, name="read")
    again.do(1)
    shift(ledger, gate, 61)
    looked = ledger.in_turn(gate_clock.look)
    assert looked == gate_clock.Looked(1, frozenset({run.id}))
    assert row(ledger, gate).state == "void"
    assert run.states()[2] == "pending"
    assert told(ledger, gate) == ["requested", "void"]


def decide(ledger: Ledger, gate: int) -> bool:
    """Approve, as whoever decides does; return whether it was still open."""
    try:
        approve(ledger, gate)
    except AlreadyDecided:
        return False
    return True


def approve(ledger: Ledger, gate: int) -> None:
    vote = Vote("ann", True, "test")
    ledger.in_turn(lambda conn: decisions.decide(conn, gate, vote, roles={}))


def test_who_is_just_about_to_decide_comes_first(ledger: Ledger) -> None:
    gate = ask_for(ledger, Ask(timeout=60))
    shift(ledger, gate, 61)
    with ledger.begin() as conn:
        asked = gates.lock(conn, gate)
        assert asked is not None
        # It does not wait for them either.
        assert look(ledger) == 0
        gates.close(conn, asked, GateState.APPROVED, by="ann")
        assert look(ledger) == 0
    assert look(ledger) == 0
    assert row(ledger, gate).closed_by == "ann"


def test_who_decides_while_time_is_up_comes_too_late(ledger: Ledger) -> None:
    gate = ask_for(ledger, Ask(timeout=60))
    shift(ledger, gate, 61)
    with ThreadPoolExecutor(1) as pool:
        with ledger.begin() as conn:
            assert gate_clock.look(conn).count == 1
            late = pool.submit(decide, ledger, gate)
            _wait_for_a_lock(ledger)
        assert late.result(30) is False
    with pytest.raises(AlreadyDecided, match="nobody had decided in time"):
        approve(ledger, gate)
    assert row(ledger, gate).closed_by == "timeout"


def _wait_for_a_lock(ledger: Ledger) -> None:
    waiting = (
        "SELECT FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    wait_until(lambda: query(ledger, waiting), "the decision waits")


def test_of_a_decision_and_a_timeout_at_once_one_wins(ledger: Ledger) -> None:
    asked = [ask_for(ledger, Ask(timeout=60)) for _ in range(12)]
    for gate in asked:
        shift(ledger, gate, 61)
    start = Barrier(2)

    def decide_all() -> list[int]:
        start.wait(30)
        return [gate for gate in asked if decide(ledger, gate)]

    def look_often() -> int:
        start.wait(30)
        return sum(look(ledger) for _ in range(12))

    with ThreadPoolExecutor(2) as pool:
        decided, timed_out = pool.submit(decide_all), pool.submit(look_often)
        by_ann = decided.result(60)
        assert len(by_ann) + timed_out.result(60) == len(asked)
    for gate in asked:
        by = "ann" if gate in by_ann else "timeout"
        assert row(ledger, gate).closed_by == by
        assert told(ledger, gate) == ["requested", "decided" if by == "ann" else "expired"]


def test_what_is_due_is_found_by_an_index(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        plan = conn.scalars(text(f"EXPLAIN {gate_clock._DUE}"), {"batch": 500}).all()
    assert any("ix_gates_due" in line for line in plan), plan
    assert not any("Seq Scan" in line for line in plan), plan
