"""The Celery app, configured by `celeryconfig.py`."""

from __future__ import annotations

from celery import Celery
from celery.signals import beat_init, worker_init, worker_process_shutdown, worker_shutdown

from flowstone import runtime
from tasks import heartbeat, reconnect, revision

reconnect.install()
app = Celery(
    "flowstone",
    include=[
        "tasks.continuation",
        "tasks.coordinate",
        "tasks.notify",
        "tasks.prune",
        "tasks.reconcile",
        "tasks.step",
        "tasks.sweep",
    ],
)
app.config_from_object("celeryconfig")
app.steps["worker"].add("tasks.stop:GracefulStop")
worker_init.connect(revision.check)
beat_init.connect(revision.check)


@worker_process_shutdown.connect
@worker_shutdown.connect
def close(**_: object) -> None:
    """Close the resources of a process that leaves: those of a pool do so without atexit."""
    heartbeat.stop()
    runtime.close()
