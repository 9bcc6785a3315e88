"""Hours, and what cron says: windows from one time that the clocks show to the next."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR, UTC, date, datetime, timedelta, timezone
from functools import cached_property
from typing import ClassVar, Final, cast

from cronsim import CronSim, CronSimError

from flowstone import calendar_text
from flowstone.errors import BadPartition, DefinitionError
from flowstone.partition_key import Key
from flowstone.partition_set import Window, say
from flowstone.time_partitions import NONE, TimePartitions, written
from flowstone.wall_clock import (
    Ticks,
    first_at,
    last_tick,
    moments_of,
    next_tick,
    with_offset,
)

HOUR: Final = timedelta(hours=1)
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}(:\d{2}.*)?", re.ASCII)
_HOUR: Final = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}", re.ASCII)

Edge = datetime | date | str
"""What a set begins or ends with: a moment or its text, or a day or the like, which stands for
the windows that begin in it."""


class TickPartitions(TimePartitions):
    """Keys that are the moments at which their windows begin.

    They have the offset from UTC that the zone has then, and no more of the zone: Python takes
    two moments of one zone for equal where the clocks show the same at both.
    """

    _one: ClassVar[str]
    """A window, in words."""
    _example: ClassVar[str]

    @property
    @abstractmethod
    def ticks(self) -> Ticks:
        """What the clocks show when a window begins."""

    def window(self, key: Key) -> Window:
        """Return the window of `key`, its ends with offsets from UTC."""
        return Window(with_offset(_moment(key), self._zone), self.next_key(key))

    def key_at(self, moment: datetime) -> datetime:
        """Return the key whose window holds `moment`, whether or not the set contains it."""
        try:
            tick = last_tick(moment.astimezone(UTC), self.ticks, self._zone)
        except OverflowError as error:
            raise BadPartition(f"no {self._one} begins before {moment}") from error
        return with_offset(tick, self._zone)

    def next_key(self, key: Key) -> datetime:
        """Return the key of the window after that of `key`."""
        return self._after(_moment(key))

    def previous_key(self, key: Key) -> datetime:
        """Return the key of the window before that of `key`."""
        return self.key_at(_moment(key) - timedelta.resolution)

    def parse(self, value: Key) -> datetime:
        """Accept the moment at which a window begins, or its text; without an offset, by the clock.

        Where the clocks are set back they show one time twice: then the offset has to be given.
        """
        given = self._read(value) if isinstance(value, str) else value
        if not isinstance(given, datetime):
            raise BadPartition(
                f"partition {say(value)} is no time; give a datetime, or write {self._example}"
            )
        if given.tzinfo is not None:
            return self._begins(given.astimezone(UTC), value)
        moments = moments_of(given, self._zone)
        if not moments:
            raise BadPartition(f"partition {say(value)}: the clocks of {self.tz} skip this time")
        ticks = [moment for moment in moments if self._is_tick(moment)]
        if len(ticks) > 1:
            first, second = (written(with_offset(tick, self._zone)) for tick in ticks)
            raise BadPartition(
                f"partition {say(value)}: the clocks of {self.tz} show this time twice; "
                f"write {first} or {second}"
            )
        return self._begins((ticks or moments)[0], value)

    def span(self, text: str) -> tuple[Key, Key]:
        """Return the first and the last key that a text names; raise BadPartition."""
        try:
            stretch = calendar_text.read(text)
        except BadPartition as error:
            if not _TIME.fullmatch(text):
                raise BadPartition(f"partition {error.message}") from error
            key = self.parse(text)
            return key, key
        return self.span_of(stretch)

    def span_of(self, stretch: calendar_text.Stretch) -> tuple[datetime, datetime]:
        """Return the keys of the first and the last window that begin in it."""
        first, last = self._rounded(stretch.first), self._rounded(stretch.last)
        moments = moments_of(last, self._zone)
        end = moments[-1] if moments else first_at(last, self._zone) - timedelta.resolution
        start = first_at(first, self._zone) - timedelta.resolution
        return self._after(start), self.key_at(end)

    def _rounded(self, clock: datetime) -> datetime:
        """Return the tick that is meant by a time of the clock, where that is not the time."""
        return clock

    def _after(self, moment: datetime) -> datetime:
        try:
            return with_offset(next_tick(moment, self.ticks, self._zone), self._zone)
        except (OverflowError, ValueError) as error:
            raise BadPartition(f"no {self._one} begins after {moment}") from error

    def _is_tick(self, moment: datetime) -> bool:
        return last_tick(moment, self.ticks, self._zone) == moment

    def _begins(self, moment: datetime, value: Key) -> datetime:
        """Return the key that begins at a moment; raise BadPartition if there is none."""
        before = self.key_at(moment)
        if before == moment:
            return before
        raise BadPartition(
            f"partition {say(value)}: no {self._one} begins then; "
            f"the nearest are {written(before)} and {written(self._after(moment))}"
        )

    def _read(self, text: str) -> datetime | str:
        if not (found := _TIME.fullmatch(text)):
            return text
        try:
            given = datetime.fromisoformat(text)
        except ValueError as error:
            raise BadPartition(f"partition {text!r} is not in the calendar") from error
        return given if found[1] else self._rounded(given)

    def _keep_edges(self, start: Edge, end: Edge | None) -> None:
        self._keep_ends(self._edge(start, 0), None if end is None else self._edge(end, 1))

    def _edge(self, given: Edge, side: int) -> Key:
        if isinstance(given, datetime):
            return self.parse(given)
        if not isinstance(given, date | str):
            raise BadPartition(
                f"partition {say(given)} is no time; give a datetime, a date, or write "
                f"{self._example}"
            )
        return self.span(given.isoformat() if isinstance(given, date) else given)[side]


@dataclass(frozen=True)
class FullHours:
    """The times that are so much later than a full hour."""

    offset: timedelta

    @property
    def is_each_pass(self) -> bool:
        """An hour that is shown twice is two hours."""
        return True

    def after(self, clock: datetime) -> Iterator[datetime]:
        """Yield those after that time, in order."""
        tick = self.until_or_at(clock)
        while True:
            tick += HOUR
            yield tick

    def until(self, clock: datetime) -> Iterator[datetime]:
        """Yield those until that time, it included, backwards."""
        tick = self.until_or_at(clock)
        while True:
            yield tick
            tick -= HOUR

    def until_or_at(self, clock: datetime) -> datetime:
        """Return the last one until that time, it included."""
        tick = self.of_hour(clock)
        return tick if tick <= clock else tick - HOUR

    def of_hour(self, clock: datetime) -> datetime:
        """Return the one of the hour of that time."""
        return clock.replace(minute=0, second=0, microsecond=0) + self.offset


@dataclass(frozen=True, init=False)
class HourlyPartitions(TickPartitions):
    """One partition for each hour that the clocks of a zone show, from `start` to `end`.

    The key is the moment at which the hour begins: when the clocks show it full, or as much more
    as `offset` says. The hour that they show twice in autumn is two partitions, that which they
    skip in spring is none. Where a zone sets its clocks by half an hour, one hour has 30 or 90
    minutes. `start` and `end` are both included; a day stands for all its hours. Without `end` the
    set grows: it ends with the hour that it is now.
    """

    first: datetime
    last: datetime | None
    tz: str
    offset: timedelta

    kind = "hourly"
    _now = "this hour"
    _shortest = HOUR
    _one = "hour"
    _example = "2013-01-15T07"

    def __init__(
        self, start: Edge, end: Edge | None = None, tz: str = "UTC", offset: timedelta = NONE
    ) -> None:
        self._keep(tz, offset)
        self._keep_edges(start, end)

    @cached_property
    def ticks(self) -> FullHours:
        """The full hours, or as much later as the offset says."""
        return FullHours(self.offset)

    def key_at(self, moment: datetime) -> datetime:
        """Return the hour that it is at `moment`, whether or not the set contains it."""
        now = with_offset(moment, self._zone)
        clock = now.replace(tzinfo=None)
        if clock.year > MINYEAR:
            # Nearly always, and an order of magnitude faster.
            begin = now - (clock - self.ticks.until_or_at(clock))
            if begin.astimezone(self._zone).utcoffset() == now.utcoffset():
                return begin
        return super().key_at(moment)

    def next_key(self, key: Key) -> datetime:
        """Return the next hour."""
        now = cast("datetime", key)
        if isinstance(now.tzinfo, timezone) and now.year < MAXYEAR:
            # As above.
            later = now + HOUR
            if later.astimezone(self._zone).utcoffset() == now.utcoffset():
                return later
        return super().next_key(key)

    def _rounded(self, clock: datetime) -> datetime:
        return self.ticks.of_hour(clock)


@dataclass(frozen=True)
class CronTicks:
    """The times that a cron expression names."""

    cron: str

    @property
    def is_each_pass(self) -> bool:
        """Whether it names the times of an interval, by a minute or an hour that begins with *."""
        return any(part.startswith("*") for part in self.cron.split()[:2])

    def after(self, clock: datetime) -> Iterator[datetime]:
        """Yield those after that time, in order."""
        return CronSim(self.cron, clock)

    def until(self, clock: datetime) -> Iterator[datetime]:
        """Yield those until that time, it included, backwards."""
        # A time that is not a full second is not left out itself.
        return CronSim(self.cron, clock.replace(microsecond=clock.microsecond or 1), reverse=True)


@dataclass(frozen=True, init=False)
class CronPartitions(TickPartitions):
    """One partition from each time that a cron expression names to the next, in a zone.

    The key is the moment at which the window begins. Clocks that are changed count as in the cron
    of Debian. Times of day, such as 30 2 * * *, come once a day: where the clocks show them twice,
    the first time; where they skip them, at the first moment afterwards. Intervals, whose minute
    or hour begins with * as in */15 * * * *, come whenever the clocks show them: twice where they
    are set back, and never where they skip them.

    `start` and `end` are both included: a moment, or a day or the like that stands for all windows
    that begin in it. Without `end` the set grows: it ends with the window that has begun.
    """

    cron: str
    first: datetime
    last: datetime | None
    tz: str
    offset: timedelta = field(repr=False)

    kind = "cron"
    _now = "now"
    _shortest = timedelta.resolution
    _one = "window"
    _example = "2013-01-15T07:30"

    def __init__(self, cron: str, start: Edge, end: Edge | None = None, tz: str = "UTC") -> None:
        self._keep(tz, NONE)
        object.__setattr__(self, "cron", _checked(cron))
        self._keep_edges(start, end)

    def _keep_ends(self, first: Key, last: Key | None) -> None:
        if last is not None and self.is_before(last, first):
            raise DefinitionError(
                f"no window of {self.cron!r} begins between the start and the end: the first one "
                f"after the start is {written(first)}, the last one before the end {written(last)}"
            )
        super()._keep_ends(first, last)

    @cached_property
    def ticks(self) -> CronTicks:
        """The times of the expression."""
        return CronTicks(self.cron)

    @property
    def cut(self) -> str:
        """Such as "cron 0 6 * * 1, Europe/Berlin"."""
        return f"cron {self.cron}, {self.tz}"

    def _read(self, text: str) -> datetime | str:
        # An hour may hold several windows, and is no text for the first of them.
        return text if _HOUR.fullmatch(text) else super()._read(text)

    def holds_many(self, text: str) -> bool:
        """Return whether a window begins in the time that a text names."""
        try:
            low, high = self.span(text)
        except BadPartition:
            return False
        return not self.is_before(high, low)


def _checked(cron: str) -> str:
    """Return the expression with single spaces; raise DefinitionError if cron has none such."""
    if not isinstance(cron, str):
        raise DefinitionError(f"{cron!r} is not a cron expression; write it as '0 6 * * 1'")
    fields = cron.split()
    if len(fields) != 5:  # noqa: PLR2004
        raise DefinitionError(
            f"{cron!r} has {len(fields)} fields; a cron expression has five: minute, hour, day of "
            "the month, month, day of the week, as in '0 6 * * 1'"
        )
    try:
        # Fifty years, which it looks through, hold each day that there is.
        if next(CronSim(cron, datetime(2000, 1, 1)), None) is None:  # noqa: DTZ001 - it has no zone
            raise DefinitionError(f"the cron expression {cron!r} names no day that there is")
    except CronSimError as error:
        raise DefinitionError(f"{cron!r} is not a cron expression: {error}") from error
    return " ".join(fields)


def _moment(key: Key) -> datetime:
    return cast("datetime", key).astimezone(UTC)
