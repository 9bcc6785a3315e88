"""Runs one scenario: submits, lets the faults happen, and waits until all has come to its end."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Final
from uuid import UUID, uuid4

from sqlalchemy import text

import flowstone
from flowstone import RunHandle, RunState, runtime
from flowstone.errors import FlowStoneError, LedgerUnavailable, RunEnded
from flowstone.states import FINAL_RUN_STATES
from tests.chaos import faults, injected, people
from tests.chaos.cluster import Cluster
from tests.chaos.faults import Effect
from tests.chaos.world import Fault, Request, Scenario

DEADLINE: Final = 60.0
"""Seconds in which all runs must have ended, after the last fault."""

POLL_SECONDS: Final = 0.03
RETRY_SECONDS: Final = 0.2


@dataclass
class Played:
    """What became of a scenario."""

    scenario: Scenario
    handles: list[RunHandle] = field(default_factory=list)
    """The runs; of one that was cancelled, that which resumed it."""
    cancelled: list[RunHandle] = field(default_factory=list)
    resumed: dict[UUID, UUID] = field(default_factory=dict)
    """By the run that resumes another, that other one."""
    faults: list[str] = field(default_factory=list)
    """The kinds of those that have come about; some are ordered, and nobody gets to their point."""
    recovered: float = 0.0
    """Seconds from the end of the last fault until all runs had ended."""


class Director:
    """Plays one scenario on a cluster. All of it in the main thread, as processes are started."""

    def __init__(self, cluster: Cluster, scenario: Scenario) -> None:
        self._cluster = cluster
        self._played = Played(scenario)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._open: list[RunHandle] = []
        self._begun: list[Fault] = []
        self._last = 0.0

    def play(self) -> Played:
        """Return when all runs have ended; fail where they do not."""
        scenario, cluster = self._played.scenario, self._cluster
        began = self._last = time.monotonic()
        for fault in scenario.faults:
            self._at(began + fault.at, partial(self._begin, fault))
        for request in scenario.requests:
            self._at(began + request.at, partial(self._submit, request, str(uuid4())))
        while self._agenda or self._going():
            if self._agenda and self._agenda[0][0] <= time.monotonic():
                heapq.heappop(self._agenda)[2]()
            assert time.monotonic() < self._last + DEADLINE, self._told()
            people.decide()
            time.sleep(POLL_SECONDS)
        self._played.recovered = time.monotonic() - self._last
        self._played.faults = [f.kind for f in self._begun if faults.came(cluster, f)]
        injected.withdraw(cluster.orders)
        # All that was ended has been started again: what is not there has ended by itself.
        assert not cluster.ended(), cluster.ended()
        return self._played

    def _at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (moment, next(self._order), action))

    def _in(self, seconds: float, action: Callable[[], None]) -> None:
        self._at(time.monotonic() + seconds, action)

    def _begin(self, fault: Fault) -> None:
        effect = faults.begin(self._cluster, fault)
        if effect is None:
            return
        self._begun.append(fault)
        self._last = time.monotonic()
        if effect.lasts:
            self._in(effect.lasts, partial(self._end, effect))

    def _end(self, effect: Effect) -> None:
        effect.end()
        self._last = time.monotonic()

    def _submit(self, request: Request, key: str) -> None:
        """Submit a run; where the ledger is away, once more, and never twice for the key."""
        try:
            handle = flowstone.materialize_all(
                self._played.scenario.targets,
                max_in_flight=request.window,
                on_conflict=request.on_conflict,  # type: ignore[arg-type] # one of the choices
                idempotency_key=key,
            )
        except LedgerUnavailable:
            self._in(RETRY_SECONDS, partial(self._submit, request, key))
            return
        self._last = time.monotonic()
        self._played.handles.append(handle)
        self._open.append(handle)
        if request.cancel_at is not None:
            self._in(request.cancel_at, partial(self._cancel, handle))

    def _cancel(self, handle: RunHandle) -> None:
        """Cancel a run; once it has ended, it is resumed, and what resumes it is waited for."""
        try:
            handle.cancel(grace=0.5)
        except RunEnded:
            return
        except LedgerUnavailable:
            self._in(RETRY_SECONDS, partial(self._cancel, handle))
            return
        self._played.cancelled.append(handle)
        self._played.handles.remove(handle)
        self._resume(handle)

    def _resume(self, handle: RunHandle) -> None:
        try:
            if handle.status() in FINAL_RUN_STATES:
                self._went_on(handle, self._resumed(handle) or handle.resume())
                return
        except LedgerUnavailable:
            pass
        self._in(RETRY_SECONDS, partial(self._resume, handle))

    def _resumed(self, handle: RunHandle) -> RunHandle | None:
        """Return the run that resumes another one already: the answer may have been lost."""
        here = runtime.current()
        query = text("SELECT id FROM flowstone.runs WHERE resumed_from = :id")
        with here.ledger.begin() as conn:
            found: UUID | None = conn.scalar(query, {"id": handle.id})
        return None if found is None else RunHandle(found, here)

    def _went_on(self, old: RunHandle, new: RunHandle) -> None:
        self._last = time.monotonic()
        self._played.handles.append(new)
        self._played.resumed[new.id] = old.id
        self._open.append(new)

    def _state(self, handle: RunHandle) -> RunState | None:
        try:
            return handle.status()
        except FlowStoneError:
            return None

    def _going(self) -> bool:
        self._open = [h for h in self._open if self._state(h) not in FINAL_RUN_STATES]
        return bool(self._open)

    def _told(self) -> str:
        """Return what hangs, for whoever has to find out why."""
        return "\n".join(["the runs do not come to their end", *self._lines()])

    def _lines(self) -> Iterator[str]:
        yield repr(self._played.scenario)
        for handle in self._open:
            yield f"{handle.id}: {self._state(handle)}"
            try:
                for asset, states in handle.progress().steps.items():
                    yield f"  {asset}: {dict(states)}"
            except FlowStoneError as error:
                yield f"  {error}"
