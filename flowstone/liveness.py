"""Who is alive, decided from what is known: workers that take nothing, beat, the reconciler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from flowstone.queues import CONTROL_QUEUE
from flowstone.store.workers import Worker

PATIENCE_SECONDS: Final = 30.0
"""How long a worker may take nothing, though it could, and something waits for it."""

SLACK_SECONDS: Final = 15.0
"""How long a message of beat's may take, besides three of its intervals."""


class Beat(StrEnum):
    """What can be said of beat."""

    TICKS = "ticks"
    IS_SILENT = "is silent"
    IS_NOT_HEARD = "is not heard"
    """It may send, but nobody takes what lies in its queue."""
    IS_AWAITED = "is awaited"
    """Those who take what it sends have just started."""


def left_waiting(worker: Worker, waits: Mapping[str, float], held: Mapping[str, int]) -> list[str]:
    """Return the queues of a worker that it takes nothing from, though it should; most have none.

    `waits` says for how many seconds what has been there longest is under way, and `held` how
    many messages the broker has, by queue. It is judged as it was when it was seen last: it then
    had a process free and had taken nothing for a while, from any of its queues, and something
    had been under way for as long. Lost messages are under way, too, so the broker must have one.
    """
    if worker.busy is None or worker.processes is None or worker.busy >= worker.processes:
        return []
    if worker.idle < PATIENCE_SECONDS:
        return []
    return [
        queue
        for queue in worker.queues
        if held.get(queue) and waits.get(queue, 0.0) - worker.silent >= PATIENCE_SECONDS
    ]


def half_dead(
    workers: Iterable[Worker], waits: Mapping[str, float], held: Mapping[str, int]
) -> dict[str, list[str]]:
    """Return the workers that take nothing, each with the queues in which something waits."""
    found = {worker.name: left_waiting(worker, waits, held) for worker in workers}
    return {name: queues for name, queues in found.items() if queues}


def patience_with_beat(interval: float) -> float:
    """Return after how many seconds beat counts as silent that sends each `interval` seconds."""
    return 3 * interval + SLACK_SECONDS


def heard_for(workers: Iterable[Worker], clock: float) -> float | None:
    """Return for how many seconds somebody has taken what beat sends; None if nobody does.

    `clock` is that of the ledger.
    """
    up = (clock - one.started_at.timestamp() for one in workers if CONTROL_QUEUE in one.queues)
    return max(up, default=None)


def of_beat(ticked: float | None, interval: float, held: int, heard: float | None) -> Beat:
    """Return what can be said of beat, whose last message has come `ticked` seconds ago.

    `held` is how many messages lie in its queue: then it is not beat's fault that none comes.
    `heard` is for how many seconds somebody takes them: after a start, none can have come yet.
    """
    if ticked is not None and ticked <= patience_with_beat(interval):
        return Beat.TICKS
    if heard is not None and heard <= patience_with_beat(interval):
        return Beat.IS_AWAITED
    return Beat.IS_NOT_HEARD if held else Beat.IS_SILENT
