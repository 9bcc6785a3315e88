"""What a caller asks for: selections and encoded keys, nothing that needs the assets' code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from flowstone.priority import Priority


class OnConflict(StrEnum):
    """What a run does where another one is computing the same asset x partition."""

    JOIN = "join"
    """Wait for it, and take its output if it was made of the same."""
    QUEUE = "queue"
    """Wait for it, and then compute."""
    REFUSE = "refuse"
    """Fail."""


class Only(StrEnum):
    """Which of the chosen partitions are computed, by how they stand."""

    MISSING = "missing"
    """Those that have no output."""
    FAILED = "failed"
    """Those whose last attempt after the latest output has failed."""
    STALE = "stale"
    """Those whose latest output is not what would be made now."""


class Order(StrEnum):
    """In which order the partitions of a run start, as far as what they read allows."""

    OLDEST = "oldest"
    NEWEST = "newest"


@dataclass(frozen=True)
class Request:
    """The assets that a run is to compute, and how."""

    assets: tuple[str, ...]
    """Names, or selections; see `flowstone.selection`."""
    partition: str
    upstream: bool
    force: bool = False
    """Compute every step, be it fresh or not."""
    on_conflict: OnConflict = OnConflict.JOIN
    io: Mapping[str, str] = field(default_factory=dict)
    """The IO managers of assets in this run, by name, where not those of their definitions."""
    resources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values for the config of resources in this run, as JSON, and never a secret."""
    priority: Priority = Priority.NORMAL
    deadline: float | None = None
    """Seconds from the submission after which the run fails; None has no end."""
    pool: str | None = None
    """A pool of which each step of the run takes a slot, beside those of its asset."""
    choice: tuple[str, ...] | None = None
    """Which partitions, where not just one; see `flowstone.choice`."""
    only: Only | None = None
    """Of these, only what is missing, has failed or is stale."""
    order: Order | None = None
    """Which partitions start first."""
    queue: str | None = None
    """Where steps go that would go to the queue of all assets."""
