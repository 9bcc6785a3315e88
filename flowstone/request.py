"""What a caller asks for: names and encoded keys, nothing that needs the assets' code."""

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


@dataclass(frozen=True)
class Request:
    """The assets that a run is to compute, and how."""

    assets: tuple[str, ...]
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
