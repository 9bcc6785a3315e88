"""How long a run takes on k worker slots, on paper: as dispatched, and by greedy list scheduling.

The rows and messages are those of the simulator of runs, and `expand` is the real one; here
they get a clock. All times are in seconds.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

from tests.core.run_simulator import Due, Message, Run, Wake
from tests.strategies import Dag

Durations = Mapping[int, float]


def list_schedule(dag: Dag, durations: Durations, slots: int, overhead: float = 0) -> float:
    """Return the makespan of greedy list scheduling (Graham, 1969).

    Whenever a slot is free, it takes the first ready step of the list, here in the order in
    which they became ready. Each step takes its duration and `overhead`.
    """
    open_deps = {step: len(ups) for step, ups in dag.items()}
    readers: dict[int, list[int]] = {step: [] for step in dag}
    for step, ups in dag.items():
        for up in ups:
            readers[up].append(step)
    ready = deque(step for step in dag if not dag[step])
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            step = ready.popleft()
            heapq.heappush(running, (now + overhead + durations[step], step))
        now, done = heapq.heappop(running)
        for reader in readers[done]:
            open_deps[reader] -= 1
            if not open_deps[reader]:
                ready.append(reader)
    return now


@dataclass
class Clock:
    """A run on `slots` processes that take messages as Celery's workers do.

    A process takes the oldest message of a queue, and the queues take turns. A step
    occupies it for `overhead` and the step's duration, a wake-up of the coordinator
    for `coordination`; what it publishes lies on its queue when it ends.
    """

    run: Run
    durations: Durations
    slots: int
    overhead: float
    coordination: float
    now: float = 0.0
    wakes: int = 0
    idle_with_work: float = 0.0
    """Seconds that a slot was idle while a step was ready, summed over slots."""
    _ends: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)
    _turn: type[Wake | Message] = Wake

    def play(self) -> float:
        """Return the makespan."""
        while True:
            self._fill()
            if not self._ends:
                return self.now
            end, _, finish = heapq.heappop(self._ends)
            idle = min(self.slots - len(self._ends) - 1, len(self.run.ready()))
            self.idle_with_work += idle * (end - self.now)
            self.now = end
            finish()

    def _fill(self) -> None:
        while len(self._ends) < self.slots and (message := self._take()) is not None:
            if isinstance(message, Wake):
                self.wakes += 1
                self._begin(self.coordination, self.run.coordinate)
            else:
                self._step(message)

    def _step(self, message: Message) -> None:
        self.run.deliver(message)
        if message not in self.run.running:
            self._begin(self.overhead, lambda: None)
            return
        self.run.running.remove(message)
        took = self.overhead + self.durations[message.step]
        self._begin(took, lambda: self.run.succeed(message))

    def _begin(self, seconds: float, finish: Callable[[], None]) -> None:
        heapq.heappush(self._ends, (self.now + seconds, next(self._order), finish))

    def _take(self) -> Wake | Message | None:
        """Take the oldest message of the queue whose turn it is, or of the other one."""
        kinds: tuple[type[Wake | Message], ...] = (
            (Wake, Message) if self._turn is Wake else (Message, Wake)
        )
        for kind in kinds:
            for at, message in enumerate(self.run.messages):
                assert not isinstance(message, Due)
                if isinstance(message, kind):
                    self._turn = Message if kind is Wake else Wake
                    del self.run.messages[at]
                    return message
        return None
