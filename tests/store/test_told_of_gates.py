"""What a run waits for is told while it does, and afterwards what was decided."""

from __future__ import annotations

import pytest

from flowstone import Approval, approve, asset, lineage, wait_for_signal
from flowstone.partition_key import Month
from flowstone.registry import build_registry
from flowstone.states import GateState
from flowstone.store.waiting_steps import WaitingStep
from flowstone.texts import lasting
from tests.conftest import RuntimeFactory
from tests.store.gates_by_hand import shift
from tests.store.local_worker import LocalWorker


@asset(approval=Approval(message="May it?", quorum=2))
def report() -> int:
    return 7


@asset
def reader(report: int) -> int:
    return report


@asset
def awaited() -> int:
    raise wait_for_signal(name="job_done", token="t" * 20, message="of the cluster")


@pytest.fixture
def local(make_runtime: RuntimeFactory) -> LocalWorker:
    return LocalWorker(make_runtime(build_registry([report, reader, awaited])))


def test_a_run_tells_what_it_waits_for_and_so_does_one_that_has_joined_it(
    local: LocalWorker,
) -> None:
    handle = local.submit(reader)
    gate = local.open_gate()
    other = local.submit(report, upstream=False, on_conflict="join")
    signalled = local.submit(awaited)
    shift(local.runtime.ledger, gate, 300)
    (told,) = map(str, handle.waiting())
    assert told == (
        f"report waits for approval {gate} since 5 min: May it? "
        f"(flowstone approvals approve {gate})"
    )
    assert [(step.name, step.id) for step in other.waiting()] == [("report", gate)]
    (step,) = signalled.waiting()
    assert str(step).startswith("awaited waits for the signal job_done since 0 s: of the cluster")
    approve(gate, by="ann")
    assert len(handle.waiting()) == 1
    approve(gate, by="bob")
    assert handle.waiting() == []


def test_the_name_of_a_partition_is_told(local: LocalWorker) -> None:
    handle = local.submit(reader)
    (step,) = handle.waiting()
    given = {**vars(step), "partition": Month(2013, 1), "message": ""}
    assert str(WaitingStep(**given)).startswith("report[2013-01] waits for approval 1 since ")


def test_what_produced_a_value_tells_who_has_approved_it(local: LocalWorker) -> None:
    handle = local.submit(report)
    gate = local.open_gate()
    for who, why in (("ann", "fine"), ("bob", None)):
        approve(gate, by=who, reason=why)
    local.carry_on(gate)
    assert handle.result() == 7
    for found in (lineage.produced(report), lineage.produced(report, run=handle.id)):
        (one,) = found.approvals
        assert (one.id, one.state, one.decided_by) == (gate, GateState.APPROVED, "bob")
        assert [(vote.actor, vote.reason) for vote in one.votes] == [("ann", "fine"), ("bob", None)]
        assert one.age == (one.decided_at - one.asked_at).total_seconds()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"),
     (172_799, "47 h"), (172_800, "2 d")],
)  # fmt: skip
def test_times_are_told_in_the_unit_that_says_enough(seconds: float, said: str) -> None:
    assert lasting(seconds) == said
