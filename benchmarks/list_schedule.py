"""Greedy list scheduling: what dispatch by hand, without any cost, would take on so many slots."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence


def list_schedule(
    upstream: Mapping[int, Sequence[int]],
    durations: Mapping[int, float],
    slots: int,
    overhead: float = 0,
) -> float:
    """Return the makespan of a graph in seconds.

    `upstream` holds the steps that each step waits for, `durations` their seconds, to
    each of which `overhead` is added. Whenever a slot is free it takes the first ready
    step of the list (Graham, "Bounds on Multiprocessing Timing Anomalies", 1969), which
    is here the order in which the steps become ready.
    """
    waits_for = {step: len(above) for step, above in upstream.items()}
    readers: dict[int, list[int]] = {step: [] for step in upstream}
    for step, above in upstream.items():
        for other in above:
            readers[other].append(step)
    ready = deque(step for step, left in waits_for.items() if not left)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            step = ready.popleft()
            heapq.heappush(running, (now + durations[step] + overhead, step))
        now, done = heapq.heappop(running)
        for reader in readers[done]:
            waits_for[reader] -= 1
            if not waits_for[reader]:
                ready.append(reader)
    return now
