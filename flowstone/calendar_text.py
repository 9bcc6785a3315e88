"""What people write for a stretch of the calendar: a year, a month, a week, a day, an hour."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Final, NamedTuple

from flowstone.errors import BadPartition


class Stretch(NamedTuple):
    """The first and the last moment of a stretch of the calendar, without a zone."""

    first: datetime
    last: datetime


def read(text: str) -> Stretch:
    """Return the stretch that a text names.

    It is a year (2013), a month (2013-01), a week (2013-W03), a day (2013-01-15), an hour
    (2013-01-15T07) or a minute (2013-01-15T07:30). Raises BadPartition for anything else.
    """
    for form, stretch in _FORMS.items():
        if found := re.fullmatch(form, text, re.ASCII):
            try:
                return stretch(*map(int, found.groups()))
            except ValueError as error:
                raise BadPartition(f"{text!r} is not in the calendar") from error
    raise BadPartition(
        f"{text!r} is no time; write it as 2013, 2013-01, 2013-W03, 2013-01-15 or 2013-01-15T07"
    )


def _year(year: int) -> Stretch:
    return _days(date(year, 1, 1), date(year, 12, 31))


def _month(year: int, month: int) -> Stretch:
    first = date(year, month, 1)
    return _days(first, date(year, month, calendar.monthrange(year, month)[1]))


def _week(year: int, week: int) -> Stretch:
    return _days(date.fromisocalendar(year, week, 1), date.fromisocalendar(year, week, 7))


def _day(year: int, month: int, day: int) -> Stretch:
    return _days(date(year, month, day), date(year, month, day))


def _hour(year: int, month: int, day: int, hour: int) -> Stretch:
    start = _clock(year, month, day, hour, 0)
    return Stretch(start, start + (timedelta(hours=1) - timedelta.resolution))


def _minute(year: int, month: int, day: int, hour: int, minute: int) -> Stretch:
    start = _clock(year, month, day, hour, minute)
    return Stretch(start, start + (timedelta(minutes=1) - timedelta.resolution))


def _days(first: date, last: date) -> Stretch:
    return Stretch(datetime.combine(first, time.min), datetime.combine(last, time.max))


def _clock(year: int, month: int, day: int, hour: int, minute: int) -> datetime:
    return datetime.combine(date(year, month, day), time(hour, minute))


_FORMS: Final[dict[str, Callable[..., Stretch]]] = {
    r"(\d{4})": _year,
    r"(\d{4})-(\d{2})": _month,
    r"(\d{4})-W(\d{2})": _week,
    r"(\d{4})-(\d{2})-(\d{2})": _day,
    r"(\d{4})-(\d{2})-(\d{2})[T ](\d{2})": _hour,
    r"(\d{4})-(\d{2})-(\d{2})[T ](\d{2}):(\d{2})": _minute,
}
