"""The same work by hand: a plain Celery app with one task that does nothing."""

from __future__ import annotations

from typing import Any

from celery import Celery, Signature, chain, group

app: Any = Celery("plain", set_as_current=False)
app.config_from_object("celeryconfig")
app.conf.update(
    task_queues=None,
    task_create_missing_queues=True,
    task_default_queue="celery",
    task_routes=None,
)


@app.task(name="plain.nothing")
def nothing() -> None:
    """Do nothing."""


def independent(count: int) -> list[Signature]:
    """Return `count` tasks, each to be sent on its own."""
    return [nothing.si() for _ in range(count)]


def chained(count: int) -> list[Signature]:
    """Return one chain."""
    return [chain(*(nothing.si() for _ in range(count)), app=app)]


def layered(width: int, depth: int) -> list[Signature]:
    """Return one chain of groups: what Celery offers for a graph of layers."""
    layers = [group(*(nothing.si() for _ in range(width)), app=app) for _ in range(depth)]
    return [chain(*layers, app=app)]
