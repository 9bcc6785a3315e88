"""Roll-ups: how much of what is read must be there, and how long what is missing is waited for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from flowstone.errors import DefinitionError
from flowstone.outline import Node
from flowstone.partition_key import step_name

_NAMED: Final = 3
"""How many missing partitions a message names."""


@dataclass(frozen=True)
class AtLeast:
    """So many of the partitions that are read must be there."""

    count: int

    def __post_init__(self) -> None:
        """Raise DefinitionError unless it is 1 or more."""
        count: object = self.count
        if not isinstance(count, int) or count < 1:
            raise DefinitionError(
                f"AtLeast({self.count!r}): say 1 or more; with optional=True, none is needed"
            )

    def needed(self, of: int) -> int:  # noqa: ARG002 - however many there are
        """Return how many of so many must be there."""
        return self.count

    def __str__(self) -> str:
        return f"at least {self.count}"


@dataclass(frozen=True)
class Ratio:
    """Such a share of the partitions that are read must be there, between 0 and 1."""

    share: float

    def __post_init__(self) -> None:
        """Raise DefinitionError for what is no share."""
        share: object = self.share
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise DefinitionError(f"Ratio({self.share!r}): say more than 0, and 1 at most, as 0.9")

    def needed(self, of: int) -> int:
        """Return how many of so many must be there, rounded up."""
        # A hair less, as 0.07 * 100 is more than 7.
        return math.ceil(self.share * of - 1e-9)

    def __str__(self) -> str:
        return f"{self.share:.0%}"


Needs = AtLeast | Ratio
"""How many of the partitions that are read must be there; without any, it is all."""


def too_few(
    reader: Node, upstream: str, needs: Needs | None, of: int, missing: Sequence[Node]
) -> str | None:
    """Return what to say where too few of what a partition reads are there, or None."""
    needed = of if needs is None else needs.needed(of)
    there = of - len(missing)
    if there >= needed:
        return None
    named = ", ".join(step_name(*node) for node in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    what = f"{of} of {of}" if needed == of else f"{needed} of the {of}"
    said = f"{step_name(*reader)} needs {what} partitions of {upstream!r}, and there are {there}"
    return f"{said}; missing: {named}{more}" if missing else said


def waits_until(end: datetime | None, now: datetime, grace: timedelta) -> datetime | None:
    """Return until when a partition waits for what is missing; None where that time is over.

    Its grace begins at the `end` of its window, or now where it has none.
    """
    until = (now if end is None else end) + grace
    return until if until > now else None
