"""A run in the process that asked for it: the worker's functions in a loop, without a broker."""

from __future__ import annotations

import contextlib
import time
from uuid import UUID

from flowstone import continuation, coordinator, planning, reconcile
from flowstone.approval import Ask
from flowstone.claiming import Early
from flowstone.errors import FlowStoneError, LedgerUnavailable
from flowstone.execution import Ended, Fenced, execute
from flowstone.expand import members
from flowstone.handle import POLL_SECONDS, RunHandle
from flowstone.log import get_logger
from flowstone.outbox import wake_others
from flowstone.outcome import Failed, Retrying, Waiting
from flowstone.runtime import Runtime, whoami
from flowstone.states import FINAL_RUN_STATES, StepState
from flowstone.store import awaited, repairs, runs
from flowstone.store.steps import Claim, Refused

log = get_logger("flowstone.inline")


def drive_to_the_end(here: Runtime, handle: RunHandle) -> BaseException | None:
    """Bring a run to its end in this process; whatever goes wrong cancels it.

    Returns the error of the first step that has failed, without secrets, if one has.
    """
    try:
        with here.leases.driven(handle.id):
            return _drive(here, handle)
    except BaseException:
        # Nobody else would go on with it.
        with contextlib.suppress(FlowStoneError):
            handle.cancel(reason="interrupted")
        raise


def _drive(here: Runtime, handle: RunHandle) -> BaseException | None:
    planning.plan_run(here, handle.id)
    pause = _Pause(here, handle.id)
    first: BaseException | None = None
    while handle.status() not in FINAL_RUN_STATES:
        taken = coordinator.take_ready(here, handle.id)
        wake_others(here, taken.others)
        for canvas in taken.canvases:
            for member in members(canvas):
                error = _execute_here(here, handle.id, member, taken.steps[member].canvas)
                first = error if first is None else first
        if not taken.canvases and handle.status() not in FINAL_RUN_STATES:
            # All that is left is joined to steps of other runs, or waits for slots, for its turn
            # or for a retry that is parked.
            pause.wait()
    return first


def watch(here: Runtime, handle: RunHandle) -> None:
    """Wait for the end of a run that another process brings there."""
    pause = _Pause(here)
    while handle.status() not in FINAL_RUN_STATES:
        pause.wait()


class _Pause:
    """Waits for other processes, and now and then looks whether they still live.

    There may be no worker on this machine that would apply the reconciler's rules. `mine` is the
    run that this process drives, whose retries are to go on when they are due.
    """

    def __init__(self, here: Runtime, mine: UUID | None = None) -> None:
        self._here = here
        self._mine = mine
        self._next = self._later()

    def _later(self) -> float:
        return time.monotonic() + self._here.leases.seconds / 3

    def wait(self) -> None:
        """Wait for a moment."""
        time.sleep(POLL_SECONDS)
        if time.monotonic() > self._next:
            self._next = self._later()
            with contextlib.suppress(LedgerUnavailable):
                wake_others(self._here, reconcile.repair(self._here))
        if self._mine is not None:
            with contextlib.suppress(LedgerUnavailable):
                self._here.ledger.in_turn(lambda conn: repairs.due_retries(conn, self._mine))
                self._here.ledger.in_turn(
                    lambda conn: awaited.end(conn, self._mine, actor=whoami())
                )
                continuation.go_on_left(self._here, 0, actor=whoami(), run_id=self._mine)


def _execute_here(here: Runtime, run_id: UUID, step_id: int, canvas: UUID) -> BaseException | None:
    """Run a step with all its attempts; return the error by which it has failed, if it has."""
    while True:
        ended = execute(here, step_id, canvas, worker=whoami())
        if isinstance(ended, Ended | Early):
            wake_others(here, ended.wake - {run_id})
        if isinstance(ended, Ended) and isinstance(ended.outcome, Waiting):
            _say(ended.outcome, ended.claim)
        if isinstance(ended, Ended) and isinstance(ended.error, KeyboardInterrupt):
            raise ended.error
        seconds = _before_next(ended)
        if seconds is None:
            return ended.error if isinstance(ended, Ended) and _has_failed(ended) else None
        if not _wait(here, run_id, seconds):
            return None


def _say(waiting: Waiting, claim: Claim) -> None:
    """Tell people that they are waited for: this process does nothing else until they decide."""
    how = "flowstone approvals list" if isinstance(waiting.ask, Ask) else waiting.ask.name
    log.warning("waits", step=claim.name, message=waiting.ask.message, decide=how)


def _has_failed(ended: Ended) -> bool:
    return isinstance(ended.outcome, Failed)


def _before_next(ended: Ended | Fenced | Refused | Early) -> float | None:
    """Return the seconds to wait before a step is tried again, or None if it is not, here."""
    match ended:
        case Early(has_left=False, wait=wait):
            # In short parts, as its turn may come sooner.
            return min(wait, POLL_SECONDS)
        case Refused(StepState.RETRYING):
            # The clock of this process is ahead of the ledger's: the retry is not due yet.
            return POLL_SECONDS
        case Ended(outcome=Retrying(delay=delay, parked=False)):
            return delay
    return None


def _wait(here: Runtime, run_id: UUID, seconds: float) -> bool:
    """Wait for so long while the run goes on, and return whether it still does."""
    while True:
        part = min(seconds, POLL_SECONDS)
        time.sleep(part)
        seconds -= part
        if not _goes_on(here, run_id):
            return False
        if seconds <= 0:
            return True


def _goes_on(here: Runtime, run_id: UUID) -> bool:
    """Return whether a run has not ended, by its deadline perhaps, and is not to be cancelled."""
    try:
        with here.ledger.begin() as conn:
            run = runs.get(conn, run_id)
        if run.is_late:
            return not coordinator.end_if_late(here, run_id)
    except LedgerUnavailable:
        # It may be back before the waiting is over.
        return True
    return not (run.is_final or run.is_being_cancelled)
