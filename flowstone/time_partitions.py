"""What sets of time have in common: their keys stand for windows that follow each other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import Any, ClassVar, cast
from zoneinfo import ZoneInfo

from flowstone import calendar_text
from flowstone.errors import BadPartition, DefinitionError
from flowstone.partition_key import Key, Month, encode_key, label
from flowstone.partition_set import Moment, PartitionSet, Window, say
from flowstone.wall_clock import zone_of

NONE: timedelta = timedelta()
"""The offset of windows that begin where those of the calendar do."""


class TimePartitions(PartitionSet):
    """Keys that stand for windows of time which follow each other without a gap."""

    first: Key
    last: Key | None
    tz: str
    offset: timedelta
    """How much later than the hour, day, week or month of the calendar a window begins."""

    kind: ClassVar[str]
    """What a person calls it: "daily"."""
    _now: ClassVar[str]
    """The last key of a set without an end, in words."""
    _shortest: ClassVar[timedelta]
    """The unit of the calendar at its shortest: what an offset has to be less than."""

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
    def previous_key(self, key: Key) -> Key:
        """Return the key of the window before that of `key`."""

    @abstractmethod
    def parse(self, value: Key) -> Key:
        """Return `value`, or the text of a key, as a key; raise BadPartition if it is none."""

    @abstractmethod
    def span_of(self, stretch: calendar_text.Stretch) -> tuple[Key, Key]:
        """Return the first and the last key of a stretch of the calendar and its clock.

        Where it is shorter than a window, both are the key of the one in which it lies.
        """

    def shifted(self, key: Key, count: int) -> Key:
        """Return the key so many windows later, or earlier; it need not be in the set.

        Raises BadPartition where time has come to its end.
        """
        step = self.next_key if count > 0 else self.previous_key
        for _ in range(abs(count)):
            key = step(key)
        return key

    def rank(self, key: Key) -> Any:  # noqa: ANN401 - Python has no type for what has an order
        """Return what sorts keys by time."""
        if isinstance(key, date | Month):
            return key
        raise BadPartition(f"{say(key)} is not a time key")

    def is_before(self, key: Key, other: Key) -> bool:
        """Return whether the window of `key` begins before that of `other`."""
        return bool(self.rank(key) < self.rank(other))

    def span(self, text: str) -> tuple[Key, Key]:
        """Return the first and the last key that a text names: 2013-01 all days of that month.

        They need not be in the set. A finer text names the one key in which it lies. Raises
        BadPartition for what is no time.
        """
        try:
            key = self.parse(text)
        except BadPartition:
            return self.span_of(calendar_text.read(text))
        return key, key

    def holds_many(self, text: str) -> bool:
        """Return whether a text is a time that is longer than one key of the set."""
        try:
            low, high = self.span(text)
        except BadPartition:
            return False
        return self.is_before(low, high)

    def end_key(self, at: Moment) -> Key:
        """Return the last key then: the given end, or that of the window that has begun."""
        if self.last is not None:
            return self.last
        # Each key that is looked at asks for it, and of the same moment.
        now, key = self.__dict__.get("_latest", (None, None))
        if now != at.now:
            key = self.key_at(at.now)
            self.__dict__["_latest"] = at.now, key
        return cast("Key", key)

    def between(self, start: Key, end: Key) -> Iterator[Key]:
        """Yield the keys from `start` to `end`, both included."""
        key, stop = start, self.rank(end)
        while (rank := self.rank(key)) <= stop:
            yield key
            if rank == stop:
                return
            key = self.next_key(key)

    def keys(self, at: Moment) -> Iterator[Key]:
        """Yield the keys from the first to the last one at that moment."""
        return self.between(self.first, self.end_key(at))

    def coerce(self, value: Key, at: Moment) -> Key:
        """Accept a key of the set, or the text of one."""
        key, end = self.parse(value), self.end_key(at)
        if self.rank(self.first) <= self.rank(key) <= self.rank(end):
            return key
        if self.is_before(end, self.first):
            raise BadPartition(
                f"partition {written(key)}: there is none yet, as the first one, "
                f"{written(self.first)}, has not begun"
            )
        raise BadPartition(
            f"partition {written(key)} lies outside {written(self.first)} to {written(end)}"
        )

    @property
    def cut(self) -> str:
        """How time is cut, such as "daily, Europe/Berlin" or "daily +6:00:00, UTC"."""
        return f"{self.kind}{f' +{self.offset}' if self.offset else ''}, {self.tz}"

    def __str__(self) -> str:
        cut, _, tz = self.cut.rpartition(", ")
        end = self._now if self.last is None else written(self.last)
        return f"{cut}, {written(self.first)} to {end}, {tz}"

    @cached_property
    def _zone(self) -> ZoneInfo:
        return zone_of(self.tz)

    def _keep(self, tz: str, offset: timedelta) -> None:
        """Keep what a set is defined by before its keys can be read; raise DefinitionError."""
        object.__setattr__(self, "tz", tz)
        object.__setattr__(self, "offset", offset)
        zone_of(tz)
        if not isinstance(offset, timedelta):
            raise DefinitionError(
                f"the offset of {self.kind} partitions is {offset!r}; give a timedelta, such as "
                "timedelta(hours=6)"
            )
        if not timedelta() <= offset < self._shortest:
            raise DefinitionError(
                f"the offset of {self.kind} partitions is {offset}; it has to be less than "
                f"{self._shortest}, and not negative"
            )

    def _keep_ends(self, first: Key, last: Key | None) -> None:
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "last", last)
        if last is not None and self.is_before(last, first):
            raise DefinitionError(
                f"the last partition {written(last)} is before {written(first)}, the first"
            )


def written(key: Key) -> str:
    """Return a key as people write it."""
    return label(encode_key(key))
