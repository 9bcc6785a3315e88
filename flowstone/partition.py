"""Partition sets: which keys an asset has, and which stretch of time a key stands for."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flowstone import calendar_text
from flowstone.errors import BadPartition, DefinitionError, did_you_mean
from flowstone.partition_key import (
    UNPARTITIONED,
    Key,
    Month,
    Unpartitioned,
    decode_key,
    encode_key,
    label,
)

__all__ = [
    "UNPARTITIONED",
    "DailyPartitions",
    "Key",
    "Moment",
    "Month",
    "MonthlyPartitions",
    "PartitionSet",
    "StaticPartitions",
    "TimePartitions",
    "Unpartitioned",
    "UnpartitionedSet",
    "Window",
]


@dataclass(frozen=True)
class Window:
    """A half-open stretch of time, `start <= t < end`, both with a zone."""

    start: datetime
    end: datetime


def _no_keys(name: str) -> Mapping[str, Key]:
    raise BadPartition(f"the keys of the dynamic partitions {name!r} are in the ledger")


@dataclass(frozen=True)
class Moment:
    """When a set is looked at, and what had been added to dynamic sets by then."""

    now: datetime
    """With a zone."""
    keys_of: Callable[[str], Mapping[str, Key]] = field(default=_no_keys, compare=False)
    """The keys of a dynamic set by their encoded forms, in the order in which they were added."""


class PartitionSet(ABC):
    """The keys of one asset. A set may grow with time, so the moment is an argument."""

    @abstractmethod
    def keys(self, at: Moment) -> Iterator[Key]:
        """Yield the keys that exist at that moment, in their natural order."""

    def window_of(self, key: Key) -> Window | None:  # noqa: ARG002 - most keys are no time
        """Return the stretch of time that a key stands for, or None if it is not of time."""
        return None

    @abstractmethod
    def coerce(self, value: Key, at: Moment) -> Key:
        """Return the key of this set that `value` means; raise BadPartition if there is none.

        A caller may give the key itself or the text that a person would write
        for it, as the command line does.
        """

    @property
    def cut(self) -> str | None:
        """How time is cut into partitions, such as "daily, Europe/Berlin"; None if it is not."""
        return None


@dataclass(frozen=True)
class UnpartitionedSet(PartitionSet):
    """The set with the single key UNPARTITIONED."""

    def keys(self, at: Moment) -> Iterator[Key]:  # noqa: ARG002 - the set does not grow
        """Yield UNPARTITIONED."""
        yield UNPARTITIONED

    def coerce(self, value: Key, at: Moment) -> Key:  # noqa: ARG002 - the set does not grow
        """Accept only UNPARTITIONED."""
        if isinstance(value, Unpartitioned):
            return value
        raise BadPartition(f"it has no partitions, so partition {_say(value)} cannot be given")

    def __str__(self) -> str:
        return "unpartitioned"


@dataclass(frozen=True)
class StaticPartitions(PartitionSet):
    """A fixed list of keys, in the given order."""

    values: tuple[Key, ...]
    _by_encoded: Mapping[str, Key] = field(repr=False, compare=False)

    def __init__(self, values: Iterable[Key]) -> None:
        keys = tuple(values)
        by_encoded = {encode_key(key): key for key in keys}
        # A fan-in is a dict of key -> value, in which 1 and True would be one key.
        if not keys or len(set(keys)) != len(keys):
            raise DefinitionError("StaticPartitions takes at least one key, each only once")
        object.__setattr__(self, "values", keys)
        object.__setattr__(self, "_by_encoded", by_encoded)

    def is_within(self, other: StaticPartitions) -> bool:
        """Return whether each key is one of `other`, too, and of the same type there."""
        return self._by_encoded.keys() <= other._by_encoded.keys()

    def keys(self, at: Moment) -> Iterator[Key]:  # noqa: ARG002 - the set does not grow
        """Yield the keys in the order in which they were given."""
        return iter(self.values)

    def coerce(self, value: Key, at: Moment) -> Key:  # noqa: ARG002 - the set does not grow
        """Accept a key, or its text where only one key is written so."""
        if (wanted := encode_key(value)) in self._by_encoded:
            return self._by_encoded[wanted]
        labels = [label(encoded) for encoded in self._by_encoded]
        if isinstance(value, str) and labels.count(value) == 1:
            return self.values[labels.index(value)]
        shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")  # noqa: PLR2004
        raise BadPartition(
            f"partition {_say(value)} is not one of {shown}" + did_you_mean(str(value), labels)
        )

    def __str__(self) -> str:
        return f"{len(self.values)} static keys"


class TimePartitions(PartitionSet):
    """Keys that stand for windows of time which follow each other without a gap."""

    first: Key
    last: Key | None
    tz: str

    def window_of(self, key: Key) -> Window | None:
        """Return the window of `key`."""
        return self.window(key)

    @abstractmethod
    def window(self, key: Key) -> Window:
        """Return the window of `key` in the zone of the set."""

    @abstractmethod
    def key_at(self, moment: datetime) -> Key:
        """Return the key whose window holds `moment`, whether or not the set contains it."""

    @abstractmethod
    def next_key(self, key: Key) -> Key:
        """Return the key of the window after that of `key`."""

    @abstractmethod
    def parse(self, value: Key) -> Key:
        """Return `value`, or the text of a key, as a key; raise BadPartition if it is none."""

    @abstractmethod
    def named(self, clock: datetime) -> Key:
        """Return the key that a time of the calendar belongs to; it has no zone."""

    def rank(self, key: Key) -> tuple[int, ...]:
        """Return what sorts keys by time."""
        return _order(key)

    def is_before(self, key: Key, other: Key) -> bool:
        """Return whether the window of `key` begins before that of `other`."""
        return self.rank(key) < self.rank(other)

    def span(self, text: str) -> tuple[Key, Key]:
        """Return the first and the last key that a text names: 2013-01 all days of that month.

        They need not be in the set. A finer text names the one key in which it lies. Raises
        BadPartition for what is no time.
        """
        first, last = calendar_text.read(text)
        return self.named(first), self.named(last)

    def holds_many(self, text: str) -> bool:
        """Return whether a text is a time that is longer than one key of the set."""
        try:
            low, high = self.span(text)
        except BadPartition:
            return False
        return self.is_before(low, high)

    def end_key(self, at: Moment) -> Key:
        """Return the last key then: the given end, or that of the window that has begun."""
        return self.key_at(at.now) if self.last is None else self.last

    def between(self, start: Key, end: Key) -> Iterator[Key]:
        """Yield the keys from `start` to `end`, both included."""
        key = start
        while _order(key) <= _order(end):
            yield key
            if _order(key) == _order(end):
                return
            key = self.next_key(key)

    def keys(self, at: Moment) -> Iterator[Key]:
        """Yield the keys from the first to the last one at that moment."""
        return self.between(self.first, self.end_key(at))

    def keys_in(self, window: Window, at: Moment) -> Iterator[Key]:
        """Yield the keys of this set whose windows overlap `window`."""
        # In UTC, as a zone's own arithmetic goes by the wall clock: where a month begins at 1:00,
        # because midnight is skipped, the moment before would lie in the hour that is missing.
        last = window.end.astimezone(UTC) - timedelta(microseconds=1)
        start = max(self.key_at(window.start), self.first, key=_order)
        end = min(self.key_at(last), self.end_key(at), key=_order)
        return self.between(start, end)

    def coerce(self, value: Key, at: Moment) -> Key:
        """Accept a key of the set, or the text of one."""
        key, end = self.parse(value), self.end_key(at)
        if _order(self.first) <= _order(key) <= _order(end):
            return key
        raise BadPartition(f"partition {key} lies outside {self.first} to {end}")

    def _check(self) -> None:
        _zone(self.tz)
        if self.last is not None and _order(self.last) < _order(self.first):
            raise DefinitionError(f"the last partition {self.last} is before {self.first}")


@dataclass(frozen=True, init=False)
class DailyPartitions(TimePartitions):
    """One partition for each calendar day of a zone, from `start` to `end`, both included.

    Without `end` the set grows: it ends with the day that it is now in the zone.
    A day begins at local midnight, so it has 23, 24 or 25 hours.
    """

    first: date
    last: date | None
    tz: str

    def __init__(self, start: date | str, end: date | str | None = None, tz: str = "UTC") -> None:
        object.__setattr__(self, "first", _day(start))
        object.__setattr__(self, "last", None if end is None else _day(end))
        object.__setattr__(self, "tz", tz)
        self._check()

    def parse(self, value: Key) -> Key:
        """Accept a date or its ISO text."""
        return _day(value)

    def window(self, key: Key) -> Window:
        """Return midnight to midnight in the zone of the set."""
        day = cast("date", key)
        return Window(_midnight(day, self.tz), _midnight(_day_after(day), self.tz))

    def key_at(self, moment: datetime) -> Key:
        """Return the day that it is at `moment` in the zone of the set."""
        return moment.astimezone(_zone(self.tz)).date()

    def named(self, clock: datetime) -> Key:
        """Return the day of the calendar."""
        return clock.date()

    @property
    def cut(self) -> str:
        """Such as "daily, Europe/Berlin"."""
        return f"daily, {self.tz}"

    def next_key(self, key: Key) -> Key:
        """Return the next day."""
        return _day_after(cast("date", key))

    def __str__(self) -> str:
        return f"daily, {self.first} to {self.last or 'today'}, {self.tz}"


@dataclass(frozen=True, init=False)
class MonthlyPartitions(TimePartitions):
    """One partition for each calendar month of a zone, from `start` to `end`, both included.

    Without `end` the set grows: it ends with the month that it is now in the zone.
    """

    first: Month
    last: Month | None
    tz: str

    def __init__(self, start: Month | str, end: Month | str | None = None, tz: str = "UTC") -> None:
        object.__setattr__(self, "first", _month(start))
        object.__setattr__(self, "last", None if end is None else _month(end))
        object.__setattr__(self, "tz", tz)
        self._check()

    def parse(self, value: Key) -> Key:
        """Accept a Month or its text, "2013-01"."""
        return _month(value)

    def window(self, key: Key) -> Window:
        """Return the first midnight of the month to that of the next, in the zone of the set."""
        month = cast("Month", key)
        return Window(
            _midnight(month.first_day(), self.tz),
            _midnight(month.next().first_day(), self.tz),
        )

    def key_at(self, moment: datetime) -> Key:
        """Return the month that it is at `moment` in the zone of the set."""
        return Month.of(moment.astimezone(_zone(self.tz)).date())

    def named(self, clock: datetime) -> Key:
        """Return the month of the calendar."""
        return Month.of(clock)

    @property
    def cut(self) -> str:
        """Such as "monthly, Europe/Berlin"."""
        return f"monthly, {self.tz}"

    def next_key(self, key: Key) -> Key:
        """Return the next month."""
        return cast("Month", key).next()

    def __str__(self) -> str:
        return f"monthly, {self.first} to {self.last or 'this month'}, {self.tz}"


def first_keys(partitions: PartitionSet, count: int, at: Moment) -> list[Key]:
    """Return up to `count` keys, to show a person what keys look like."""
    return list(itertools.islice(partitions.keys(at), count))


def _order(key: Key) -> tuple[int, ...]:
    match key:
        case Month():
            return (key.year, key.month)
        case date():
            return (key.toordinal(),)
    raise BadPartition(f"{_say(key)} is not a time key")


def _day(value: Key) -> date:
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError as error:
            raise BadPartition(
                f"partition {value!r} is not a day; write it as 2013-01-15"
            ) from error
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise BadPartition(f"partition {_say(value)} is not a day; give a date, or write 2013-01-15")


def _month(value: Key) -> Month:
    if isinstance(value, str):
        try:
            return Month.parse(value)
        except BadPartition as error:
            raise BadPartition(f"partition {error.message}") from error
    if isinstance(value, Month):
        return value
    raise BadPartition(f"partition {_say(value)} is not a month; give a Month, or write 2013-01")


def _day_after(day: date) -> date:
    try:
        return day + timedelta(days=1)
    except OverflowError as error:
        raise BadPartition(f"there is no day after {day}") from error


def _midnight(day: date, tz: str) -> datetime:
    # Where a zone skips midnight, the day begins at the first moment that exists: going
    # through UTC turns the local time that does not exist into the one after the gap.
    local = datetime.combine(day, time(), tzinfo=_zone(tz))
    return local.astimezone(UTC).astimezone(_zone(tz))


def _zone(tz: str) -> ZoneInfo:
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise DefinitionError(f"{tz!r} is not an IANA time zone such as 'Europe/Berlin'") from error


def _say(value: Key) -> str:
    return repr(value) if isinstance(value, str | Unpartitioned) else f"{value!s}"


def parse_key(partitions: PartitionSet, encoded: str, at: Moment) -> Key:
    """Return the key of `partitions` that an encoded request key means, or raise BadPartition."""
    return partitions.coerce(decode_key(encoded), at)
