"""The Celery app, configured by `celeryconfig.py`."""

from __future__ import annotations

from celery import Celery

app = Celery(
    "flowstone", include=["tasks.coordinate", "tasks.prune", "tasks.reconcile", "tasks.step"]
)
app.config_from_object("celeryconfig")
