"""What limits an asset: time, slots of pools that it shares with others, and rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from flowstone.errors import DefinitionError
from flowstone.names import NAME

SECONDS: Final = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}
"""The seconds of each unit that a rate may be given in."""

KILL_AFTER: Final = 60.0
"""The seconds that a step has to end by itself after it was asked to, where not said otherwise."""


@dataclass(frozen=True)
class Timeout:
    """How long an attempt may take, in seconds.

    After `soft` it is interrupted, after `hard` its process is killed; `hard` is a minute
    later by default.
    """

    soft: float
    hard: float = math.nan

    def __post_init__(self) -> None:
        """Raise DefinitionError where the numbers make no sense."""
        if math.isnan(self.hard):
            object.__setattr__(self, "hard", self.soft + KILL_AFTER)
        if not 0 < self.soft <= self.hard < math.inf:
            raise DefinitionError(f"{self}: needs 0 < soft <= hard, in seconds")


@dataclass(frozen=True)
class Rate:
    """How often attempts may start: `count` times `per` unit of time, all that share `key`.

    It is a token bucket of `burst` tokens, 1 by default: after a pause so many may start at
    once, and then one each `1 / count` of the unit.
    """

    count: float
    per: Literal["second", "minute", "hour", "day"] = "second"
    key: str = ""
    burst: int = 1

    def __post_init__(self) -> None:
        """Raise DefinitionError where the numbers make no sense."""
        if self.per not in SECONDS or not 0 < self.count < math.inf or self.burst < 1:
            raise DefinitionError(
                f"{self}: needs count > 0, burst >= 1, and per as one of {', '.join(SECONDS)}"
            )
        if self.key and not NAME.fullmatch(self.key):
            raise DefinitionError(f"{self}: {self.key!r} is no name for a key")

    @property
    def interval(self) -> float:
        """The seconds from one start to the next."""
        return SECONDS[self.per] / self.count


@dataclass(frozen=True)
class Policy:
    """What holds for the steps of an asset in a run, frozen with the plan."""

    takes: Mapping[str, int] = field(default_factory=dict)
    """The slots that an attempt takes while it is dispatched, by the key of the limit."""
    timeout: Timeout | None = None
    """None leaves it to the settings."""
    max_lost: int = 3
    """How often the process may die that runs the step."""


def asset_key(asset: str) -> str:
    """Return the key of the limit on how many steps of an asset run at once."""
    return f"asset:{asset}"


def is_pool(key: str) -> bool:
    """Return whether the limit of a key is a pool, rather than that of an asset or of a rate."""
    return ":" not in key


def rate_key(key: str) -> str:
    """Return the key of the limit that belongs to a rate."""
    return f"rate:{key}"
