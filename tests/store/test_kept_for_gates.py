"""What people are asked about stays while it may become a value; gates go with their steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from flowstone import Approval, RunState, approve, asset, get_approval, reject
from flowstone.collector import sweep
from flowstone.prune import prune
from flowstone.registry import build_registry
from flowstone.settings import Retention
from flowstone.store import gates
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker
from tests.store.runs_by_hand import count, query


@asset(approval=Approval(message="May it?", quorum=2))
def report() -> int:
    return 7


@pytest.fixture
def local(make_runtime: RuntimeFactory) -> LocalWorker:
    registry = build_registry([report])
    return LocalWorker(make_runtime(registry, retention=Retention(runs=30)))


def lies_there(local: LocalWorker, gate: int) -> bool:
    value = local.gate(gate).value
    assert value is not None
    return Path(local.runtime.settings.outputs, value.location).exists()


def swept(local: LocalWorker, gate: int) -> bool:
    """Sweep, and return whether the value of the gate went."""
    before = lies_there(local, gate)
    assert before
    sweep(local.runtime)
    return not lies_there(local, gate)


def test_a_rejected_value_goes_when_its_step_has_ended(local: LocalWorker) -> None:
    handle = local.submit(report)
    gate = local.open_gate()
    assert not swept(local, gate)
    reject(gate, by="ann")
    # The step may still show it to its on_rejected.
    assert not swept(local, gate)
    local.carry_on(gate)
    assert handle.status() == RunState.FAILED
    assert swept(local, gate)
    assert "cannot be read" in get_approval(gate).value


def test_an_approved_value_stays(local: LocalWorker) -> None:
    handle = local.submit(report)
    gate = local.open_gate()
    for who in ("ann", "bob"):
        approve(gate, by=who)
        assert not swept(local, gate)
    local.carry_on(gate)
    assert not swept(local, gate)
    assert handle.result() == 7


@pytest.mark.parametrize("how", ["void", "withdrawn"])
def test_what_is_void_or_withdrawn_goes(local: LocalWorker, how: str) -> None:
    handle = local.submit(report)
    gate = local.open_gate()
    if how == "withdrawn":
        handle.cancel()
    else:
        with local.runtime.ledger.begin() as conn:
            asked = gates.lock(conn, gate)
            assert asked
            gates.void(conn, asked, by="x", reason="changed")
    assert local.gate(gate).state == how
    assert swept(local, gate)


def test_gates_are_pruned_with_their_step(local: LocalWorker) -> None:
    handle = local.submit(report)
    first = local.open_gate()
    approve(first, by="ann")
    with local.runtime.ledger.begin() as conn:
        asked = gates.lock(conn, first)
        assert asked
        gates.void(conn, asked, by="x", reason="changed")
    local.coordinate(handle.id)
    local.work()
    second = local.open_gate()
    assert local.gate(second).replaces == first
    reject(second, by="ann")
    local.carry_on(second)
    assert prune(local.runtime, actor="me").rows == {}
    with local.runtime.ledger.begin() as conn:
        conn.execute(text("UPDATE flowstone.runs SET finished_at = now() - interval '31 days'"))
    gone: dict[str, Any] = dict(prune(local.runtime, actor="me").rows)
    assert {name: gone[name] for name in ("gates", "votes", "steps", "runs")} == {
        "gates": 2, "votes": 2, "steps": 1, "runs": 1,
    }  # fmt: skip
    assert gone["notifications"] >= 3
    assert [count(local.runtime.ledger, t) for t in ("gates", "votes", "notifications")] == [0] * 3
    audited = query(
        local.runtime.ledger,
        "SELECT count(*) FROM flowstone.audit WHERE action LIKE 'approval.%'",
    )
    assert audited[0][0] == 5
