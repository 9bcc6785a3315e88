"""Runs one scenario: submits, lets the faults happen, and waits until all has come to its end."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Final
from uuid import UUID

import flowstone
from flowstone import RunHandle, RunState
from flowstone.errors import FlowStoneError, RunEnded
from flowstone.states import FINAL_RUN_STATES
from tests.chaos import faults, injected
from tests.chaos.cluster import Cluster
from tests.chaos.world import Fault, Request, Scenario

DEADLINE: Final = 60.0
"""Seconds in which all runs must have ended, after the last fault."""

POLL_SECONDS: Final = 0.03


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

    def play(self) -> Played:
        """Return when all runs have ended; fail where they do not."""
        scenario, cluster = self._played.scenario, self._cluster
        began = time.monotonic()
        for fault in scenario.faults:
            self._at(began + fault.at, partial(self._begin, fault))
        for request in scenario.requests:
            self._submit(request, began)
        last = began
        while self._agenda or self._going():
            if self._agenda and self._agenda[0][0] <= time.monotonic():
                heapq.heappop(self._agenda)[2]()
                last = time.monotonic()
            assert time.monotonic() < last + DEADLINE, self._told()
            time.sleep(POLL_SECONDS)
        self._played.recovered = time.monotonic() - last
        self._played.faults = [f.kind for f in scenario.faults if faults.came(cluster, f)]
        injected.withdraw(cluster.orders)
        # All that was ended has been started again: what is not there has ended by itself.
        assert not cluster.ended(), cluster.ended()
        return self._played

    def _at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (moment, next(self._order), action))

    def _begin(self, fault: Fault) -> None:
        lasts, end = faults.begin(self._cluster, fault)
        if lasts:
            self._at(time.monotonic() + lasts, end)

    def _submit(self, request: Request, began: float) -> None:
        handle = flowstone.materialize_all(
            self._played.scenario.targets,
            max_in_flight=request.window,
            on_conflict=request.on_conflict,  # type: ignore[arg-type] # drawn from the choices
        )
        self._played.handles.append(handle)
        self._open.append(handle)
        if request.cancel_at is not None:
            self._at(began + request.cancel_at, lambda: self._cancel(handle))

    def _cancel(self, handle: RunHandle) -> None:
        """Cancel a run; once it has ended, it is resumed, and what resumes it is waited for."""
        try:
            handle.cancel(grace=0.5)
        except RunEnded:
            return
        except FlowStoneError:
            self._at(time.monotonic() + 0.3, lambda: self._cancel(handle))
            return
        self._played.cancelled.append(handle)
        self._played.handles.remove(handle)
        self._at(time.monotonic() + 0.1, lambda: self._resume(handle))

    def _resume(self, handle: RunHandle) -> None:
        state = self._state(handle)
        if state == RunState.CANCELLED:
            try:
                resumed = handle.resume()
            except FlowStoneError:
                state = None
            else:
                self._played.handles.append(resumed)
                self._played.resumed[resumed.id] = handle.id
                self._open.append(resumed)
                return
        if state is None or state not in FINAL_RUN_STATES:
            self._at(time.monotonic() + 0.1, lambda: self._resume(handle))

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
