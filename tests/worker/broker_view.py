"""What lies on the broker, as bytes and as Celery will read it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from redis import Redis

from flowstone.priority import LEVELS
from flowstone.queues import QUEUES

SEPARATOR = "\x06\x16"
"""What Celery puts between the name of a queue and a priority, in the name of a list."""


@dataclass(frozen=True)
class Sent:
    """One message: the raw entry of the Redis list, and its parts (Celery protocol 2)."""

    queue: str
    priority: int
    raw: bytes
    headers: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    embed: dict[str, Any]

    @property
    def argument_bytes(self) -> int:
        return len(json.dumps([self.args, self.kwargs]).encode())

    @property
    def rest(self) -> list[dict[str, Any]]:
        """The signatures of the chain that follows, the next one first."""
        return list(reversed(self.embed["chain"] or []))


def lists(queue: str) -> list[str]:
    """Return the names of the lists that hold a queue, that of the most urgent messages first."""
    return [queue, *(f"{queue}{SEPARATOR}{level}" for level in range(1, LEVELS))]


def waiting(broker: Redis, *queues: str) -> int:
    """Return how many messages wait in queues, by default in all."""
    return sum(int(broker.llen(name)) for queue in queues or QUEUES for name in lists(queue))


def take(broker: Redis, queues: Iterable[str] = tuple(QUEUES)) -> list[Sent]:
    """Take all messages off the broker, those of each queue in the order that a worker would."""
    return [
        _read(queue, raw)
        for queue in queues
        for name in lists(queue)
        for raw in _pop_all(broker, name)
    ]


def _pop_all(broker: Redis, name: str) -> Iterator[bytes]:
    while (raw := broker.rpop(name)) is not None:
        assert isinstance(raw, bytes)
        yield raw


def _read(queue: str, raw: bytes) -> Sent:
    entry = json.loads(raw)
    assert entry["content-type"] == "application/json"
    assert entry["properties"]["body_encoding"] == "base64"
    args, kwargs, embed = json.loads(base64.b64decode(entry["body"]))
    priority = entry["properties"]["priority"]
    return Sent(queue, priority, raw, entry["headers"], args, kwargs, embed)
