"""`flowstone.step`: run one step of a canvas, and tell Celery truthfully how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn
from uuid import UUID

from celery import Task
from celery.exceptions import Ignore, Retry
from celery.utils.serialization import get_pickleable_exception

from flowstone import coordinator, runtime
from flowstone.canvas import Publisher
from flowstone.claiming import Early
from flowstone.errors import FlowStoneError, LedgerUnavailable, WrongMigration
from flowstone.execution import Ended, Fenced, execute
from flowstone.messages import STEP, StepMessage, parse
from flowstone.outcome import Failed, Failure, Retrying, Stopped
from flowstone.states import DONE_STEP_STATES, StepState
from flowstone.store.steps import Refused
from tasks.app import app
from tasks.requests import StepTask

EARLY_SECONDS = 5
"""How long a retry that has come too early is put off."""


@app.task(name=STEP, bind=True, base=StepTask, max_retries=None)
def step(self: Task, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - parsed below
    """Run the step. The result is always None: a chord counts two different ones twice."""
    message = parse(STEP, StepMessage, args, kwargs)
    here = runtime.current()
    try:
        ended = execute(
            here,
            message.step_id,
            message.canvas,
            worker=self.request.hostname,
            park_after=here.settings.park_after,
        )
    except (LedgerUnavailable, WrongMigration) as error:
        # The schema was upgraded while this worker ran: one of that version takes the message.
        raise self.retry(exc=error, countdown=5) from error
    if isinstance(ended, Early):
        _put_off(self, ended)
    _follow(self, ended)


def _follow(task: Task, ended: Ended | Fenced | Refused) -> None:
    """Go on with the canvas after a success; else leave it in the way that Flower should show."""
    match ended:
        case Refused(state) if state in DONE_STEP_STATES:
            # A second copy: the first may have died before it could send what comes next.
            return
        case Refused(StepState.RETRYING):
            # The clock of this worker is ahead of the ledger's: the retry is not due yet.
            raise task.retry(countdown=EARLY_SECONDS)
        case Refused(StepState.CANCELLED):
            _leave_as_revoked(task)
        case Refused() | Fenced():
            raise Ignore
        case Ended(outcome=Retrying(delay=delay, parked=False), error=error):
            raise task.retry(exc=error, countdown=delay)
    _go_on(ended.wake)
    match ended.outcome:
        case Stopped():
            _leave_as_revoked(task)
        case Retrying(delay=delay):
            # What task.retry() raises, but without its message: the ledger keeps the step.
            raise Retry(exc=ended.error, when=delay)
        case Failed(failure):
            raise _as_celery_can_tell(ended.error, failure) from None


def _as_celery_can_tell(error: BaseException | None, failure: Failure) -> Exception:
    """Return the error of a step, or one that says the same where Celery would lose its text.

    SystemExit would stop the worker. Of an error that cannot be pickled, such as those of
    urllib, Celery tells the nearest class that can be, which for that is an empty OSError.
    """
    if isinstance(error, Exception) and get_pickleable_exception(error) is error:
        return error
    told = FlowStoneError(f"{failure.type}: {failure.message}")
    return told if error is None else told.with_traceback(error.__traceback__)


def _go_on(run_ids: Iterable[UUID]) -> None:
    publisher = Publisher(app)
    for run_id in run_ids:
        coordinator.go_on_or_wake(runtime.current(), run_id, publisher.publish, publisher.wake)


class _WaitsForItsTurn(Exception):
    """What Flower shows next to RETRY."""


def _put_off(task: Task, early: Early) -> NoReturn:
    """Let the step come again in its place in the canvas, unless it waits in the ledger."""
    reason = _WaitsForItsTurn(early.key)
    if not early.has_left:
        raise task.retry(exc=reason, countdown=early.wait)
    _go_on(early.wake)
    raise Retry(exc=reason, when=early.wait)


def _leave_as_revoked(task: Task) -> NoReturn:
    """Leave the task without a result: the chain behind it ends, a chord does not complete."""
    # Ignored tasks send no event of their own, and Flower would show them as started for ever.
    task.send_event("task-revoked", terminated=False, signum=None, expired=False)
    raise Ignore
