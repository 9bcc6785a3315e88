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
from typing import Any, Final

from celery import bootsteps
from celery.signals import worker_shutdown, worker_shutting_down
from celery.worker import state

from flowstone import runtime
from flowstone.log import get_logger
from tasks.requests import StepRequest, cold, cut_off, hand_back

log = get_logger("flowstone.worker")

CLEAN_UP_SECONDS: Final = 3.0
"""How long a process may clean up after its step was handed back; then it is killed."""


class GracefulStop(bootsteps.StartStopStep):  # type: ignore[misc] # Celery has no types
    """Hands back what a worker still runs FLOWSTONE_STOP_SECONDS after it was asked to stop.

    That happens in a thread of its own, as the main one waits for what runs, or runs it.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(worker, **options)
        self._worker = worker
        self._taken: tuple[Any, ...] = ()
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="flowstone-stop", daemon=True)
        # Held while something is handed back.
        self._busy = threading.Lock()
        self._ended = False

    def start(self, worker: Any) -> None:  # noqa: ANN401, ARG002 - the signature is Celery's
        """Begin to listen; but have no thread where processes are still to be forked."""
        worker_shutdown.connect(self._finish, weak=False)
        if not self._forks:
            worker_shutting_down.connect(lambda **_: self._asked.set(), weak=False)
            self._thread.start()

    def close(self, worker: Any) -> None:  # noqa: ANN401, ARG002 - the signature is Celery's
        """Begin the time in which what runs may end; Celery takes no more messages."""
        # Celery forgets those that are with a process, and have not been heard of from there.
        self._taken = tuple(state.requests.values())
        if state.should_terminate is not None and state.should_terminate is not False:
            self._finish()
        elif self._forks:
            self._asked.set()
            self._thread.start()

    @property
    def _forks(self) -> bool:
        return bool(self._worker.pool.uses_semaphore)

    def _wait(self) -> None:
        self._asked.wait()
        cold.wait(runtime.current().settings.stop_seconds)
        with self._busy:
            if self._ended:
                return
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
        with contextlib.suppress(Exception):
            # What was not begun goes to others at once; a broker with connections sees to that
            # by itself, and for what is left here the reconciler looks.
            self._worker.consumer.task_consumer.channel.qos.restore_unacked_once()
        if self._worker.pidlock:
            self._worker.pidlock.release()
        logging.shutdown()
        os._exit(0)


def _pids(pool: Any) -> list[int]:  # noqa: ANN401 - Celery has no types
    try:
        return list(pool.info["processes"])
    except AttributeError:
        # The main thread has just done with it.
        return []
