"""The heartbeat of this worker: from when it takes messages until it takes no more."""

from __future__ import annotations

import os
from typing import Any

from celery.signals import worker_ready, worker_shutting_down

from flowstone import runtime
from flowstone.heartbeat import Heartbeat

_beating: dict[int, Heartbeat] = {}
"""By process, as one that is forked from a worker's main process is none itself."""


@worker_ready.connect
def begin(sender: Any, **_: object) -> None:  # noqa: ANN401 - Celery has no types
    """Report the worker, whose consumer is `sender`."""
    beat = Heartbeat(lambda: runtime.current().ledger, sender.hostname, lambda: _consumed(sender))
    _beating[os.getpid()] = beat
    beat.start()


def _consumed(consumer: Any) -> list[str]:  # noqa: ANN401 - Celery has no types
    # Asked each time: `celery control add_consumer` and `cancel_consumer` change it.
    return sorted(queue.name for queue in consumer.task_consumer.queues)


@worker_shutting_down.connect
def leave(**_: object) -> None:
    """Let the worker count as gone while it finishes what it has begun."""
    if (beat := _beating.get(os.getpid())) is not None:
        beat.leave()


def stop() -> None:
    """End the heartbeat of this process, if it has one."""
    if (beat := _beating.pop(os.getpid(), None)) is not None:
        beat.stop()
