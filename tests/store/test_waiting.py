"""Steps that wait for people or signals, and what becomes of them: real assets, no broker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel, SecretStr
from sqlalchemy import text

from flowstone import (
    Approval,
    Context,
    Decision,
    Retry,
    RunState,
    Signal,
    asset,
    check,
    materialize_sync,
    wait_for_approval,
    wait_for_signal,
)
from flowstone.handle import RunHandle
from flowstone.io.edits import as_edited
from flowstone.reconcile import make_pass
from flowstone.registry import build_registry
from flowstone.states import GateState
from flowstone.store import resumption
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker
from tests.worker.waiting import wait_until

TOKENS = ["a-token-of-ours", "another-token", "a-third-token"]
CANCEL: list[Callable[[], object]] = []
FACTS: dict[str, Any] = {"delay": 20.0, "calls": 0}


class Report(BaseModel):
    """What people approve."""

    delay: float


@asset(volatile=True)
def source() -> float:
    """Read by the others."""
    return float(FACTS["delay"])


@asset(approval=Approval(when=lambda made: made.delay > 15, message="So late?", options=()))
def report(source: float) -> Report:
    """Asks if it is above 15."""
    FACTS.pop("beside", lambda: None)()
    return Report(delay=source)


@check(asset=report, blocking=True)
def is_no_nonsense(report: Report) -> bool:
    return report.delay < 1000


@asset
def published(report: Report) -> float:
    """Reads what was approved."""
    return report.delay


@asset
def aside(source: float) -> float:
    """Reads nothing that waits."""
    return source


def from_decision(decision: Decision, source: float) -> list[Any]:
    FACTS["calls"] += 1
    if FACTS["calls"] == 1:
        raise ConnectionError("try again")
    return [decision.option, decision.by, decision.reason, decision.context, source]


@asset(on_approved=from_decision, retry=Retry(base=0.1))
def chosen(source: float) -> list[Any]:
    """Raises to ask, and is made by what follows."""
    raise wait_for_approval(message="How?", options=["half", "full"], context={"from": source})


def consoled(decision: Decision) -> Report:
    assert decision.value == Report(delay=1)
    return Report(delay=-1)


@asset(on_rejected=consoled)
def routed() -> Report:
    """Goes another way when it is rejected."""
    return wait_for_approval(value=Report(delay=1))  # type: ignore[return-value]


def heard(payload: dict[str, int] | None, signal: Signal, context: Context) -> list[Any]:
    return [payload, signal.by, signal.timed_out, context.attempt]


@asset(on_signal=heard)
def awaited() -> list[Any]:
    """Waits for a job elsewhere."""
    return wait_for_signal(  # type: ignore[return-value]
        name="job", token=TOKENS[0], timeout=60, on_timeout="continue"
    )


@asset
def bare() -> int:
    """Is what comes."""
    raise wait_for_signal(name="job", token=TOKENS[1], timeout=60)


@asset(approval=Approval(approvers=["boss"]))
def doubly() -> int:
    """Would let ann do what boss has to."""
    return wait_for_approval(value=7, approvers=["ann"])  # type: ignore[return-value]


def asks_ann(payload: int) -> int:
    return wait_for_approval(value=payload, approvers=["ann"])  # type: ignore[return-value]


@asset(approval=Approval(approvers=["boss"]), on_signal=asks_ann)
def doubly_later() -> int:
    """The same, after a signal."""
    raise wait_for_signal(name="job", token=TOKENS[2])


def asks_eve(decision: Decision) -> int:
    return wait_for_approval(value=8, approvers=["eve"])  # type: ignore[return-value]


@asset(approval=Approval(approvers=["boss"]), on_rejected=asks_eve)
def appealed() -> int:
    """Asks once more where it is rejected."""
    return 7


@asset(approval=Approval(approvers=["role:finanse", "role:finance"]))
def by_role() -> int:
    """Asks somebody whom the settings do not know."""
    return 7


def added(payload: float, source: float) -> float:
    return payload + source


@asset(approval=Approval(message="So much?"), on_signal=added)
def signalled(source: float, context: Context) -> float:
    """Waits for a signal, and then for people."""
    raise wait_for_signal(name="job", token=context.signal_token("job"))


def goes_in_circles(payload: int, context: Context) -> int:
    raise wait_for_signal(name="job", token=context.signal_token("job"))


@asset(on_signal=goes_in_circles)
def circling(context: Context) -> int:
    raise wait_for_signal(name="job", token=context.signal_token("job"))


@asset
def cancelled_meanwhile() -> int:
    """Asks, and has no one left to ask for."""
    CANCEL.pop()()
    return wait_for_approval(value=1)  # type: ignore[return-value]


@asset
def valueless() -> int:
    """Could never be anything."""
    raise wait_for_approval(message="?")


ASSETS = [source, report, published, aside, chosen, routed, awaited, bare, valueless]
ASSETS += [by_role, doubly, doubly_later, appealed, signalled, circling, cancelled_meanwhile]


@pytest.fixture
def local(make_runtime: RuntimeFactory) -> LocalWorker:
    FACTS.clear()
    FACTS.update(delay=20.0, calls=0)
    registry = build_registry(ASSETS, checks=[is_no_nonsense])
    return LocalWorker(
        make_runtime(registry, secret=SecretStr("s" * 32), roles={"finance": ["ann"]})
    )


def waits(local: LocalWorker, asset: Any) -> tuple[Any, int]:
    """Return a run that waits at its only gate."""
    handle = local.submit(asset)
    assert handle.status() == RunState.WAITING
    return handle, local.open_gate()


def audited(local: LocalWorker, handle: Any) -> list[str]:
    with local.runtime.ledger.begin() as conn:
        query = text("SELECT action FROM flowstone.audit WHERE run_id = :run ORDER BY id")
        return [str(action) for action in conn.scalars(query, {"run": handle.id})]


def attempts(local: LocalWorker, handle: Any, asset: Any) -> list[tuple[int, str]]:
    with local.runtime.ledger.begin() as conn:
        query = text("SELECT number, outcome FROM flowstone.attempts WHERE step_id = :s ORDER BY 1")
        found = conn.execute(query, {"s": local.step(handle, asset).id})
        return [(row.number, row.outcome) for row in found]


def retry_now(local: LocalWorker, handle: Any) -> None:
    """Let the retry be due that is parked, and the reconciler find it."""
    with local.runtime.ledger.begin() as conn:
        conn.execute(text("UPDATE flowstone.steps SET retry_at = now() WHERE state = 'retrying'"))
    woken: list[Any] = []
    make_pass(local.runtime, lambda run_id, _: woken.append(run_id)).check()
    assert handle.id in woken
    local.coordinate(handle.id)
    local.work()


def resumed(local: LocalWorker, handle: Any) -> Any:
    """Return the run that resumes another, which has gone as far as it can."""
    with local.runtime.ledger.begin() as conn:
        made = resumption.create(conn, uuid4(), handle.id, actor="test")
    local.coordinate(made)
    local.work()
    return RunHandle(made, local.runtime)


def test_what_is_approved_becomes_the_value_and_the_run_goes_on(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    step = local.step(handle, report)
    assert (step.state, step.canvas, step.token) == ("waiting_approval", None, None)
    assert local.step(handle, published).state == "pending"
    assert local.gate(gate).message == "So late?"
    local.decide(gate, GateState.APPROVED)
    assert handle.status() == RunState.SUCCEEDED
    assert handle.result(report) == Report(delay=20)
    assert handle.result() == 20
    said = audited(local, handle)
    order = ["approval.requested", "run.waiting", "approval.approved", "step.continued"]
    assert [action for action in said if action in order] == order


def test_a_value_below_the_threshold_needs_nobody(local: LocalWorker) -> None:
    FACTS["delay"] = 10
    assert local.submit(published).status() == RunState.SUCCEEDED


def test_what_is_approved_is_fresh_and_not_asked_again(local: LocalWorker) -> None:
    _, gate = waits(local, published)
    local.decide(gate, GateState.APPROVED)
    again = local.submit(report)
    assert again.status() == RunState.SUCCEEDED
    assert local.step(again, report).state == "skipped"


def test_a_rejection_fails_the_step_for_good_and_its_readers(local: LocalWorker) -> None:
    handle, gate = waits(local, [published, aside][0])
    local.decide(gate, GateState.REJECTED, reason="too late")
    assert handle.status() == RunState.FAILED
    error = local.step(handle, report).error
    assert error["type"] == "approval_rejected"
    assert error["message"] == (
        f"approval {gate} was rejected by ann: too late (asked was: So late?)"
    )
    assert local.step(handle, published).state == "upstream_failed"


def test_a_rejection_may_route(local: LocalWorker) -> None:
    handle, gate = waits(local, routed)
    local.decide(gate, GateState.REJECTED)
    assert handle.result() == Report(delay=-1)


def test_the_continuation_gets_the_edited_value_and_it_is_checked(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    local.decide(gate, GateState.APPROVED, edited=as_edited(Report(delay=12.5), Report))
    assert handle.result(report) == Report(delay=12.5)
    FACTS["delay"] = 30
    handle, gate = waits(local, published)
    local.decide(gate, GateState.APPROVED, edited=as_edited(Report(delay=5000), Report))
    assert local.step(handle, report).error["type"] == "check_failed"


def test_a_handler_makes_the_value_and_is_tried_again_like_any_function(
    local: LocalWorker,
) -> None:
    handle, gate = waits(local, chosen)
    local.decide(gate, GateState.APPROVED, chosen="half", reason="enough")
    assert local.step(handle, chosen).state == "retrying"
    retry_now(local, handle)
    assert handle.result() == ["half", "ann", "enough", {"from": 20.0}, 20.0]
    with local.runtime.ledger.begin() as conn:
        assert conn.scalar(text("SELECT count(*) FROM flowstone.gates")) == 1


def test_a_signal_carries_on_with_its_payload(local: LocalWorker) -> None:
    handle, gate = waits(local, awaited)
    assert local.step(handle, awaited).state == "waiting_signal"
    local.decide(gate, GateState.RECEIVED, payload={"value": {"rows": 3}})
    assert handle.result() == [{"rows": 3}, "ann", False, 2]


def test_a_signal_that_does_not_come_carries_on_without_one(local: LocalWorker) -> None:
    handle, gate = waits(local, awaited)
    local.decide(gate, GateState.EXPIRED, by="timeout")
    assert handle.result() == [None, "timeout", True, 2]


def test_without_a_handler_the_payload_is_the_value_if_it_fits(local: LocalWorker) -> None:
    handle, gate = waits(local, bare)
    local.decide(gate, GateState.RECEIVED, payload={"value": 7})
    assert handle.result() == 7


@pytest.mark.parametrize(
    ("target", "state", "payload", "type"),
    [
        (report, GateState.EXPIRED, None, "approval_expired"),
        (bare, GateState.EXPIRED, None, "signal_expired"),
        (bare, GateState.RECEIVED, {"value": "seven"}, "bad_signal"),
    ],
)
def test_what_ends_badly_says_how(
    local: LocalWorker, target: Any, state: GateState, payload: Any, type: str
) -> None:
    handle, gate = waits(local, target)
    local.decide(gate, state, payload=payload)
    assert handle.status() == RunState.FAILED
    assert local.step(handle, target).error["type"] == type


def test_nothing_can_be_asked_that_would_come_to_nothing(local: LocalWorker) -> None:
    handle = local.submit(valueless)
    assert handle.status() == RunState.FAILED
    assert "wait_for_approval(value=...)" in local.step(handle, valueless).error["message"]


def test_an_asset_that_declares_who_approves_asks_nobody_else(local: LocalWorker) -> None:
    handle = local.submit(doubly)
    assert handle.status() == RunState.FAILED
    error = local.step(handle, doubly).error
    assert error["type"] == "definition_error"
    assert "return the value itself" in error["message"]
    assert "remove approval= from the asset" in error["message"]
    assert not error["retryable"]
    handle, gate = waits(local, doubly_later)
    local.decide(gate, GateState.RECEIVED, payload={"value": 7})
    assert "declares approval=" in local.step(handle, doubly_later).error["message"]


def test_who_asks_is_warned_of_a_role_that_there_is_not(
    local: LocalWorker, caplog: pytest.LogCaptureFixture
) -> None:
    waits(local, by_role)
    assert "names a role that there is not" in caplog.text
    assert "by_role" in caplog.text
    assert "FLOWSTONE_ROLES has no role 'finanse'; did you mean 'finance'" in caplog.text


def test_what_is_made_after_a_decision_may_be_asked_about_by_itself(local: LocalWorker) -> None:
    handle, gate = waits(local, appealed)
    local.decide(gate, GateState.REJECTED)
    appeal = local.open_gate()
    assert list(local.gate(appeal).approvers) == ["eve"]
    local.decide(appeal, GateState.APPROVED)
    assert handle.result() == 8


def test_a_signal_counts_for_the_step_that_begins_anew(local: LocalWorker) -> None:
    handle, signal = waits(local, signalled)
    local.decide(signal, GateState.RECEIVED, payload={"value": 1}, by="the job", channel="http")
    asked = local.open_gate()
    FACTS["delay"] = 25
    local.submit(source)
    local.decide(asked, GateState.APPROVED)
    assert local.gate(asked).state == GateState.VOID

    step = local.step(handle, signalled)
    assert step.state == "waiting_signal"
    again = local.gate(step.gate)
    assert (again.state, again.replaces) == (GateState.RECEIVED, signal)
    assert (again.payload, again.closed_by, again.channel) == ({"value": 1}, "the job", "http")
    assert local.gate(signal).state == GateState.VOID
    # It goes on like one whose signal came before it waited.
    local.carry_on(step.gate)
    new = local.open_gate()
    assert local.gate(new).replaces == asked
    local.decide(new, GateState.APPROVED)
    assert handle.status() == RunState.SUCCEEDED
    assert handle.result() == 26


def test_a_step_that_waits_for_a_signal_twice_does_not_go_in_circles(local: LocalWorker) -> None:
    handle, gate = waits(local, circling)
    local.decide(gate, GateState.RECEIVED, payload={"value": 1})
    assert "a token is used once" in local.step(handle, circling).error["message"]


def test_nobody_is_asked_for_a_run_that_is_cancelled_while_its_function_runs(
    local: LocalWorker,
) -> None:
    handle = local.begin(cancelled_meanwhile)
    CANCEL.append(lambda: handle.cancel(grace=60))
    local.work()
    assert local.step(handle, cancelled_meanwhile).state == "cancelled"
    assert handle.status() == RunState.CANCELLED
    assert not [action for action in audited(local, handle) if action.startswith("approval")]
    with local.runtime.ledger.begin() as conn:
        assert conn.scalar(text("SELECT count(*) FROM flowstone.gates")) == 0


def test_a_second_continuation_does_nothing(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    local.decide(gate, GateState.APPROVED)
    before = audited(local, handle)
    local.carry_on(gate)
    assert audited(local, handle) == before
    assert local.step(handle, report).attempt == 2


def test_an_approval_is_void_when_an_input_has_changed(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    FACTS["delay"] = 25
    assert local.submit(source).status() == RunState.SUCCEEDED
    local.decide(gate, GateState.APPROVED)
    again = local.open_gate()
    assert local.gate(gate).state == GateState.VOID
    assert local.gate(again).replaces == gate
    assert handle.status() == RunState.WAITING
    local.decide(again, GateState.APPROVED)
    assert handle.result() == 25


def test_an_approval_is_void_when_the_value_is_no_longer_what_was_shown(
    local: LocalWorker,
) -> None:
    handle, gate = waits(local, published)
    staged = local.gate(gate).value
    assert staged is not None
    path = Path(local.runtime.settings.outputs) / staged.location
    path.chmod(0o644)
    path.write_text('{"delay":99.0}')
    local.decide(gate, GateState.APPROVED)
    assert local.gate(gate).state == GateState.VOID
    local.decide(local.open_gate(), GateState.APPROVED)
    assert handle.result() == 20


def test_the_same_value_again_is_no_change(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    assert local.submit(source).status() == RunState.SUCCEEDED
    local.decide(gate, GateState.APPROVED)
    assert handle.result() == 20


def test_a_change_before_the_asking_counts(local: LocalWorker) -> None:
    handle = local.begin(report)
    local.work_on(source)
    FACTS["delay"] = 25
    # Another run makes the input anew while this one has read the old one.
    other = local.begin(source, force=True)
    FACTS["beside"] = lambda: local.work_on(source)
    local.work()
    assert other.status() == RunState.SUCCEEDED
    gate = local.open_gate()
    local.decide(gate, GateState.APPROVED)
    assert local.gate(gate).state == GateState.VOID
    local.decide(local.open_gate(), GateState.APPROVED)
    assert handle.result() == Report(delay=25)


def test_a_resumed_run_is_asked_about_what_is_the_latest(local: LocalWorker) -> None:
    rejected, gate = waits(local, report)
    local.decide(gate, GateState.REJECTED)
    FACTS["delay"] = 30
    local.submit(source, force=True)
    handle = resumed(local, rejected)
    old = local.open_gate()
    local.decide(old, GateState.APPROVED)
    assert local.gate(old).state == GateState.VOID
    local.decide(local.open_gate(), GateState.APPROVED)
    assert handle.result(report) == Report(delay=30)


def test_what_changes_between_the_decision_and_the_commit_counts(local: LocalWorker) -> None:
    """A step that waits for slots, or whose handler is tried again, may take hours."""
    handle, gate = waits(local, chosen)
    local.decide(gate, GateState.APPROVED, chosen="half")
    assert local.step(handle, chosen).state == "retrying"
    FACTS["delay"] = 40
    local.submit(source, force=True)
    retry_now(local, handle)
    assert local.gate(gate).state == GateState.VOID
    assert [outcome for _, outcome in attempts(local, handle, chosen)] == [
        "waiting_approval", "retrying", "void", "waiting_approval",
    ]  # fmt: skip
    local.decide(local.open_gate(), GateState.APPROVED, chosen="full")
    assert handle.result() == ["full", "ann", None, {"from": 40.0}, 40.0]


@pytest.mark.parametrize("goes_first", [0, 1])
def test_what_was_decided_counts_for_those_who_have_joined(
    local: LocalWorker, goes_first: int
) -> None:
    """Whoever is woken first: nobody is asked again, and nothing is computed twice."""
    first, gate = waits(local, report)
    other = local.submit(report, upstream=False)
    local.close(gate, GateState.APPROVED, by="timeout")
    woken: list[Any] = []
    make_pass(local.runtime, lambda run_id, _: woken.append(run_id)).check()
    assert first.id in woken
    third = local.begin(report, upstream=False)
    for run_id in [(first.id, other.id), (other.id, first.id)][goes_first]:
        local.coordinate(run_id)
    local.coordinate(third.id)
    local.work()
    for run in (first, other, third):
        assert run.result() == Report(delay=20)
    with local.runtime.ledger.begin() as conn:
        assert conn.scalar(text("SELECT count(*) FROM flowstone.gates")) == 1


def test_two_runs_wait_for_one_approval(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    other = local.submit(report, upstream=False, force=False)
    assert local.step(other, report).state == "joined"
    assert other.status() == RunState.WAITING
    assert local.open_gate() == gate
    local.decide(gate, GateState.APPROVED)
    assert handle.status() == other.status() == RunState.SUCCEEDED
    assert other.result() == Report(delay=20)


def test_who_has_joined_what_is_rejected_takes_its_turn_and_asks_again(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    other = local.submit(report, upstream=False, force=False)
    local.decide(gate, GateState.REJECTED)
    assert handle.status() == RunState.FAILED
    assert other.status() == RunState.WAITING
    assert local.step(other, report).gate == local.open_gate() != gate


def test_who_has_joined_a_step_waits_when_that_begins_to(local: LocalWorker) -> None:
    first = local.begin(report)
    other = local.begin(report)
    assert local.step(other, source).state == "joined"
    local.work()
    assert first.status() == other.status() == RunState.WAITING
    assert local.step(other, report).state == "joined"


def test_a_run_that_is_cancelled_asks_for_nothing_any_more(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    handle.cancel(reason="no more")
    assert handle.status() == RunState.CANCELLED
    assert local.gate(gate).state == GateState.WITHDRAWN
    assert "approval.withdrawn" in audited(local, handle)


def test_a_decision_whose_run_is_cancelled_before_the_continuation_is_withdrawn(
    local: LocalWorker,
) -> None:
    handle, gate = waits(local, published)
    local.close(gate, GateState.APPROVED)
    handle.cancel()
    local.carry_on(gate)
    assert local.gate(gate).state == GateState.WITHDRAWN
    assert local.step(handle, report).state == "cancelled"


def test_a_run_with_something_else_to_do_does_not_wait(local: LocalWorker) -> None:
    handle = local.submit(published, aside, awaited)
    assert handle.status() == RunState.WAITING
    assert local.step(handle, aside).state == "succeeded"
    with local.runtime.ledger.begin() as conn:
        ids = conn.scalars(text("SELECT id FROM flowstone.gates ORDER BY kind")).all()
    local.decide(ids[0], GateState.APPROVED)
    assert handle.status() == RunState.WAITING
    local.decide(ids[1], GateState.RECEIVED, payload={"value": None})
    assert handle.status() == RunState.SUCCEEDED


def test_an_inline_run_sees_that_time_is_up(make_runtime: RuntimeFactory) -> None:
    @asset(approval=Approval(timeout=0.1, on_timeout="approve"))
    def patient() -> int:
        return 3

    make_runtime(build_registry([patient]), lease_seconds=0.9)
    assert materialize_sync(patient).result() == 3


def test_an_inline_run_waits_in_its_process(local: LocalWorker) -> None:
    ended: list[Any] = []
    thread = threading.Thread(
        target=lambda: ended.append(materialize_sync(published, upstream=True).result())
    )
    thread.start()
    gate = wait_until(lambda: _first_open(local), "a gate")
    local.close(gate, GateState.APPROVED)
    thread.join(30)
    assert ended == [20]


def _first_open(local: LocalWorker) -> int:
    with local.runtime.ledger.begin() as conn:
        return int(conn.scalar(text("SELECT id FROM flowstone.gates WHERE state = 'open'")) or 0)
