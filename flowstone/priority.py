"""How urgent a run is."""

from __future__ import annotations

from enum import StrEnum


class Priority(StrEnum):
    """How urgent a run is, the most urgent first."""

    HIGH = "high"
    """Somebody waits for it."""
    NORMAL = "normal"
    LOW = "low"
    """What can wait: backfills, and whatever fills the night."""

    @property
    def level(self) -> int:
        """The place in the order, from 0 for the most urgent."""
        return list(Priority).index(self)
