"""What limits an asset: time, slots of pools that it shares with others, and rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from flowstone.errors import DefinitionError, StepTimeout
from flowstone.names import NAME

SECONDS: Final = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}
"""The seconds of each unit that a rate may be given in."""

RATE: Final = "rate:"
"""How the keys of rates begin, among those of all limits."""

LONGEST: Final = 10 * 365 * 86_400.0
"""The most seconds that the bucket of a rate may take to fill."""

KILL_AFTER: Final = 60.0
"""The seconds that a step has to end by itself after it was asked to, where not said otherwise."""


KILL_LATER: Final = 1.0
"""The seconds after a hard timeout at which Celery kills a process.

Its clock runs from the arrival of the message, that of the ledger from the claim, a moment
later. So the time of an attempt is over in the ledger when its process has been killed.
"""


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
class TimeLimit:
    """The timeout that holds for one attempt, and who has said so."""

    step: str
    timeout: Timeout
    is_own: bool
    """Whether it is that of the asset; else it is that of the settings."""

    @property
    def interrupted(self) -> StepTimeout:
        """The error that interrupts the attempt."""
        soft = f"{self.timeout.soft:g} s"
        whose = "the timeout= of the asset" if self.is_own else "FLOWSTONE_SOFT_TIME_LIMIT"
        return StepTimeout(f"{self.step} took longer than {soft}, {whose}; {_REMEDY}")

    @property
    def killed(self) -> StepTimeout:
        """The error of an attempt that went on all the same, so that its process was killed."""
        hard = f"{self.timeout.hard:g} s"
        whose = "the hard timeout= of the asset" if self.is_own else "FLOWSTONE_TIME_LIMIT"
        return StepTimeout(
            f"{self.step} was killed after {hard}, {whose}: it did not end when it was "
            f"interrupted after {self.timeout.soft:g} s; {_REMEDY}"
        )


_REMEDY: Final = "raise that, or let it do less at a time"


@dataclass(frozen=True)
class Rate:
    """How often attempts may start: `count` times `per` unit of time, all that share `key`.

    It is a token bucket of `burst` tokens, 1 by default: after a pause so many may start at
    once, and then one each `1 / count` of the unit. Without a `key` it is for the asset alone.
    """

    count: float
    per: Literal["second", "minute", "hour", "day"] = "second"
    key: str = ""
    burst: int = 1

    def __post_init__(self) -> None:
        """Raise DefinitionError where the numbers make no sense."""
        if self.per not in SECONDS or not 0 < self.count < math.inf:
            raise DefinitionError(
                f"{self}: needs count > 0, and per as one of {', '.join(SECONDS)}"
            )
        if self.burst < 1 or self.burst % 1:
            raise DefinitionError(f"{self}: needs burst as 1 or more whole tokens")
        if self.burst * self.interval > LONGEST:
            raise DefinitionError(f"{self}: its bucket would take more than ten years to fill")
        if self.key and not NAME.fullmatch(self.key):
            raise DefinitionError(f"{self}: {self.key!r} is no name for a key")

    @property
    def interval(self) -> float:
        """The seconds from one start to the next."""
        return SECONDS[self.per] / self.count

    def limits_as(self, other: Rate) -> bool:
        """Return whether the two limit to the same, in whatever units they are given."""
        return self.burst == other.burst and math.isclose(self.interval, other.interval)


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


def rate_key(rate: Rate, asset: str) -> str:
    """Return the key of the limit that belongs to the rate of an asset.

    Without a key of its own the rate is that of the asset, which no key can name: it would
    have to hold a colon.
    """
    return f"{RATE}{rate.key or asset_key(asset)}"


def is_rate(key: str) -> bool:
    """Return whether the limit of a key is a rate."""
    return key.startswith(RATE)


def told_rate(seconds: float, burst: int) -> str:
    """Return a rate in words, such as "10 per second, burst 5"."""
    per = next((unit for unit, length in SECONDS.items() if length >= seconds), "day")
    told = f"{SECONDS[per] / seconds:.4g} per {per}"
    return told if burst == 1 else f"{told}, burst {burst}"
