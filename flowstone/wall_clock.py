"""What the clocks of a zone show, and when: some times come twice, and some never."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flowstone.errors import DefinitionError


def zone_of(tz: str) -> ZoneInfo:
    """Return a zone of the IANA database; raise DefinitionError if it has no such one."""
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, TypeError, AttributeError, OSError) as error:
        raise DefinitionError(f"{tz!r} is not an IANA time zone such as 'Europe/Berlin'") from error


def shown(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return what the clocks show at a moment, without a zone."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def with_offset(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return the moment in a zone by its offset alone, as Python compares and hashes it rightly.

    Two moments with one ZoneInfo are equal to Python if the clocks show the same at both.
    """
    local = moment.astimezone(zone)
    offset = local.utcoffset()
    assert offset is not None
    return local.replace(tzinfo=timezone(offset), fold=0)


def moments_of(clock: datetime, zone: ZoneInfo) -> list[datetime]:
    """Return the moments, in UTC, at which the clocks show this: one, two, or none."""
    local = clock.replace(tzinfo=zone)
    passes = [local.astimezone(UTC)]
    if local.utcoffset() != (again := local.replace(fold=1)).utcoffset():
        passes.append(again.astimezone(UTC))
    return [moment for moment in passes if shown(moment, zone) == clock]


def first_at(clock: datetime, zone: ZoneInfo) -> datetime:
    """Return the first moment, in UTC, at which the clocks show this.

    Where they skip it, that is the first moment after what they skip.
    """
    local = clock.replace(tzinfo=zone)
    moment = local.astimezone(UTC)
    if shown(moment, zone) == clock:
        return moment
    # Read with the offset from after the change it is too early, with that from before too late.
    early = local.replace(fold=1, microsecond=0).astimezone(UTC)
    seconds = range(int((moment - early).total_seconds()) + 2)
    old = local.utcoffset()
    n = bisect_left(
        seconds,
        True,
        key=lambda n: (early + timedelta(seconds=n)).astimezone(zone).utcoffset() != old,
    )
    return early + timedelta(seconds=n)


class Ticks(Protocol):
    """Times that clocks show again and again, such as each full hour."""

    @property
    def is_each_pass(self) -> bool:
        """Whether a time counts whenever it is shown: twice where clocks are set back, or never.

        Else it counts once: the first time, or where the clocks skip it, when they go on.
        """

    def after(self, clock: datetime) -> Iterator[datetime]:
        """Yield those after that time, in order."""

    def until(self, clock: datetime) -> Iterator[datetime]:
        """Yield those until that time, it included, backwards."""


def next_tick(moment: datetime, ticks: Ticks, zone: ZoneInfo) -> datetime:
    """Return the first tick after a moment, in UTC."""
    local = moment.astimezone(zone)
    clock = local.replace(tzinfo=None, fold=0)
    # In the first of two passes, what the clocks have shown already will be shown again.
    begin = clock if local.fold else clock - _repeated(local)
    again: datetime | None = None
    for tick in ticks.after(begin):
        found = _moments(tick, ticks, zone)
        coming = [one for one in found if one > moment]
        if coming and len(coming) == len(found):
            return coming[0] if again is None else min(again, coming[0])
        if coming and again is None:
            again = coming[0]
    raise OverflowError("no more ticks")


def last_tick(moment: datetime, ticks: Ticks, zone: ZoneInfo) -> datetime:
    """Return the last tick until a moment, it included, in UTC."""
    local = moment.astimezone(zone)
    clock = local.replace(tzinfo=None, fold=0)
    # In the second of two passes, what the clocks will show has been shown already.
    begin = clock + _repeated(local) if local.fold else clock
    newest: datetime | None = None
    for tick in ticks.until(begin):
        found = _moments(tick, ticks, zone)
        past = [one for one in found if one <= moment]
        if not past:
            continue
        newest = past[-1] if newest is None else max(newest, past[-1])
        # In the second pass, an earlier time may have come after a later one of the first.
        if local.fold == 0 or len(past) == len(found):
            return newest
    raise OverflowError("no more ticks")


def _moments(tick: datetime, ticks: Ticks, zone: ZoneInfo) -> list[datetime]:
    return moments_of(tick, zone) if ticks.is_each_pass else [first_at(tick, zone)]


def _repeated(local: datetime) -> timedelta:
    """Return how much time the clocks show twice around a moment."""
    first, second = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    assert first is not None
    assert second is not None
    return max(first - second, timedelta())
