"""Steps that wait for people or signals, and what becomes of them: real assets, no broker."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from flowstone import (
    RunState,
)
from flowstone.io.edits import as_edited
from flowstone.states import GateState
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker
from tests.store.waiting_assets import (
    FACTS,
    Report,
    appealed,
    aside,
    audited,
    awaited,
    bare,
    by_role,
    chosen,
    circling,
    doubly,
    doubly_later,
    published,
    report,
    retry_now,
    routed,
    valueless,
    waits,
    worker,
)


@pytest.fixture
def local(make_runtime: RuntimeFactory) -> LocalWorker:
    return worker(make_runtime)


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


def test_a_step_that_waits_for_a_signal_twice_does_not_go_in_circles(local: LocalWorker) -> None:
    handle, gate = waits(local, circling)
    local.decide(gate, GateState.RECEIVED, payload={"value": 1})
    assert "a token is used once" in local.step(handle, circling).error["message"]


def test_a_second_continuation_does_nothing(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    local.decide(gate, GateState.APPROVED)
    before = audited(local, handle)
    local.carry_on(gate)
    assert audited(local, handle) == before
    assert local.step(handle, report).attempt == 2
