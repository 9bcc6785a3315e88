"""The Celery queues, what each is for, and in which order their messages are given out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from flowstone.priority import LEVELS

QUEUES: Final = {
    "priority": "asset tasks that must not wait behind others",
    "assets": "asset tasks",
    "backfill": "asset tasks of backfills, below live traffic",
    "checkpoints": "continuations after approvals and signals",
    "sensors": "sensor evaluations",
    "control": "the run coordinator and the reconciler",
}

ASSET_QUEUES: Final = ("priority", "assets", "backfill")
"""The queues that an asset may name, beside those of the settings."""

DEFAULT_QUEUE: Final = "assets"
BACKFILL_QUEUE: Final = "backfill"
CONTROL_QUEUE: Final = "control"
CHECKPOINTS_QUEUE: Final = "checkpoints"

REDIS: Final = (
    "redis://", "rediss://", "redis+socket://", "unix://", "valkey://", "valkeys://",
)  # fmt: skip
"""How the address of a broker begins that speaks the protocol of Redis."""

MAX_MESSAGE_PRIORITY: Final = LEVELS - 1


def all_queues(own: Iterable[str]) -> list[str]:
    """Return the names of all queues, those of FlowStone first."""
    return [*QUEUES, *own]


def message_priority(level: int, broker: str) -> int:
    """Return the priority that Celery gives a message of a level, 0 for what goes first.

    `broker` is the address of the broker: Redis gives out the lowest number first, and RabbitMQ
    the highest.
    """
    return level if broker.startswith(REDIS) else MAX_MESSAGE_PRIORITY - level
