"""`flowstone.step`: run one step of a canvas, and tell Celery truthfully how it ended."""

from __future__ import annotations

from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Ignore, Retry

from flowstone import coordinator, runtime
from flowstone.canvas import Publisher
from flowstone.errors import LedgerUnavailable
from flowstone.execution import Ended, Fenced, execute
from flowstone.messages import STEP, StepMessage, parse
from flowstone.outcome import Failed, Retrying, Stopped
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
    except LedgerUnavailable as error:
        raise self.retry(exc=error, countdown=5) from error
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
    publisher = Publisher(app)
    for run_id in ended.wake:
        coordinator.go_on_or_wake(runtime.current(), run_id, publisher.publish, publisher.wake)
    match ended.outcome:
        case Stopped():
            _leave_as_revoked(task)
        case Retrying(delay=delay):
            # What task.retry() raises, but without its message: the ledger keeps the step.
            raise Retry(exc=ended.error, when=delay)
        case Failed(failure):
            # SystemExit would stop the worker.
            error = ended.error
            raise error if isinstance(error, Exception) else RuntimeError(failure.message)


def _leave_as_revoked(task: Task) -> NoReturn:
    """Leave the task without a result: the chain behind it ends, a chord does not complete."""
    # Ignored tasks send no event of their own, and Flower would show them as started for ever.
    task.send_event("task-revoked", terminated=False, signum=None, expired=False)
    raise Ignore
