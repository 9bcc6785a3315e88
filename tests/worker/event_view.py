"""What Celery tells Flower, as events."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery


@contextmanager
def tasks_of_events(app: Celery, kind: str) -> Iterator[list[str]]:
    """Collect the ids of the tasks of which events of a kind, such as task-revoked, tell."""
    ids: list[str] = []
    listening = threading.Event()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(
            connection, handlers={kind: lambda event: ids.append(event["uuid"])}
        )
        receiver.on_consume_ready = lambda *_, **__: listening.set()
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        thread.start()
        assert listening.wait(20)
        yield ids
        receiver.should_stop = True
        thread.join(20)
