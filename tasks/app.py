"""The Celery app, configured by `celeryconfig.py`."""

from __future__ import annotations

from celery import Celery
from celery.signals import worker_process_shutdown, worker_shutdown

from flowstone import runtime
from tasks import heartbeat, reconnect

reconnect.install()
app = Celery(
    "flowstone", include=["tasks.coordinate", "tasks.prune", "tasks.reconcile", "tasks.step"]
)
app.config_from_object("celeryconfig")
app.steps["worker"].add("tasks.stop:GracefulStop")


@worker_process_shutdown.connect
@worker_shutdown.connect
def close(**_: object) -> None:
    """Close the resources of a process that leaves: those of a pool do so without atexit."""
    heartbeat.stop()
    runtime.close()
