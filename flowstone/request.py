"""What a caller asks for: names and encoded keys, nothing that needs the assets' code."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
