"""How urgent a run is, and from that, which of the messages that wait goes first."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


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


FIRST: Final = 8
"""How many startable steps of a run in flight go before the bulk of others that are as urgent.

So a new run never waits behind all that a large one has dispatched.
"""

CONTROL: Final = 0
"""The level of messages that keep the runs going; those of steps come after it."""

LEVELS: Final = 1 + 2 * len(Priority)
"""How many levels of messages there are, from 0 for those that go first."""

MAX_BOOST: Final = len(Priority) - 1
"""The most levels that a run can move up."""


def urgency(priority: int, boost: int) -> int:
    """Return the level of a run that has moved up by `boost`, 0 for the most urgent.

    `store.urgency` says the same in SQL.
    """
    return max(0, priority - boost)


def message_level(priority: int, boost: int, place: int) -> int:
    """Return the level of the message of a step, 0 for what goes first of all.

    `priority` is the level of its run, `boost` by how many that has moved up as it starved, and
    `place` how many startable steps of the run are in flight before this one. Only the first
    few move up with the run, so that one which has waited long overtakes others by no more.
    """
    if place < FIRST:
        return CONTROL + 1 + 2 * urgency(priority, boost)
    return CONTROL + 2 + 2 * priority
