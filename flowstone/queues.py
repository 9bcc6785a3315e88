"""The Celery queues, and what each is for."""

from __future__ import annotations

from typing import Final

QUEUES: Final = {
    "priority": "asset tasks that must not wait behind others",
    "assets": "asset tasks",
    "backfill": "asset tasks of backfills, below live traffic",
    "checkpoints": "continuations after approvals and signals",
    "sensors": "sensor evaluations",
    "control": "the run coordinator and the reconciler",
}

ASSET_QUEUES: Final = ("priority", "assets", "backfill")
"""The queues that an asset may name."""
