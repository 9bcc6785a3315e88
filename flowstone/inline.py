"""A run in the process that asked for it: the worker's functions in a loop, without a broker."""

from __future__ import annotations

import contextlib
import time
from uuid import UUID

from flowstone import coordinator, reconcile
from flowstone.claiming import Early
from flowstone.errors import FlowStoneError, LedgerUnavailable
from flowstone.execution import Ended, Fenced, execute
from flowstone.expand import members
from flowstone.handle import POLL_SECONDS, RunHandle, wake_others
from flowstone.outcome import Failed, Retrying
from flowstone.runtime import Runtime, whoami
from flowstone.states import FINAL_RUN_STATES, StepState
from flowstone.store import runs
from flowstone.store.steps import Refused


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
    coordinator.plan_run(here, handle.id)
    pause = _Pause(here)
    first: BaseException | None = None
    while handle.status() not in FINAL_RUN_STATES:
        taken = coordinator.take_ready(here, handle.id)
        wake_others(here, taken.others)
        for canvas in taken.canvases:
            for member in members(canvas):
                error = _execute_here(here, handle.id, member, taken.steps[member].canvas)
                first = error if first is None else first
        if not taken.canvases and handle.status() not in FINAL_RUN_STATES:
            # All that is left is joined to steps of other runs, or waits for slots or its turn.
            pause.wait()
    return first


def watch(here: Runtime, handle: RunHandle) -> None:
    """Wait for the end of a run that another process brings there."""
    pause = _Pause(here)
    while handle.status() not in FINAL_RUN_STATES:
        pause.wait()


class _Pause:
    """Waits for other processes, and now and then looks whether they still live.

    There may be no worker on this machine that would apply the reconciler's rules.
    """

    def __init__(self, here: Runtime) -> None:
        self._here = here
        self._next = self._later()

    def _later(self) -> float:
        return time.monotonic() + self._here.leases.seconds / 3

    def wait(self) -> None:
        """Wait for a moment."""
        time.sleep(POLL_SECONDS)
        if time.monotonic() > self._next:
            self._next = self._later()
            with contextlib.suppress(LedgerUnavailable):
                wake_others(self._here, reconcile.repair(self._here).to_wake)


def _execute_here(here: Runtime, run_id: UUID, step_id: int, canvas: UUID) -> BaseException | None:
    """Run a step with all its attempts; return the error by which it has failed, if it has."""
    while True:
        ended = execute(here, step_id, canvas, worker=whoami())
        if isinstance(ended, Ended | Early):
            wake_others(here, ended.wake - {run_id})
        if isinstance(ended, Ended) and isinstance(ended.error, KeyboardInterrupt):
            raise ended.error
        pause = _before_next(here, run_id, ended)
        if pause is None:
            return ended.error if isinstance(ended, Ended) and _has_failed(ended) else None
        time.sleep(pause)
        if coordinator.end_if_late(here, run_id):
            return None


def _has_failed(ended: Ended) -> bool:
    return isinstance(ended.outcome, Failed)


def _before_next(
    here: Runtime, run_id: UUID, ended: Ended | Fenced | Refused | Early
) -> float | None:
    """Return the seconds to wait before a step is tried again, or None if it is not, here."""
    match ended:
        case Early(has_left=False, wait=wait):
            # In short parts, as the run may be cancelled meanwhile.
            return min(wait, POLL_SECONDS)
        case Refused(StepState.RETRYING):
            # The clock of this process is ahead of the ledger's: the retry is not due yet.
            return POLL_SECONDS
        case Ended(outcome=Retrying(delay=delay)):
            return _until_retry(here, run_id, delay)
    return None


def _until_retry(here: Runtime, run_id: UUID, delay: float) -> float:
    """Return how long to wait: for the delay of the retry, or only to the deadline of the run."""
    with here.ledger.begin() as conn:
        left = runs.get(conn, run_id).seconds_left
    return delay if left is None else max(0.0, min(delay, left))
