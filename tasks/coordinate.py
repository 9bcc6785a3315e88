"""`flowstone.coordinate`: bring a run as far as it can go now."""

from __future__ import annotations

from typing import Any

from celery import Task

from flowstone import coordinator, runtime
from flowstone.canvas import Publisher
from flowstone.errors import BrokerUnavailable, LedgerUnavailable
from flowstone.log import get_logger
from flowstone.messages import COORDINATE, CoordinateMessage, parse
from tasks.app import app

log = get_logger("flowstone.coordinator")


@app.task(name=COORDINATE, bind=True, max_retries=None)
def coordinate(self: Task, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - parsed below
    """Plan the run if that is due, send what is ready, close what is done."""
    message = parse(COORDINATE, CoordinateMessage, args, kwargs)
    publisher = Publisher(app)
    try:
        coordinator.coordinate(runtime.current(), message.run_id, publisher.publish, publisher.wake)
    except LedgerUnavailable as error:
        raise self.retry(exc=error, countdown=5) from error
    except BrokerUnavailable as error:
        # What was not sent is ready again, and the reconciler comes.
        log.warning("the run goes on when the broker is back", error=error.message)
