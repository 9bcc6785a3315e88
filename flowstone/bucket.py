"""The token bucket of a rate, seen at one moment: who may start, and who waits for how long. Pure.

It is the generic cell rate algorithm (ITU-T I.371), twice: `next_at` is moved by each start, and
never allows more than the rate; `free_at` is moved by each promise, so that those who wait come
one after the other, and not all at once. A promise is no right to start: who comes late must not
start together with the next one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

HORIZON: Final = 12.0
"""Steps are dispatched so many seconds before they may start: runs are woken a little more often,
by the reconciler, so that no token is lost even where nothing ends meanwhile, up to MOST."""

PATIENCE: Final = 20.0
"""A start that is more seconds away is waited for in the ledger; beyond HORIZON, so that nothing
is sent back as soon as it was dispatched."""

CLOSE: Final = 0.05
"""Seconds that a worker waits by itself, as a message would take as long."""

MOST: Final = 1000
"""The most steps that are dispatched ahead of their starts, however quick the rate: enough for 80
starts a second where nothing ends meanwhile. Each step that ends makes room for others."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket. All times are in seconds from the moment at which it is looked at."""

    seconds: float
    """From one token to the next."""
    burst: int
    """How many tokens it can hold."""
    next_at: float = -math.inf
    """When the next attempt may start; each `seconds` in the past there is one more token."""
    free_at: float = -math.inf
    """The first start that is promised to nobody; not before `next_at`."""

    @property
    def full_at(self) -> float:
        """What `next_at` is at the least: the bucket holds no more than its burst."""
        return -(self.burst - 1) * self.seconds

    def later(self, seconds: float) -> Bucket:
        """Return the same bucket, as it looks `seconds` later."""
        return replace(self, next_at=self.next_at - seconds, free_at=self.free_at - seconds)

    def paused(self, seconds: float) -> Bucket:
        """Return it without a token for so long."""
        return replace(self, next_at=max(self.next_at, seconds), free_at=max(self.free_at, seconds))


@dataclass(frozen=True, slots=True)
class Starts:
    """The attempt starts now, and has taken its token."""

    bucket: Bucket


@dataclass(frozen=True, slots=True)
class Waits:
    """The attempt comes again in `wait` seconds; it is promised the start at `promised`."""

    bucket: Bucket
    promised: float
    wait: float


@dataclass(frozen=True, slots=True)
class Leaves:
    """The next start is too far away to be promised; nothing is taken."""

    wait: float


Turn = Starts | Waits | Leaves


def turn(bucket: Bucket, promised: float | None = None, patience: float = math.inf) -> Turn:
    """Return whether an attempt may start, to which perhaps a start was `promised` before.

    Where starts were late, several meet: whoever finds that others are before it in more than
    one place takes a new promise, at the end. A start in more than `patience` seconds is not
    waited for.
    """
    next_at = max(bucket.next_at, bucket.full_at)
    free_at = max(bucket.free_at, next_at)
    is_late = promised is not None and next_at > max(0, promised + max(bucket.seconds, CLOSE))
    start = max(free_at, 0.0) if promised is None or is_late else promised
    wait = max(start, next_at)
    if wait > patience:
        return Leaves(wait)
    if promised is None or is_late:
        free_at += bucket.seconds
    if wait <= 0:
        next_at += bucket.seconds
        return Starts(replace(bucket, next_at=next_at, free_at=max(free_at, next_at)))
    return Waits(replace(bucket, next_at=next_at, free_at=free_at), start, wait)


def may_be_dispatched(bucket: Bucket) -> int:
    """Return how many attempts can be promised a start within the HORIZON."""
    first = max(bucket.free_at, bucket.next_at, bucket.full_at)
    if first > HORIZON:
        return 0
    return math.floor(min(MOST - 1, (HORIZON - first) / bucket.seconds)) + 1
