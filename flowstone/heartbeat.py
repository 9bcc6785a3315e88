"""The heartbeat of a worker: it tells the ledger that it is there, and what it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from flowstone.errors import FlowStoneError
from flowstone.log import get_logger
from flowstone.store import workers
from flowstone.store.ledger import Ledger
from flowstone.store.workers import Work

log = get_logger("flowstone.heartbeat")


class Heartbeat:
    """A thread of a worker's main process that reports it, until it is stopped.

    It belongs to the process that starts it. A child of that which has been forked has neither
    the thread nor its connection, and does not miss them.
    """

    def __init__(
        self,
        ledger: Callable[[], Ledger],
        name: str,
        queues: Callable[[], Sequence[str]],
        work: Callable[[], Work | None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._queues = queues
        self._work = work
        self._began = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="flowstone-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to report, at once and then as often as it takes."""
        self._thread.start()

    def leave(self) -> None:
        """Let the worker count as gone, as it takes no more messages; do not wait for that."""
        self._stopped.set()

    def stop(self) -> None:
        """Let the worker count as gone, and wait until the ledger says so, if it can be reached."""
        self.leave()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        while not self._stopped.is_set():
            self._try(self._report)
            self._stopped.wait(workers.BEAT_SECONDS)
        self._try(self._remove)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except FlowStoneError as error:
            # A worker may be silent for a while before it counts as gone.
            log.warning("the worker is not reported", worker=self._name, error=error.message)
        except Exception:
            # Without this thread the worker would count as gone, and steps would fail for that.
            log.exception("the worker is not reported", worker=self._name)

    def _report(self) -> None:
        up = time.monotonic() - self._began
        with self._ledger().begin() as conn:
            # What is told is read last, so that its clock is not behind for the way here.
            workers.report(conn, self._name, self._queues(), up=up, work=self._work())

    def _remove(self) -> None:
        with self._ledger().begin() as conn:
            workers.remove(conn, self._name)
