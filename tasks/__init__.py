"""The Celery app of FlowStone: `celery -A tasks worker`."""

from tasks.app import app

__all__ = ["app"]
