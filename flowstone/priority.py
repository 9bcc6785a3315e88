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
"""The startable steps in flight up to which a run is small, and of a larger one the first."""

CONTROL: Final = 0
"""The level of messages that keep the runs going; those of steps come after it."""

_TIERS: Final = 3
"""Of runs that are as urgent: steps of small ones, the first of large ones, and the bulk."""

LEVELS: Final = 1 + _TIERS * len(Priority)
"""How many levels of messages there are, from 0 for those that go first; Redis knows ten."""

MAX_BOOST: Final = len(Priority) - 1
"""The most levels that a run can move up."""


def urgency(priority: int, boost: int) -> int:
    """Return the level of a run that has moved up by `boost`, 0 for the most urgent.

    `store.urgency` says the same in SQL.
    """
    return max(0, priority - boost)


def message_level(priority: int, boost: int, *, place: int, in_flight: int) -> int:
    """Return the level of the message of a step, 0 for what goes first of all.

    `priority` is the level of its run, and `boost` by how many that has moved up as it starved.
    `in_flight` is how many startable steps of the run are in flight with this one, and those that
    are sent with it; `place` how many before this one. So a small run never waits behind what a
    large one has dispatched. Of a run that starves only the first few steps move up, as if it
    were a small one: it overtakes others by no more than that.
    """
    first = CONTROL + 1 + _TIERS * priority
    if boost and place < FIRST:
        return CONTROL + 1 + _TIERS * urgency(priority, boost)
    if in_flight <= FIRST:
        return first
    return first + (1 if place < FIRST else 2)
