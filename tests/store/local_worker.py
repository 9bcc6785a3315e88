"""A worker and its broker in the process of the test: real steps and continuations, no waiting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from flowstone import backfills, continuation, coordinator, handle, outbox, submission
from flowstone.backfills import BackfillHandle
from flowstone.continuation import Carried, Freed
from flowstone.execution import Ended, execute
from flowstone.expand import Canvas, members
from flowstone.gate import Gate
from flowstone.handle import RunHandle
from flowstone.partition import UNPARTITIONED, Key
from flowstone.runtime import Runtime
from flowstone.states import GateState
from flowstone.store import gates
from flowstone.store.dispatch import DispatchedStep


def stand_in(monkeypatch: pytest.MonkeyPatch, local: LocalWorker, *, busy: bool = False) -> None:
    """Let the worker be the broker of this process; if it is `busy`, it works at once."""

    def wake(_: object, run_id: UUID) -> None:
        local.coordinate(run_id)
        if busy:
            local.work()

    for module in (outbox, handle):
        monkeypatch.setattr(module, "sender", lambda _: None)
        monkeypatch.setattr(module, "wake", wake)


class LocalWorker:
    """Keeps the messages that are sent, and works on them when the test says so."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.messages: list[DispatchedStep] = []

    def submit(
        self,
        *assets: Any,
        **options: Any,
    ) -> RunHandle:
        """Submit a run, and work until nothing is left to do."""
        begun = self.begin(*assets, **options)
        self.work()
        return begun

    def begin(
        self,
        *assets: Any,
        partition: Key = UNPARTITIONED,
        upstream: bool = True,
        **options: Any,
    ) -> RunHandle:
        """Submit a run, and keep its messages."""
        options = {"pool": None, "force": False, **options}
        request = submission.request(
            [str(one) for one in assets], partition, upstream=upstream, **options
        )
        run_id, _ = submission.record(self.runtime, request, None, None, driver="celery", key=None)
        self.coordinate(run_id)
        return RunHandle(run_id, self.runtime)

    def backfill(self, *assets: Any, partitions: Any = "all", **options: Any) -> BackfillHandle:
        """Submit a backfill, and keep its messages."""
        terms = {k: options.pop(k) for k in ("max_parallel", "stop_ratio", "hours") if k in options}
        names = [str(one) for one in assets]
        options = {"force": False, "order": "oldest", **options}
        request = backfills.request_of(names, partitions, **options)
        made = backfills.record(self.runtime, request, **terms)
        self.coordinate(made.run.id)
        return made

    def coordinate(self, run_id: UUID) -> None:
        """Be the coordinator of a run, and of those that it wakes."""
        woken: list[UUID] = []
        coordinator.coordinate(self.runtime, run_id, self._publish, woken.append)
        for other in woken:
            self.coordinate(other)

    def _publish(self, canvas: Canvas, dispatched: Mapping[int, DispatchedStep]) -> None:
        self.messages += [dispatched[member] for member in members(canvas)]

    def work(self) -> None:
        """Work on all messages, and on what follows from them."""
        while self.messages:
            self._work_on(self.messages.pop(0))

    def work_on(self, asset: Any) -> None:
        """Work on the first message of an asset alone."""
        message = next(one for one in self.messages if one.asset == str(asset))
        self.messages.remove(message)
        self._work_on(message)

    def _work_on(self, message: DispatchedStep) -> None:
        self._follow(
            execute(self.runtime, message.id, message.canvas, worker="local", park_after=-1)
        )

    def carry_on(self, gate_id: int) -> None:
        """Be the continuation of a gate, and work on what follows from it."""
        kind = self.gate(gate_id).kind
        match continuation.carry_on(self.runtime, kind, gate_id, worker="local"):
            case Carried(step_id, canvas):
                self._follow(continuation.run(self.runtime, step_id, canvas, worker="local"))
            case Freed(run_id):
                self.coordinate(run_id)
        self.work()

    def _follow(self, ended: Any) -> None:
        if isinstance(ended, Ended):
            for run_id in ended.wake:
                self.coordinate(run_id)

    def open_gate(self) -> int:
        """Return the only gate that is open."""
        with self.runtime.ledger.begin() as conn:
            query = text("SELECT id FROM flowstone.gates WHERE state = 'open'")
            return int(conn.scalars(query).one())

    def newest_gate(self) -> int:
        """Return the gate that was asked for last."""
        with self.runtime.ledger.begin() as conn:
            return int(conn.scalar(text("SELECT max(id) FROM flowstone.gates")) or 0)

    def gate(self, gate_id: int) -> Gate:
        """Return a gate as it is now."""
        with self.runtime.ledger.begin() as conn:
            found = gates.get(conn, gate_id)
        assert found is not None
        return found.gate

    def close(self, gate_id: int, state: GateState, **values: Any) -> None:
        """Decide, and leave the step where it is."""
        with self.runtime.ledger.begin() as conn:
            asked = gates.lock(conn, gate_id)
            assert asked is not None
            assert gates.close(conn, asked, state, **{"by": "ann", **values})

    def decide(self, gate_id: int, state: GateState, **values: Any) -> None:
        """Decide, and carry the step on."""
        self.close(gate_id, state, **values)
        self.carry_on(gate_id)

    def step(self, run: RunHandle, asset: Any) -> Any:
        """Return the row of an unpartitioned step."""
        with self.runtime.ledger.begin() as conn:
            query = text("SELECT * FROM flowstone.steps WHERE run_id = :run AND asset = :asset")
            return conn.execute(query, {"run": run.id, "asset": str(asset)}).one()
