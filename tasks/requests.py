"""What the main process of a worker does where a process of its pool cannot."""

from __future__ import annotations

from typing import Final

from celery import Task
from celery.worker.request import Request

from flowstone.messages import RECONCILE
from tasks.app import app

SECONDS: Final = 60
"""How long the reconciler may be asked to come at once; then it has come by itself."""


class StepRequest(Request):  # type: ignore[misc] # Celery has no types
    """The message of a step, as the main process sees it."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Let the reconciler record that a process is killed, which it else finds out later."""
        super().on_timeout(soft, timeout)
        if not soft:
            app.send_task(RECONCILE, queue="control", expires=SECONDS, ignore_result=True)


class StepTask(Task):  # type: ignore[misc] # Celery has no types
    """A task of which each message is a StepRequest."""

    Request = f"{StepRequest.__module__}:{StepRequest.__name__}"
