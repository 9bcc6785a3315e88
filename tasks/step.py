"""`flowstone.step`: run one step of a canvas, and tell Celery truthfully how it ended."""

from __future__ import annotations

from typing import Any

from celery import Task

from flowstone import runtime
from flowstone.errors import LedgerUnavailable, WrongMigration
from flowstone.execution import execute
from flowstone.messages import STEP, StepMessage, parse
from tasks.app import app
from tasks.following import follow
from tasks.requests import StepTask


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
    follow(self, ended)
