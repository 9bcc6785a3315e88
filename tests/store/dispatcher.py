"""Runs of real definitions whose steps a test begins and ends by hand, one move at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flowstone import coordinator, execution, submission
from flowstone.expand import Canvas, members
from flowstone.outcome import Failed, Retrying, Succeeded
from flowstone.partition import UNPARTITIONED
from flowstone.partition_key import step_name
from flowstone.runtime import Runtime
from flowstone.store import steps
from flowstone.store.dispatch import DispatchedStep
from flowstone.store.steps import Claim
from tests.store.runs_by_hand import FAILURE, MADE_OF, output


class Dispatcher:
    """What the broker and the workers are elsewhere: it keeps the messages until the test acts."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.messages: list[DispatchedStep] = []

    def submit(self, *assets: str, partition: Any = UNPARTITIONED, **options: Any) -> UUID:
        """Record a run, plan it, and dispatch what can be."""
        window = options.pop("max_in_flight", None)
        request = submission.request(
            list(assets), partition, upstream=True, force=True, **{"pool": None, **options}
        )
        run_id, _ = submission.record(
            self.runtime, request, None, window, driver="celery", key=None
        )
        self.coordinate(run_id)
        return run_id

    def coordinate(self, run_id: UUID) -> set[UUID]:
        """Be the coordinator of a run, and of those that it wakes; return all of them."""
        woken = {run_id}
        todo = [run_id]
        while todo:
            others: list[UUID] = []
            coordinator.coordinate(self.runtime, todo.pop(), self._publish, others.append)
            todo += [run for run in others if run not in woken]
            woken.update(others)
        return woken

    def _publish(self, canvas: Canvas, dispatched: Mapping[int, DispatchedStep]) -> None:
        self.messages += [dispatched[member] for member in members(canvas)]

    def dispatched(self) -> Counter[str]:
        """Return how many messages of each asset wait for a worker."""
        return Counter(message.asset for message in self.messages)

    def of(self, run_id: UUID) -> int:
        """Return how many messages of a run wait for a worker."""
        return sum(message.run_id == run_id for message in self.messages)

    def begin(self, asset: str | None = None, run_id: UUID | None = None) -> Claim:
        """Have a worker take the first message, of an asset or a run perhaps."""
        message = next(
            m
            for m in self.messages
            if m.asset == (asset or m.asset) and m.run_id == (run_id or m.run_id)
        )
        self.messages.remove(message)
        with self.runtime.ledger.begin() as conn:
            claim = steps.claim(conn, message.id, message.canvas, worker="w", lease=60)
        assert isinstance(claim, Claim), (step_name(message.asset, message.partition), claim)
        return claim

    def begin_any(self) -> Claim | None:
        """Have a worker take the first message that it can; None if there is none."""
        for _ in range(len(self.messages)):
            try:
                message = self.messages.pop(0)
            except IndexError:
                # Another thread has taken the last one.
                break
            with self.runtime.ledger.begin() as conn:
                claim = steps.claim(conn, message.id, message.canvas, worker="w", lease=60)
            if isinstance(claim, Claim):
                return claim
            # The body of a chord, whose time comes later.
            self.messages.append(message)
        return None

    def succeed(self, claim: Claim) -> frozenset[UUID]:
        return self._end(claim, Succeeded(output(), MADE_OF))

    def fail(self, claim: Claim) -> frozenset[UUID]:
        return self._end(claim, Failed(FAILURE))

    def retry(self, claim: Claim, delay: float) -> frozenset[UUID]:
        return self._end(claim, Retrying(FAILURE, delay, parked=True))

    def _end(self, claim: Claim, outcome: Succeeded | Failed | Retrying) -> frozenset[UUID]:
        """Record how an attempt has ended, and go on as a worker does; return who was woken."""
        assert execution._record(self.runtime, claim, outcome) is not None
        woken = execution._to_wake(self.runtime, claim, outcome)
        for run_id in sorted(woken):
            self.coordinate(run_id)
        return woken
