"""Hours of the day in which steps may start: "22:00-06:00" by the wall clock of a zone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flowstone.errors import BadConfig

_FORM: Final = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", re.ASCII)


@dataclass(frozen=True)
class Hours:
    """A stretch of each day, from `start` to `end`, which may lie behind midnight."""

    start: time
    end: time
    zone: str = "UTC"

    @classmethod
    def parse(cls, text: str, zone: str) -> Hours:
        """Read "22:00-06:00"; raise BadConfig for anything else, or a zone that there is not."""
        check_zone(zone)
        try:
            found = _FORM.fullmatch(text.strip())
            first, minute, last, other = map(int, found.groups() if found else ())
            made = cls(time(first, minute), time(last, other), zone)
        except (ValueError, AttributeError) as error:
            raise BadConfig(f"hours are {text!r}; write them as 22:00-06:00") from error
        if made.start == made.end:
            raise BadConfig(f"hours {text!r} are empty; leave them out to start at any time")
        return made

    def opens_at(self, now: datetime) -> datetime | None:
        """Return when they begin next, in UTC, or None if it is within them at `now`."""
        zone = ZoneInfo(self.zone)
        # In UTC, as moments of a doubled hour equal none of another zone.
        begin = moment = now.astimezone(UTC)
        while not self._holds(local := moment.astimezone(zone).time()):
            # The clock may be put into the hours, or past their beginning, and back again.
            ahead = moment + _until(local, self.start)
            moment = _change(zone, moment, ahead) or ahead
        return None if moment == begin else moment

    def _holds(self, moment: time) -> bool:
        if self.start < self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M} {self.zone}"


def check_zone(zone: str) -> None:
    """Raise BadConfig for a time zone that there is not."""
    try:
        ZoneInfo(zone)
    # It is a path of a file, and may be none, or that of a folder, or lead elsewhere.
    except (ZoneInfoNotFoundError, OSError, ValueError, TypeError, AttributeError) as error:
        raise BadConfig(f"{zone!r} is not an IANA time zone, as 'Europe/Berlin' is") from error


def _until(local: time, start: time) -> timedelta:
    """Return how long it is until a time of the day, by a clock that nobody changes."""
    day = date.min
    ahead = datetime.combine(day, start) - datetime.combine(day, local)
    return ahead if ahead > timedelta() else ahead + timedelta(days=1)


def _change(zone: ZoneInfo, start: datetime, end: datetime) -> datetime | None:
    """Return the first moment after `start`, up to `end`, at which the clock is changed."""
    before = _offset(zone, start)
    if _offset(zone, end) == before:
        return None
    low = start.replace(microsecond=0)
    while (left := (end - low) // 2) >= timedelta(seconds=1):
        middle = (low + left).replace(microsecond=0)
        if _offset(zone, middle) == before:
            low = middle
        else:
            end = middle
    return end.replace(microsecond=0)


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta | None:
    return moment.astimezone(zone).utcoffset()
