"""Of all who decide about an approval one does, if they may, and everybody else is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel

import flowstone
from flowstone import approvals_list, approve, get_approval, outbox, reject
from flowstone.approval import Ask
from flowstone.asset import asset
from flowstone.errors import (
    AlreadyDecided,
    ApprovalVoid,
    BadConfig,
    BadDecision,
    BadQuery,
    FlowStoneError,
    NotAllowed,
    UnknownApproval,
)
from flowstone.io import Place
from flowstone.io.edits import edited_value
from flowstone.outcome import StoredOutput
from flowstone.registry import build_registry
from flowstone.signalling import SignalAsk
from flowstone.states import GateState
from flowstone.store import approvals as store
from flowstone.store import gates
from flowstone.store.ledger import Ledger
from tests.store.gates_by_hand import ask_for, row, shift
from tests.store.runs_by_hand import HandRun, query
from tests.store.test_concurrency import at_once

ROOT = Path(__file__).resolve().parents[2]


class Report(BaseModel):
    total: int
    note: str = ""


@asset(name="report0")
def report() -> Report:
    return Report(total=10)


@asset(name="other0")
def other() -> Report:
    return Report(total=10)


@pytest.fixture
def here(make_runtime: Any) -> Any:
    return make_runtime(build_registry([report, other]), roles={"finance": ("carl", "dora")})


@pytest.fixture
def carried(here: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The approvals whose steps were sent on."""
    sent: list[int] = []
    monkeypatch.setattr(outbox, "carry_on", lambda _, asked: sent.append(asked.gate.id))
    return sent


def audited(ledger: Ledger, gate: int) -> list[Any]:
    return list(
        query(
            ledger,
            "SELECT action, actor, reason, details - 'asset' - 'partition' - 'gate' AS details "
            "FROM flowstone.audit WHERE details->'gate' = to_jsonb(CAST(:gate AS bigint)) "
            "AND action LIKE 'approval.%' AND action <> 'approval.requested' ORDER BY id",
            gate=gate,
        )
    )


def test_an_approval_is_recorded_with_who_and_why_and_its_step_is_carried_on(
    here: Any, carried: list[int]
) -> None:
    gate = ask_for(here.ledger, Ask(message="May it?", options=["full", "sample"]))
    stands = approve(f" {gate} ", by="ann@laptop", reason="looks fine", option="full")
    assert (stands.id, stands.state, stands.tally) == (gate, GateState.APPROVED, "1 of 1")
    assert (stands.decided_by, stands.reason, stands.option) == ("ann@laptop", "looks fine", "full")
    assert (stands.channel, stands.is_edited) == ("python", False)
    assert carried == [gate]
    (told,) = audited(here.ledger, gate)
    details = {"approvals": "1 of 1", "option": "full", "channel": "python"}
    assert told == ("approval.approved", "ann@laptop", "looks fine", details)
    assert query(
        here.ledger, "SELECT event FROM flowstone.notifications WHERE gate_id = :g", g=gate
    )
    # The step itself waits for its continuation.
    assert query(here.ledger, "SELECT state FROM flowstone.steps") == [("waiting_approval",)]


def test_a_late_decision_is_told_of_the_first(here: Any, carried: list[int]) -> None:
    gate = ask_for(here.ledger, Ask(message="May it?"))
    reject(gate, by="ann", reason="too few rows", channel="cli")
    for again in (partial(approve, gate, by="bob"), partial(reject, gate, by="ann")):
        with pytest.raises(AlreadyDecided) as caught:
            again()
        assert re.fullmatch(
            rf"approval {gate} is decided: ann has rejected at \d{{4}}-\d\d-\d\d [\d:]+ \S+: too "
            "few rows",
            caught.value.message,
        )
    assert carried == [gate]
    assert [told.action for told in audited(here.ledger, gate)] == ["approval.rejected"]


def test_what_is_no_open_approval_is_told(here: Any) -> None:
    for unknown in (10**6, 10**30, 0):
        with pytest.raises(UnknownApproval, match=f"there is no approval {unknown};"):
            approve(unknown)
    for odd in ("twelve", "-1", "", True):
        with pytest.raises(UnknownApproval, match="is not the id of an approval"):
            approve(odd)
    signal = ask_for(here.ledger, SignalAsk(name="job_done", token="t" * 20))
    with pytest.raises(UnknownApproval, match=f"{signal} is no approval, but the signal job_done"):
        reject(signal)
    closed = {
        GateState.EXPIRED: ("timeout", "expired at .*: nobody had decided in time"),
        GateState.WITHDRAWN: ("ann", "was withdrawn, and is not asked for any more: run cancelled"),
        GateState.VOID: ("ann", "is void, as run cancelled; it is asked again"),
    }
    for state, (by, said) in closed.items():
        gate = ask_for(here.ledger)
        with here.ledger.begin() as conn:
            asked = gates.lock(conn, gate)
            assert asked
            assert gates.close(conn, asked, state, by=by, reason="run cancelled")
        kind = ApprovalVoid if state == GateState.VOID else AlreadyDecided
        with pytest.raises(kind, match=said):
            approve(gate)


