"""How a worker stops: what runs may end for a while, and is then handed back to the ledger.

Celery itself waits for running tasks for ever (warm shutdown), or for none (cold shutdown), and
in neither case does the ledger hear of what was cut off. Its soft shutdown sleeps for the whole
time in which tasks might end, and does not look at their results meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

from celery import bootsteps
from celery.concurrency.solo import TaskPool as SoloPool
from celery.signals import worker_shutdown, worker_shutting_down
from celery.worker import state

from flowstone import runtime
from flowstone.log import get_logger
from tasks.requests import StepRequest, asked, cold, cut_off, hand_back

log = get_logger("flowstone.worker")

CLEAN_UP_SECONDS: Final = 3.0
"""How long a process may clean up after its step was handed back; then it is killed."""

QUIET_SECONDS: Final = 3.0
"""The most that is waited for the worker to take no more messages."""


class GracefulStop(bootsteps.StartStopStep):  # type: ignore[misc] # Celery has no types
    """Hands back what a worker still runs FLOWSTONE_STOP_SECONDS after it was asked to stop.

    That happens in a thread of its own, as the main one waits for what runs, or runs it.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(worker, **options)
        self._worker = worker
        self._taken: tuple[Any, ...] = ()
        self._quiet = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="flowstone-stop", daemon=True)
        # Held while something is handed back.
        self._busy = threading.Lock()
        self._ended = False

    def start(self, worker: Any) -> None:  # noqa: ANN401, ARG002 - the signature is Celery's
        """Begin to listen; but have no thread where processes are still to be forked."""
        worker_shutdown.connect(self._finish, weak=False)
        if not self._forks:
            worker_shutting_down.connect(lambda **_: asked.set(), weak=False)
            self._thread.start()

    def close(self, worker: Any) -> None:  # noqa: ANN401, ARG002 - the signature is Celery's
        """Begin the time in which what runs may end; Celery takes no more messages."""
        # Celery forgets those that are with a process, and have not been heard of from there.
        self._taken = tuple(state.requests.values())
        if state.should_terminate is not None and state.should_terminate is not False:
            self._finish()
            return
        asked.set()
        if self._forks:
            self._thread.start()

    def stop(self, worker: Any) -> None:  # noqa: ANN401, ARG002
        """Give back what was not begun, which else waits until this worker has ended."""
        self._give_back()

    @property
    def _forks(self) -> bool:
        return bool(self._worker.pool.uses_semaphore)

    def _wait(self) -> None:
        asked.wait()
        cold.wait(runtime.current().settings.stop_seconds)
        if not cold.is_set():
            self._quiet.wait(QUIET_SECONDS)
        with self._busy:
            if self._ended:
                return
            if not self._quiet.is_set():
                # The main thread is busy: with a step, or with a shutdown that waits for threads.
                self._give_back()
            self._hand_back()
            if self._forks:
                self._end_processes()
            else:
                self._leave()

    def _finish(self, **_: Any) -> None:  # noqa: ANN401
        """Let the worker end, and what a cold shutdown has cut off be handed back before."""
        with self._busy:
            self._ended = True
            if cold.is_set():
                self._hand_back()

    def _give_back(self) -> None:
        """Take no more messages, and give back those of which nothing was begun."""
        # The pool solo runs a step while it takes its message, and asks for no other meanwhile.
        if not isinstance(self._worker.pool, SoloPool):
            with contextlib.suppress(AttributeError):
                _read_what_was_asked_for(self._worker.consumer.task_consumer.channel)
        _requeue(self._taken or tuple(state.requests.values()))
        self._quiet.set()

    def _hand_back(self) -> None:
        requests = {id(r): r for r in (*self._taken, *state.active_requests, *cut_off)}
        try:
            hand_back(
                [r for r in requests.values() if isinstance(r, StepRequest)], self._worker.hostname
            )
        except Exception as error:  # noqa: BLE001 - their leases end, and the reconciler comes
            log.warning("steps are left to the reconciler", error=str(error))

    def _end_processes(self) -> None:
        pool = self._worker.pool
        for request in tuple(state.active_requests):
            if not getattr(request, "is_handed_back", False):
                # Its message goes back to the broker.
                request.cancel(pool, "SIGTERM", emit_retry=False)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in _pids(pool):
                pool.terminate_job(pid, number)
            end = time.monotonic() + CLEAN_UP_SECONDS
            while _pids(pool) and time.monotonic() < end:
                time.sleep(0.05)

    def _leave(self) -> None:
        """End this process at once: nothing else ends a thread."""
        for request in tuple(state.active_requests):
            if getattr(request, "is_handed_back", False):
                with contextlib.suppress(Exception):
                    request.message.ack()
                    request.say_handed_back()
                    request.eventer.flush()
        if self._worker.pidlock:
            self._worker.pidlock.release()
        logging.shutdown()
        os._exit(0)


def _read_what_was_asked_for(channel: Any) -> None:  # noqa: ANN401 - kombu has no types
    """Wait up to a second for the message that Redis may be about to give to this worker.

    Nobody consumes it any more, so kombu gives it back; but it would do so at the very end.
    """
    if getattr(channel, "_in_poll", None):
        with contextlib.suppress(Exception):
            channel._brpop_read()  # noqa: SLF001


def _requeue(requests: Iterable[Any]) -> None:
    for request in requests:
        if request not in state.active_requests and not request.acknowledged:
            # Where the broker is away, it gives the message out again by itself.
            with contextlib.suppress(Exception):
                request.message.requeue()


def _pids(pool: Any) -> list[int]:  # noqa: ANN401 - Celery has no types
    try:
        return list(pool.info["processes"])
    except AttributeError:
        # The main thread has just done with it.
        return []
