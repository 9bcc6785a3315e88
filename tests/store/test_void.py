"""An approval holds for what was shown, made of what is the latest; else it is asked again."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowstone import (
    RunState,
)
from flowstone.states import GateState
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker
from tests.store.waiting_assets import (
    FACTS,
    Report,
    attempts,
    chosen,
    published,
    report,
    resumed,
    retry_now,
    signalled,
    source,
    waits,
    worker,
)


@pytest.fixture
def local(make_runtime: RuntimeFactory) -> LocalWorker:
    return worker(make_runtime)


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
