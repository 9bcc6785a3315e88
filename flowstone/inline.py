"""A run in the process that asked for it: the worker's functions in a loop, without a broker."""

from __future__ import annotations

import contextlib
import time
from uuid import UUID

from flowstone import coordinator, reconcile
from flowstone.claiming import Early
from flowstone.errors import FlowStoneError, LedgerUnavailable
from flowstone.execution import Ended, execute
from flowstone.expand import members
from flowstone.handle import POLL_SECONDS, RunHandle, wake_others
from flowstone.outcome import Failed, Retrying
from flowstone.runtime import Runtime, whoami
from flowstone.states import FINAL_RUN_STATES
from flowstone.store import runs


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
        canvases, steps = coordinator.take_ready(here, handle.id)
        for canvas in canvases:
            for member in members(canvas):
                error = _execute_here(here, handle.id, member, steps[member].canvas)
                first = error if first is None else first
        if not canvases and handle.status() not in FINAL_RUN_STATES:
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
        if isinstance(ended, Early):
            wake_others(here, ended.wake)
            if ended.has_left:
                return None
            # In short parts, as the run may be cancelled meanwhile.
            time.sleep(min(ended.wait, POLL_SECONDS))
            if coordinator.end_if_late(here, run_id):
                return None
            continue
        if isinstance(ended, Ended):
            wake_others(here, ended.wake - {ended.claim.run_id})
        if isinstance(ended, Ended) and isinstance(ended.error, KeyboardInterrupt):
            raise ended.error
        if not (isinstance(ended, Ended) and isinstance(ended.outcome, Retrying)):
            if isinstance(ended, Ended) and isinstance(ended.outcome, Failed):
                return ended.error
            return None
        time.sleep(_until_retry(here, run_id, ended.outcome.delay))
        if coordinator.end_if_late(here, run_id):
            return None


def _until_retry(here: Runtime, run_id: UUID, delay: float) -> float:
    """Return how long to wait: for the delay of the retry, or only to the deadline of the run."""
    with here.ledger.begin() as conn:
        left = runs.get(conn, run_id).seconds_left
    return delay if left is None else max(0.0, min(delay, left))
