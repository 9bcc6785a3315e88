"""The simulator of runs with a clock: how long a run takes on so many slots, in seconds."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from itertools import count

from tests.core.run_simulator import Due, Message, Run, Wake

STEP_OVERHEAD = 0.0071
"""What a step costs its slot beside its work: benchmarks/README.md has 281 steps a second that do
nothing, on two processes."""

COORDINATION = 0.0085
"""The median time of `flowstone.coordinate` in the worker's log of the benchmark of makespans."""


class Clock:
    """A run on `slots` processes that take messages as those of Celery's worker do.

    A free process takes the oldest message of a queue, and the two queues take turns. A
    step occupies it for its duration and `overhead`, the coordinator for `coordination`;
    what they publish is on its queue when they end.
    """

    def __init__(
        self,
        run: Run,
        durations: Mapping[int, float],
        slots: int,
        overhead: float = STEP_OVERHEAD,
        coordination: float = COORDINATION,
    ) -> None:
        self.run = run
        self.idle = 0.0
        """Seconds, summed over slots, that one was free while a step was ready."""
        self._durations = durations
        self._slots = slots
        self._overhead = overhead
        self._coordination = coordination
        self._ends: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._turn: type[Wake | Message] = Wake

    def play(self) -> float:
        """Play the run to its end, and return its makespan."""
        now = 0.0
        while self._fill(now):
            end, _, finish = heapq.heappop(self._ends)
            free = self._slots - len(self._ends) - 1
            self.idle += min(free, len(self.run.ready())) * (end - now)
            now = end
            finish()
        return now

    def _fill(self, now: float) -> bool:
        """Give the free slots what there is; return whether anything is under way."""
        while len(self._ends) < self._slots and (message := self._take()) is not None:
            seconds, finish = self._begin(message)
            heapq.heappush(self._ends, (now + seconds, next(self._order), finish))
        return bool(self._ends)

    def _begin(self, message: Wake | Message) -> tuple[float, Callable[[], None]]:
        if isinstance(message, Wake):
            return self._coordination, self.run.coordinate
        self.run.deliver(message)
        assert self.run.running == [message], "nothing comes twice here"
        self.run.running.clear()
        seconds = self._durations[message.step] + self._overhead
        return seconds, lambda: self.run.succeed(message)

    def _take(self) -> Wake | Message | None:
        """Take the oldest message of the queue whose turn it is, or else of the other."""
        oldest: dict[type[Wake | Message], int] = {}
        for at, message in enumerate(self.run.messages):
            assert not isinstance(message, Due)
            oldest.setdefault(type(message), at)
        if not oldest:
            return None
        kind = self._turn if self._turn in oldest else next(iter(oldest))
        self._turn = Message if kind is Wake else Wake
        taken = self.run.messages.pop(oldest[kind])
        assert not isinstance(taken, Due)
        return taken
