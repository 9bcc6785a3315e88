"""Days, weeks and months: windows that begin with a day of the calendar."""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import cast

from flowstone import calendar_text
from flowstone.errors import BadPartition
from flowstone.partition_key import Key, Month
from flowstone.partition_set import Window, say
from flowstone.time_partitions import NONE, TimePartitions
from flowstone.wall_clock import first_at, shown

DAY = timedelta(days=1)


class CalendarPartitions(TimePartitions):
    """Keys that are named by the calendar. Their windows begin as late as the offset says.

    A window begins when the clocks first show its time, or where they skip that, when they go on.
    """

    @abstractmethod
    def named(self, day: date) -> Key:
        """Return the key to which a day of the calendar belongs, whatever the offset."""

    @abstractmethod
    def first_day(self, key: Key) -> date:
        """Return the day of the calendar with which `key` begins, whatever the offset."""

    def window(self, key: Key) -> Window:
        """Return the window from the begin of `key` to that of the next, in the zone of the set."""
        start, end = self._begin(key), self._begin(self.next_key(key))
        return Window(start.astimezone(self._zone), end.astimezone(self._zone))

    def key_at(self, moment: datetime) -> Key:
        """Return the key whose window holds `moment`, whether or not the set contains it."""
        moment = moment.astimezone(UTC)
        key = self.named((shown(moment, self._zone) - self.offset).date())
        # Where clocks are changed at the begin of a window, they may show another day than its own.
        while self._begin(key) > moment:
            key = self.previous_key(key)
        while self._has_ended(key, moment):
            key = self.next_key(key)
        return key

    def next_key(self, key: Key) -> Key:
        """Return the key after this one."""
        return self.shifted(key, 1)

    def previous_key(self, key: Key) -> Key:
        """Return the key before this one."""
        return self.shifted(key, -1)

    def span_of(self, stretch: calendar_text.Stretch) -> tuple[Key, Key]:
        """Return the keys to which its first and its last day belong."""
        return self.named(stretch.first.date()), self.named(stretch.last.date())

    def _begin(self, key: Key) -> datetime:
        clock = datetime.combine(self.first_day(key), time()) + self.offset
        return first_at(clock, self._zone)

    def _has_ended(self, key: Key, moment: datetime) -> bool:
        try:
            return self._begin(self.next_key(key)) <= moment
        except BadPartition:
            return False


@dataclass(frozen=True, init=False)
class DailyPartitions(CalendarPartitions):
    """One partition for each calendar day of a zone, from `start` to `end`, both included.

    Without `end` the set grows: it ends with the day that it is now in the zone. A day begins at
    local midnight, or as much later as `offset` says, so it has 23, 24 or 25 hours. A day that
    a zone has left out has a key, and a window of no length.
    """

    first: date
    last: date | None
    tz: str
    offset: timedelta

    kind = "daily"
    _now = "today"
    _shortest = DAY

    def __init__(
        self,
        start: date | str,
        end: date | str | None = None,
        tz: str = "UTC",
        offset: timedelta = NONE,
    ) -> None:
        self._keep(tz, offset)
        self._keep_ends(_day(start), None if end is None else _day(end))

    def parse(self, value: Key) -> Key:
        """Accept a date or its ISO text."""
        return _day(value)

    def named(self, day: date) -> Key:
        """Return the day itself."""
        return day

    def first_day(self, key: Key) -> date:
        """Return the key itself."""
        return cast("date", key)

    def shifted(self, key: Key, count: int) -> Key:
        """Return the day so many days later, or earlier."""
        return _days_after(cast("date", key), count)


@dataclass(frozen=True, init=False)
class WeeklyPartitions(CalendarPartitions):
    """One partition for each week of a zone, from `start` to `end`, both included.

    Its key is the Monday of the week. With an `offset` of two days the week begins on Wednesday,
    and its key still is the Monday. Without `end` the set grows: it ends with this week.
    """

    first: date
    last: date | None
    tz: str
    offset: timedelta

    kind = "weekly"
    _now = "this week"
    _shortest = 7 * DAY

    def __init__(
        self,
        start: date | str,
        end: date | str | None = None,
        tz: str = "UTC",
        offset: timedelta = NONE,
    ) -> None:
        self._keep(tz, offset)
        self._keep_ends(_monday(start), None if end is None else _monday(end))

    def parse(self, value: Key) -> Key:
        """Accept a Monday or its ISO text, or the ISO text of a week, "2013-W03"."""
        return _monday(value)

    def named(self, day: date) -> Key:
        """Return the Monday of the week."""
        return _monday_of(day)

    def first_day(self, key: Key) -> date:
        """Return the Monday, which the key is."""
        return cast("date", key)

    def shifted(self, key: Key, count: int) -> Key:
        """Return the Monday so many weeks later, or earlier."""
        return _days_after(cast("date", key), 7 * count)


@dataclass(frozen=True, init=False)
class MonthlyPartitions(CalendarPartitions):
    """One partition for each calendar month of a zone, from `start` to `end`, both included.

    With an `offset` of four days it begins on the 5th, and its key still is the month. Without
    `end` the set grows: it ends with the month that it is now in the zone.
    """

    first: Month
    last: Month | None
    tz: str
    offset: timedelta

    kind = "monthly"
    _now = "this month"
    _shortest = 28 * DAY

    def __init__(
        self,
        start: Month | str,
        end: Month | str | None = None,
        tz: str = "UTC",
        offset: timedelta = NONE,
    ) -> None:
        self._keep(tz, offset)
        self._keep_ends(_month(start), None if end is None else _month(end))

    def parse(self, value: Key) -> Key:
        """Accept a Month or its text, "2013-01"."""
        return _month(value)

    def named(self, day: date) -> Key:
        """Return the month of the day."""
        return Month.of(day)

    def first_day(self, key: Key) -> date:
        """Return the first of the month."""
        return cast("Month", key).first_day()

    def shifted(self, key: Key, count: int) -> Key:
        """Return the month so many months later, or earlier."""
        return cast("Month", key).plus(count)


def _day(value: Key) -> date:
    if isinstance(value, str):
        try:
            if re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII):
                return date.fromisoformat(value)
        except ValueError as error:
            raise BadPartition(f"partition {value!r} is not a day of the calendar") from error
        raise BadPartition(f"partition {value!r} is not a day; write it as 2013-01-15")
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise BadPartition(f"partition {say(value)} is not a day; give a date, or write 2013-01-15")


def _monday(value: Key) -> date:
    if isinstance(value, str) and "W" in value:
        try:
            return calendar_text.read(value).first.date()
        except BadPartition as error:
            raise BadPartition(f"partition {error.message}") from error
    day = _day(value)
    if day != (monday := _monday_of(day)):
        raise BadPartition(f"partition {day} is not a Monday; its week is that of {monday}")
    return day


def _monday_of(day: date) -> date:
    # The calendar begins with a Monday.
    return day - timedelta(days=day.weekday())


def _month(value: Key) -> Month:
    if isinstance(value, str):
        try:
            return Month.parse(value)
        except BadPartition as error:
            raise BadPartition(f"partition {error.message}") from error
    if isinstance(value, Month):
        return value
    raise BadPartition(f"partition {say(value)} is not a month; give a Month, or write 2013-01")


def _days_after(day: date, days: int) -> date:
    try:
        return day + timedelta(days=days)
    except OverflowError as error:
        said = "after" if days > 0 else "before"
        raise BadPartition(f"there is no day {abs(days)} days {said} {day}") from error
