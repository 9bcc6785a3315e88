"""Who gets the slots that are free: the most urgent first, and else everybody in turn. Pure."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from flowstone.limits import is_pool


@dataclass(frozen=True)
class Group:
    """Ready steps of a run that take the same slots."""

    run_id: UUID
    takes: Mapping[str, int]
    """Slots for each step, by the key of the limit."""
    waiting: int
    level: int
    """How urgent the run is, 0 for the most urgent."""
    since: datetime
    """When the run was submitted."""


@dataclass(frozen=True)
class Slots:
    """The slots of one limit."""

    total: int
    free: int


def share_out(
    groups: Sequence[Group],
    slots: Mapping[str, Slots],
    held: Mapping[tuple[UUID, str], int],
    room: Mapping[UUID, int],
) -> list[int]:
    """Return for each group how many of its steps may be dispatched now.

    One step after the other goes to the group whose run is the most urgent, then to the one
    whose run holds the least of the scarcest of its slots, then to the one that has waited
    for longest. `held` tells what each run holds by key, `room` how many steps its window
    has room for. Where the turn comes to a step that does not fit, the slots that it lacks
    are kept for it, so that heavy steps do not starve; one that could never fit is left out.
    """
    free = {key: one.free for key, one in slots.items()}
    holds = Counter(dict(held))
    left = dict(room)
    granted = [0] * len(groups)
    closed: set[str] = set()

    def turn(at: int) -> tuple[int, int, datetime, int]:
        group = groups[at]
        most = max(holds[group.run_id, key] for key in group.takes)
        return group.level, most, group.since, at

    queue = [turn(at) for at, group in enumerate(groups) if _ever_fits(group, slots)]
    heapq.heapify(queue)
    while queue:
        before = heapq.heappop(queue)
        at = before[-1]
        group = groups[at]
        now = turn(at)
        if now != before:
            # Another group of the run has had its turn.
            heapq.heappush(queue, now)
            continue
        if granted[at] == group.waiting or left.get(group.run_id, 0) <= 0:
            continue
        lacking = {key for key, count in group.takes.items() if free[key] < count}
        if lacking or closed.intersection(group.takes):
            # What waits for a limit of its own could not use the slots of a pool.
            closed |= {key for key in lacking if not is_pool(key)} or lacking
            continue
        for key, count in group.takes.items():
            free[key] -= count
            holds[group.run_id, key] += count
        granted[at] += 1
        left[group.run_id] -= 1
        heapq.heappush(queue, turn(at))
    return granted


def _ever_fits(group: Group, slots: Mapping[str, Slots]) -> bool:
    return all(key in slots and count <= slots[key].total for key, count in group.takes.items())
