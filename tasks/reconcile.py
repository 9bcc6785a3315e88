"""`flowstone.reconcile`: repair what crashes and lost messages leave behind; sent by beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import Task

from flowstone import reconcile as reconciler
from flowstone import runtime
from flowstone.canvas import Publisher
from flowstone.messages import RECONCILE, Message, parse
from tasks.app import app


@app.task(name=RECONCILE, bind=True)
def reconcile(self: Task, *args: Any, **kwargs: Any) -> Mapping[str, int]:  # noqa: ANN401 - parsed below
    """Apply every rule once."""
    parse(RECONCILE, Message, args, kwargs)
    # What Celery's beat marks its messages with; others send for the reconciler, too.
    if self.request.get("celery_beat_task"):
        reconciler.heard_beat(runtime.current())
    publisher = Publisher(app)
    return reconciler.reconcile(runtime.current(), publisher.wake, publisher.kill, publisher)
