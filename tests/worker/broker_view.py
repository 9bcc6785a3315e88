"""What lies on the broker, as bytes and as Celery will read it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from redis import Redis

from flowstone.queues import QUEUES


@dataclass(frozen=True)
class Sent:
    """One message: the raw entry of the Redis list, and its parts (Celery protocol 2)."""

    queue: str
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


def take(broker: Redis) -> list[Sent]:
    """Take all messages off the broker, the oldest of each queue first."""
    return [_read(queue, raw) for queue in QUEUES for raw in _pop_all(broker, queue)]


def _pop_all(broker: Redis, queue: str) -> Iterator[bytes]:
    while (raw := broker.rpop(queue)) is not None:
        assert isinstance(raw, bytes)
        yield raw


def _read(queue: str, raw: bytes) -> Sent:
    entry = json.loads(raw)
    assert entry["content-type"] == "application/json"
    assert entry["properties"]["body_encoding"] == "base64"
    args, kwargs, embed = json.loads(base64.b64decode(entry["body"]))
    return Sent(queue, raw, entry["headers"], args, kwargs, embed)
