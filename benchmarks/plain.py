"""The same work by hand: plain Celery, with one task that does nothing.

`app` keeps no results, as FlowStone does. `with_results` does, as Celery does unless it is told
otherwise, and as its documentation demands of tasks in a chord, of which a chain of groups is
made. The rest of the settings is that of FlowStone's workers.
"""

from __future__ import annotations

from typing import Any

from celery import Celery, Signature, chain, group


def _app(name: str, *, results: bool) -> Any:  # noqa: ANN401 - Celery has no types
    made: Any = Celery(name, set_as_current=False)
    made.config_from_object("celeryconfig")
    made.conf.update(
        task_queues=None,
        task_create_missing_queues=True,
        task_default_queue="celery",
        task_routes=None,
        task_ignore_result=not results,
        # FlowStone's workers say when a task starts by events; a result for it would cost more.
        task_track_started=not results,
    )
    made.task(name="plain.nothing")(_nothing)
    return made


def _nothing(node: str | None = None) -> None:
    """Do nothing; `node` says for which node of a graph."""


app = _app("plain", results=False)
with_results = _app("with_results", results=True)


def independent(count: int) -> list[Signature]:
    """Return `count` tasks, each to be sent on its own."""
    return [app.tasks["plain.nothing"].si() for _ in range(count)]


def chained(count: int, app: Any = app) -> list[Signature]:  # noqa: ANN401 - as above
    """Return one chain."""
    nothing = app.tasks["plain.nothing"]
    return [chain(*(nothing.si(f"a{i}") for i in range(count)), app=app)]


def layered(width: int, depth: int, app: Any = app) -> list[Signature]:  # noqa: ANN401 - as above
    """Return one chain of groups: what Celery offers for a graph of layers."""
    nothing = app.tasks["plain.nothing"]
    layers = [
        group(*(nothing.si(f"l{layer}_{i}") for i in range(width)), app=app)
        for layer in range(depth)
    ]
    return [chain(*layers, app=app)]
