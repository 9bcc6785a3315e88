"""Leases: one thread of a process renews those of all steps that it runs and runs it drives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from flowstone.errors import FlowStoneError
from flowstone.log import get_logger
from flowstone.store import runs, steps
from flowstone.store.ledger import Ledger

log = get_logger("flowstone.leases")


class Leases:
    """The leases that this process holds, each of `seconds`, renewed three times as often.

    The answer to a renewal also tells which attempts should stop.
    """

    def __init__(self, ledger: Ledger, seconds: float) -> None:
        self.seconds = seconds
        self._ledger = ledger
        self._held: set[UUID] = set()
        self._driven: set[UUID] = set()
        self._cancelled: frozenset[UUID] = frozenset()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    @contextmanager
    def held(self, token: UUID) -> Iterator[None]:
        """Keep the lease of a running attempt alive during the block."""
        with self._renewing(self._held, token):
            yield

    @contextmanager
    def driven(self, run_id: UUID) -> Iterator[None]:
        """Keep the lease of an inline run alive during the block."""
        with self._renewing(self._driven, run_id):
            yield

    @contextmanager
    def _renewing(self, kept: set[UUID], id: UUID) -> Iterator[None]:
        with self._lock:
            kept.add(id)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._renew_for_ever, name="flowstone-leases", daemon=True
                )
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                kept.discard(id)

    def is_cancelled(self, token: UUID) -> bool:
        """Return whether an attempt should stop, as far as the last renewal told."""
        return token in self._cancelled

    def close(self) -> None:
        """Stop renewing."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _renew_for_ever(self) -> None:
        while not self._closed.wait(self.seconds / 3):
            for renew in (self._renew_steps, self._renew_runs):
                self._try(renew)

    def _try(self, renew: Callable[[], None]) -> None:
        try:
            renew()
        except FlowStoneError as error:
            # The lease may outlast a database that is away for a moment.
            log.warning("leases not renewed", error=str(error))
        except Exception:
            # Without this thread all that the process runs would count as lost.
            log.exception("leases not renewed")

    def _renew_steps(self) -> None:
        """Renew the leases of all attempts in one statement, however many they are."""
        with self._lock:
            tokens = list(self._held)
        if tokens:
            going_on = self._ledger.in_turn(
                lambda conn: steps.renew(conn, tokens, lease=self.seconds)
            )
            self._cancelled = frozenset(tokens) - going_on

    def _renew_runs(self) -> None:
        """Renew those of all inline runs in another one."""
        with self._lock:
            driven = list(self._driven)
        if driven:
            self._ledger.in_turn(lambda conn: runs.renew(conn, driven, lease=self.seconds))
