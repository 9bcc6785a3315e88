"""The continuations: carry a step on after its approval was decided, or its signal has come."""

from __future__ import annotations

from typing import Any

from celery import Task

from flowstone import continuation, runtime
from flowstone.continuation import Carried, Freed
from flowstone.errors import LedgerUnavailable, WrongMigration
from flowstone.gate import Kind
from flowstone.messages import (
    CONTINUE_AFTER_APPROVAL,
    CONTINUE_AFTER_SIGNAL,
    ApprovalMessage,
    SignalMessage,
    parse,
)
from tasks.app import app
from tasks.following import follow, go_on
from tasks.requests import ContinuationTask


@app.task(name=CONTINUE_AFTER_APPROVAL, bind=True, base=ContinuationTask, max_retries=None)
def continue_after_approval(self: Task, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - parsed below
    """Commit what was approved, or call the asset's `on_approved` or `on_rejected`."""
    message = parse(CONTINUE_AFTER_APPROVAL, ApprovalMessage, args, kwargs)
    _continue(self, "approval", message.approval_id)


@app.task(name=CONTINUE_AFTER_SIGNAL, bind=True, base=ContinuationTask, max_retries=None)
def continue_after_signal(self: Task, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - parsed below
    """Call the asset's `on_signal` with what has come."""
    message = parse(CONTINUE_AFTER_SIGNAL, SignalMessage, args, kwargs)
    _continue(self, "signal", message.signal_id)


def _continue(task: Task, kind: Kind, gate_id: int) -> None:
    here, worker = runtime.current(), task.request.hostname
    try:
        match continuation.carry_on(here, kind, gate_id, worker=worker):
            case Carried(step_id, canvas):
                ended = continuation.run(here, step_id, canvas, worker=worker)
            case Freed(run_id):
                go_on([run_id])
                return
            case None:
                return
    except (LedgerUnavailable, WrongMigration) as error:
        # What was taken is found again by its canvas, which follows from the gate.
        raise task.retry(exc=error, countdown=5) from error
    follow(task, ended)
