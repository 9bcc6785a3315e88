"""What a task does after its step: go on with the run, and tell Celery truthfully how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn
from uuid import UUID

from celery import Task
from celery.exceptions import Ignore, Retry
from celery.utils.serialization import get_pickleable_exception

from flowstone import coordinator, runtime
from flowstone.approval import Ask
from flowstone.canvas import Publisher
from flowstone.claiming import Early
from flowstone.errors import BrokerUnavailable, FlowStoneError, LedgerUnavailable
from flowstone.execution import Ended, Fenced
from flowstone.log import get_logger
from flowstone.outcome import Failed, Failure, Retrying, Stopped, Void, Waiting
from flowstone.states import DONE_STEP_STATES, GateState, StepState
from flowstone.store import gates
from flowstone.store.steps import Refused
from tasks.app import app

log = get_logger("flowstone.worker")

EARLY_SECONDS = 5
"""How long a retry that has come too early is put off."""


def follow(task: Task, ended: Ended | Fenced | Refused | Early) -> None:
    """Go on with the canvas after a success; else leave it in the way that Flower should show."""
    if not isinstance(ended, Ended):
        _leave(task, ended)
        return
    if isinstance(ended.outcome, Retrying) and not ended.outcome.parked:
        raise task.retry(exc=ended.error, countdown=ended.outcome.delay)
    go_on(ended.wake)
    match ended.outcome:
        case Waiting(ask=ask):
            _carry_on_at_once(ended.claim.step_id)
            if isinstance(ask, Ask):
                _tell_at_once()
            # The ledger keeps the step, and the continuation is a task of its own.
            raise Retry(exc=_Waits(type(ask).__name__.removesuffix("Ask"), ask.message))
        case Void(reason):
            raise Retry(exc=_Waits("Void", reason))
        case Stopped():
            _leave_as_revoked(task)
        case Retrying(delay=delay):
            # What task.retry() raises, but without its message: the ledger keeps the step.
            raise Retry(exc=ended.error, when=delay)
        case Failed(failure):
            raise _as_celery_can_tell(ended.error, failure) from None


def _leave(task: Task, ended: Fenced | Refused | Early) -> None:
    """End a task that has run nothing; return where its canvas goes on nevertheless."""
    match ended:
        case Early():
            _put_off(task, ended)
        case Refused(state) if state in DONE_STEP_STATES:
            # A second copy: the first may have died before it could send what comes next.
            return
        case Refused(StepState.RETRYING):
            # The clock of this worker is ahead of the ledger's: the retry is not due yet.
            raise task.retry(countdown=EARLY_SECONDS)
        case Refused(StepState.CANCELLED):
            _leave_as_revoked(task)
    raise Ignore


def _as_celery_can_tell(error: BaseException | None, failure: Failure) -> Exception:
    """Return the error of a step, or one that says the same where Celery would lose its text.

    SystemExit would stop the worker. Of an error that cannot be pickled, such as those of
    urllib, Celery tells the nearest class that can be, which for that is an empty OSError.
    """
    if isinstance(error, Exception) and get_pickleable_exception(error) is error:
        return error
    told = FlowStoneError(f"{failure.type}: {failure.message}")
    return told if error is None else told.with_traceback(error.__traceback__)


def go_on(run_ids: Iterable[UUID]) -> None:
    """Go on with runs, of which a step has ended perhaps."""
    publisher = Publisher(app)
    for run_id in run_ids:
        coordinator.go_on_or_wake(runtime.current(), run_id, publisher.publish, publisher.wake)


def _carry_on_at_once(step_id: int) -> None:
    """Send the continuation of a step whose signal came before it has begun to wait.

    Where nobody could, the reconciler finds it.
    """
    try:
        with runtime.current().ledger.begin() as conn:
            asked = gates.of_step(conn, step_id)
        if asked is not None and asked.gate.state is GateState.RECEIVED:
            Publisher(app).carry_on(asked)
    except (BrokerUnavailable, LedgerUnavailable) as error:
        log.warning("a signal has come, and its step goes on later", error=error.message)


def _tell_at_once() -> None:
    """Have people told that they are asked, before beat sends for that."""
    try:
        Publisher(app).notify()
    except BrokerUnavailable as error:
        log.warning("people are told as soon as the broker is back", error=error.message)


class _Waits(Exception):
    """What Flower shows next to RETRY of a step that waits for people, or for a signal."""


class _WaitsForItsTurn(Exception):
    """What Flower shows next to RETRY."""


def _put_off(task: Task, early: Early) -> NoReturn:
    """Let the step come again in its place in the canvas, unless it waits in the ledger."""
    reason = _WaitsForItsTurn(early.key)
    if not early.has_left:
        raise task.retry(exc=reason, countdown=early.wait)
    go_on(early.wake)
    raise Retry(exc=reason, when=early.wait)


def _leave_as_revoked(task: Task) -> NoReturn:
    """Leave the task without a result: the chain behind it ends, a chord does not complete."""
    # Ignored tasks send no event of their own, and Flower would show them as started for ever.
    task.send_event("task-revoked", terminated=False, signum=None, expired=False)
    raise Ignore
