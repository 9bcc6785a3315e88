"""What lies on the broker, as bytes and as Celery will read it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from redis import Redis

from flowstone.priority import LEVELS
from flowstone.queues import QUEUES

SEPARATOR = "\x06\x16"
"""What Celery puts between the name of a queue and a priority, in the name of a list."""


@dataclass(frozen=True)
class Sent:
    """One message: all that the broker keeps of it, and its parts (Celery protocol 2)."""

    queue: str
    priority: int
    """0 for what goes first, on any broker."""
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


class Broker(Protocol):
    """What tests ask a broker of any kind."""

    def waiting(self, *queues: str) -> int:
        """Return how many messages wait in queues, by default in all."""

    def unacked(self) -> int:
        """Return how many messages workers have taken, and not acknowledged."""

    def take(self, *queues: str) -> list[Sent]:
        """Take all messages off queues, by default all; in the order that a worker would."""

    def lose_all(self) -> None:
        """Lose all messages."""


class RedisBroker:
    """A broker that speaks the protocol of Redis."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def waiting(self, *queues: str) -> int:
        named = (name for queue in queues or QUEUES for name in lists(queue))
        return sum(int(self._client.llen(name)) for name in named)

    def unacked(self) -> int:
        return int(self._client.hlen("unacked"))

    def take(self, *queues: str) -> list[Sent]:
        return [
            _read(queue, raw)
            for queue in queues or QUEUES
            for name in lists(queue)
            for raw in self._pop_all(name)
        ]

    def lose_all(self) -> None:
        self._client.flushall()

    def _pop_all(self, name: str) -> Iterator[bytes]:
        while (raw := self._client.rpop(name)) is not None:
            assert isinstance(raw, bytes)
            yield raw


def _read(queue: str, raw: bytes) -> Sent:
    entry = json.loads(raw)
    assert entry["content-type"] == "application/json"
    assert entry["properties"]["body_encoding"] == "base64"
    args, kwargs, embed = json.loads(base64.b64decode(entry["body"]))
    priority = entry["properties"]["priority"]
    return Sent(queue, priority, raw, entry["headers"], args, kwargs, embed)