def test_a_void_approval_names_the_one_that_asks_again(here: Any) -> None:
    first, second, third = (ask_for(here.ledger) for _ in range(3))
    approve(first, by="ann", reason="fine")
    with here.ledger.begin() as conn:
        for gate in (first, second):
            asked = gates.lock(conn, gate)
            assert asked
            assert gates.close(conn, asked, GateState.VOID, by="x", reason="the code has changed")
    for old, new in ((first, second), (second, third)):
        query(
            here.ledger,
            "UPDATE flowstone.gates SET replaces = :old WHERE id = :new RETURNING 1",
            old=old,
            new=new,
        )
    with pytest.raises(ApprovalVoid) as caught:
        approve(first, by="bob")
    assert caught.value.message == (
        f"approval {first} is void, as the code has changed; asked again as approval {third}"
    )
    assert get_approval(first).replaced_by == third
    assert get_approval(third).replaces == second


def test_it_is_void_where_an_input_has_changed(
    here: Any, carried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[UUID] = []
    monkeypatch.setattr(outbox, "wake_others", lambda _, runs: woken.extend(runs))
    run = HandRun(here.ledger, {1: (), 2: (1,)})
    run.do(1)
    run.dispatch()
    gate = ask_for(run.ledger, run=run, step=2)
    other = HandRun(here.ledger, {1: ()}, force=True)
    other.do(1)
    with pytest.raises(NotAllowed):
        approve(gate, by="timeout")
    assert row(here.ledger, gate).state == "open"
    with pytest.raises(ApprovalVoid) as caught:
        approve(gate, by="ann")
    assert caught.value.message == (
        f"approval {gate} is void, as an input has changed meanwhile: a2 is computed anew, and it "
        "is asked again"
    )
    assert (woken, carried) == ([run.id], [])
    assert run.states()[2] == "pending"
    assert [told.action for told in audited(here.ledger, gate)] == ["approval.void"]
    assert query(here.ledger, "SELECT * FROM flowstone.votes") == []


def test_a_quorum_of_people_approves_and_each_vote_is_audited(
    here: Any, carried: list[int]
) -> None:
    gate = ask_for(here.ledger, Ask(approvers=["ann", "role:finance"], quorum=2))
    stands = approve(gate, by="Ann@laptop", reason="fine")
    assert (stands.state, stands.tally, carried) == (GateState.OPEN, "1 of 2", [])
    with pytest.raises(NotAllowed, match=r"Ann@laptop has approved at .*: fine; nobody votes twi"):
        approve(gate, by="ann@other")
    with pytest.raises(NotAllowed, match=r"these may: ann, role:finance \(carl, dora\)"):
        approve(gate, by="eve")
    stands = approve(gate, by="carl")
    assert (stands.state, stands.tally, carried) == (GateState.APPROVED, "2 of 2", [gate])
    assert [(v.actor, v.approves, v.reason) for v in stands.votes] == [
        ("Ann@laptop", True, "fine"),
        ("carl", True, None),
    ]
    first, second = audited(here.ledger, gate)
    assert (first.action, first.actor, first.details) == (
        "approval.voted",
        "Ann@laptop",
        {"channel": "python", "approvals": "1 of 2"},
    )
    assert (second.action, second.details["approvals"]) == ("approval.approved", "2 of 2")


def test_one_who_rejects_is_enough(here: Any, carried: list[int]) -> None:
    gate = ask_for(here.ledger, Ask(quorum=3))
    approve(gate, by="ann")
    assert reject(gate, by="bob").state == GateState.REJECTED
    assert carried == [gate]


def test_with_four_eyes_no_launcher_of_any_resumed_run_decides(here: Any) -> None:
    first = HandRun(here.ledger, {}, actor="ann@a")
    second = HandRun(here.ledger, {}, actor="bob@b", resumed_from=first.id)
    gate = ask_for(here.ledger, Ask(four_eyes=True), actor="carl@c", resumed_from=second.id)
    for launcher in ("ann", "bob@x", "Carl"):
        assert approvals_list(approver=launcher) == []
        with pytest.raises(NotAllowed, match=f"{launcher} has started the run"):
            approve(gate, by=launcher)
    assert [one.id for one in approvals_list(approver="dora")] == [gate]
    assert approve(gate, by="dora").state == GateState.APPROVED


def staged(here: Any, value: Any, as_type: Any = None) -> StoredOutput:
    stored: StoredOutput = here.outputs.store(
        value, Place("report0", "-", 1, 1, uuid4()), as_type=as_type
    )
    return stored


def test_an_edit_takes_the_place_of_the_value_and_its_difference_is_kept(here: Any) -> None:
    proposed = staged(here, Report(total=10), Report)
    gate = ask_for(here.ledger, staged=proposed, name="report")
    assert get_approval(gate).value == Report(total=10)
    assert approve(gate, by="ann", edit={"total": 12}).is_edited
    kept = row(here.ledger, gate)
    assert kept.difference == [{"path": "/total", "before": 10, "after": 12}]
    assert kept.edited["value"] == {"total": 12, "note": ""}
    assert edited_value(kept.edited, Report) == Report(total=12)
    assert kept.sha256 == proposed.sha256
    (told,) = audited(here.ledger, gate)
    assert told.details["edited"] == ["/total"]
    known = get_approval(gate)
    assert (known.edited, known.difference) == (kept.edited["value"], kept.difference)


def test_an_edit_that_changes_nothing_is_none(here: Any) -> None:
    gate = ask_for(here.ledger, staged=staged(here, Report(total=10), Report), name="report")
    assert not approve(gate, by="ann", edit=Report(total=10)).is_edited


def test_edits_that_cannot_be_are_refused(here: Any, make_runtime: Any) -> None:
    proposed = staged(here, Report(total=10), Report)
    gate = ask_for(here.ledger, staged=proposed, name="report")
    with pytest.raises(BadDecision) as caught:
        approve(gate, edit={"total": "many"})
    assert caught.value.message == (
        f"approval {gate}: the edit is no value of report0: total: Input should be a valid "
        "integer, unable to parse string as an integer"
    )
    parquet = StoredOutput("x", "parquet", 10, "0" * 64, 3)
    frame = ask_for(here.ledger, staged=parquet)
    with pytest.raises(BadDecision, match="proposes parquet; what is JSON can be edited"):
        approve(frame, edit=1)
    assert get_approval(frame).value.startswith("parquet of 10 bytes, 3 rows at x; it cannot be r")
    many = ask_for(here.ledger, Ask(quorum=2), staged=proposed, name="other")
    with pytest.raises(BadDecision, match="2 who approve the same value, so nobody may edit it"):
        approve(many, edit={"total": 12})
    make_runtime(build_registry([]))
    with pytest.raises(BadConfig, match=f"approval {gate}: .* set FLOWSTONE_ASSETS"):
        approve(gate, edit={"total": 12})
    assert row(here.ledger, gate).state == "open"


def test_approvals_are_listed_by_what_is_asked_for(here: Any) -> None:
    old = ask_for(here.ledger, Ask(message="Old?", approvers=["role:finance"]), name="sales")
    shift(here.ledger, old, 3600)
    new = ask_for(here.ledger, Ask(quorum=2))
    done = ask_for(here.ledger)
    approve(done, by="ann")
    approve(new, by="Ann@laptop")

    def ids(**wanted: Any) -> list[int]:
        return [one.id for one in approvals_list(**wanted)]

    assert ids() == ids(state="open") == [old, new]
    assert ids(state="all") == [old, new, done]
    assert ids(state="approved") == [done]
    assert ids(state="all", limit=2) == [new, done]
    assert ids(limit=1) == [old]
    assert ids(older_than=1800) == ids(asset="sales0") == [old]
    assert ids(approver="Carl@host") == [old, new]
    assert ids(approver="eve") == [new]
    assert ids(approver="ann") == []
    first, second = approvals_list()
    assert ids(run=str(first.run_id)[:8]) == [old]
    assert (first.name, first.message, first.approvers) == ("sales0", "Old?", ("role:finance",))
    assert 3600 <= first.age < 3660
    assert (first.tally, second.tally, second.level) == ("0 of 1", "1 of 2", 0)
    with pytest.raises(BadQuery, match="no approval is 'opne'; did you mean 'open'"):
        approvals_list(state="opne")
    with pytest.raises(BadQuery):
        approvals_list(older_than=-1)


def test_of_approvals_that_others_were_asked_for_nothing_is_read(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_bob = [ask_for(here.ledger, Ask(approvers=["bob", "role:none"])) for _ in range(3)]
    of_finance = ask_for(here.ledger, Ask(approvers=["Role:x", "role:FINANCE"]))
    of_all = ask_for(here.ledger)
    for gate in (*of_bob, of_all):
        reject(gate, by="bob")
    read, of_rows = list[int](), store._listed

    def counted(conn: Any, rows: Any) -> Any:
        read.extend(row.id for row in rows)
        return of_rows(conn, rows)

    monkeypatch.setattr(store, "_listed", counted)
    found = [one.id for one in approvals_list(state="all", approver="Carl@host")]
    assert found == sorted(read) == [of_finance, of_all]
    assert approvals_list(state="rejected", approver="nobody", asset="none") == []


def test_all_is_known_of_one(here: Any) -> None:
    wanted = Ask(message="May it?", context={"rows": 3}, timeout=60, on_timeout="fail")
    gate = ask_for(here.ledger, wanted, actor="ann@a")
    known = get_approval(gate)
    assert (known.context, known.on_timeout, known.launcher) == ({"rows": 3}, "fail", "ann@a")
    assert known.proposed is not None
    assert "it cannot be read: " in known.value
    with pytest.raises(UnknownApproval):
        get_approval(gate + 1)


def test_threads_make_up_a_quorum_and_one_of_them_decides(here: Any, carried: list[int]) -> None:
    for _ in range(5):
        gate = ask_for(here.ledger, Ask(quorum=2))
        carried.clear()

        def vote(who: str, gate: int = gate) -> object:
            try:
                return approve(gate, by=who).tally
            except FlowStoneError as error:
                return error.type

        said = at_once(*(partial(vote, who) for who in ("ann", "bob", "carl")))
        # Who was first may see the second vote, too, by the time that it looks.
        assert said.count("already_decided") == 1
        assert "2 of 2" in said
        assert carried == [gate]
        actions = [told.action for told in audited(here.ledger, gate)]
        assert actions == ["approval.voted", "approval.approved"]


RACER = """
import sys
from flowstone.approvals import approve, reject
from flowstone.errors import AlreadyDecided
who, decide = sys.argv[1], {"approve": approve, "reject": reject}[sys.argv[2]]
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(decide(int(line), by=who, reason=f"by {who}").state, flush=True)
    except AlreadyDecided as error:
        print("late:", error.message, flush=True)
"""


def test_of_two_processes_exactly_one_decides(here: Any, database: str) -> None:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("FLOWSTONE_")},
        "FLOWSTONE_DATABASE_URL": database,
        "PYTHONPATH": str(ROOT),
    }
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, who, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for who, how in (("ann", "approve"), ("bob", "reject"))
    ]
    try:
        for racer in racers:
            assert line(racer) == "ready"
        winners = [race(here.ledger, racers) for _ in range(40)]
    finally:
        for racer in racers:
            assert racer.stdin
            racer.stdin.close()
            assert racer.wait(20) == 0
            assert racer.stdout
            racer.stdout.close()
    assert set(winners) == {"ann", "bob"}, "one was always first, so that nothing was tried"


def line(racer: subprocess.Popen[str]) -> str:
    assert racer.stdout
    return racer.stdout.readline().strip()


def race(ledger: Ledger, racers: list[subprocess.Popen[str]]) -> str:
    gate = ask_for(ledger, driver="inline")
    for racer in racers:
        assert racer.stdin
        racer.stdin.write(f"{gate}\n")
        racer.stdin.flush()
    ann, bob = map(line, racers)
    winner, said, late = ("ann", ann, bob) if ann == "approved" else ("bob", bob, ann)
    state = {"ann": "approved", "bob": "rejected"}[winner]
    assert said == state
    assert late.startswith(f"late: approval {gate} is decided: {winner} has {state} at ")
    assert late.endswith(f": by {winner}")
    assert [(told.action, told.actor) for told in audited(ledger, gate)] == [
        (f"approval.{state}", winner)
    ]
    assert query(ledger, "SELECT actor FROM flowstone.votes WHERE gate_id = :g", g=gate) == [
        (winner,)
    ]
    return winner


def test_the_public_names_are_those_of_the_module() -> None:
    assert flowstone.approve is approve
    assert {"approve", "reject", "approvals_list", "get_approval"} <= set(flowstone.__all__)
