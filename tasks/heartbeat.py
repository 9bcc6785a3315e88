"""The heartbeat of this worker: from when it takes messages until it takes no more."""

from __future__ import annotations

import os
import time
from typing import Any

from celery.signals import worker_ready, worker_shutting_down
from celery.worker import state

from flowstone import __version__, runtime
from flowstone.heartbeat import Heartbeat
from flowstone.store.workers import Work

_beating: dict[int, Heartbeat] = {}
"""By process, as one that is forked from a worker's main process is none itself."""


@worker_ready.connect
def begin(sender: Any, **_: object) -> None:  # noqa: ANN401 - Celery has no types
    """Report the worker, whose consumer is `sender`."""
    beat = Heartbeat(
        lambda: runtime.current().ledger,
        sender.hostname,
        lambda: _consumed(sender),
        lambda: _work(sender),
    )
    _beating[os.getpid()] = beat
    beat.start()


def _consumed(consumer: Any) -> list[str]:  # noqa: ANN401 - Celery has no types
    # Asked each time: `celery control add_consumer` and `cancel_consumer` change it.
    return sorted(queue.name for queue in consumer.task_consumer.queues)


def _work(consumer: Any) -> Work:  # noqa: ANN401 - Celery has no types
    return Work(
        version=__version__,
        # Autoscaling changes it.
        processes=consumer.pool.num_processes,
        busy=len(state.active_requests),
        taken=state.all_total_count[0],
        clock=time.time(),
    )


@worker_shutting_down.connect
def leave(**_: object) -> None:
    """Let the worker count as gone while it finishes what it has begun."""
    if (beat := _beating.get(os.getpid())) is not None:
        beat.leave()


def stop() -> None:
    """End the heartbeat of this process, if it has one."""
    if (beat := _beating.pop(os.getpid(), None)) is not None:
        beat.stop()
