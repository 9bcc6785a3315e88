"""What an IO manager does: it keeps bytes, each at a location of its own that never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol
from urllib.parse import quote
from uuid import UUID

from flowstone.partition_key import label

_LONGEST: Final = 100
"""Bytes of a folder's name; file systems allow 255."""


@dataclass(frozen=True)
class Place:
    """The attempt that stores a value."""

    asset: str
    partition: str
    step_id: int
    attempt: int
    token: UUID

    def location(self, suffix: str) -> str:
        """Return where its value goes: `asset/partition/step-attempt-token.suffix`.

        An attempt that was fenced off leaves a value there that nobody refers to, and harms
        nothing. By the token, the collector knows it from those of another ledger.
        """
        folder = "/".join(part for part in (quote(self.asset), _folder(self.partition)) if part)
        return f"{folder}/{self.step_id}-{self.attempt}-{self.token.hex[:8]}{suffix}"


@dataclass(frozen=True)
class Description:
    """What can be said of a stored value without reading it."""

    path: str
    """Where it lies, for people."""
    exists: bool
    size: int | None
    """In bytes; None if it does not exist."""
    modified_at: datetime | None


class IOManager(Protocol):
    """Keeps bytes. Whatever fails, other than that there is nothing, is StorageUnavailable."""

    def store(self, location: str, data: bytes) -> None:
        """Keep `data`, durably, before this returns; no reader ever sees a part of it."""

    def load(self, location: str) -> bytes:
        """Return what is there; raise MissingOutput if nothing is."""

    def delete(self, location: str) -> None:
        """Give up what is there, if anything is."""

    def exists(self, location: str) -> bool:
        """Return whether something is there, without reading it."""

    def describe(self, location: str) -> Description:
        """Return what can be said of it without reading it."""

    def stored(self) -> Iterator[str]:
        """Yield the locations of all that is there, unfinished ones with the suffix `.part`."""


def _folder(partition: str) -> str:
    """Return a partition key as a folder's name: readable, and short enough for any disk."""
    name = quote(label(partition), safe=" =|+,@")
    if name.strip(".") == "" and name:
        name = name.replace(".", "%2E")
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 17]}-{hashlib.sha256(partition.encode()).hexdigest()[:16]}"
