"""Hours of the day in which steps may start: "22:00-06:00" by the wall clock of a zone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
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
        found = _FORM.fullmatch(text.strip())
        try:
            ZoneInfo(zone)
            first, minute, last, other = map(int, found.groups() if found else ())
            made = cls(time(first, minute), time(last, other), zone)
        except (ZoneInfoNotFoundError, OSError) as error:
            raise BadConfig(f"{zone!r} is not an IANA time zone, as 'Europe/Berlin' is") from error
        except ValueError as error:
            raise BadConfig(f"hours are {text!r}; write them as 22:00-06:00") from error
        if made.start == made.end:
            raise BadConfig(f"hours {text!r} are empty; leave them out to start at any time")
        return made

    def opens_at(self, now: datetime) -> datetime | None:
        """Return when they begin next, in UTC, or None if it is within them at `now`."""
        local = now.astimezone(ZoneInfo(self.zone))
        if self._holds(local.time()):
            return None
        day = local.date() + timedelta(days=local.time() > self.start)
        # Where the clock skips that moment, it is the one after the gap.
        return datetime.combine(day, self.start, ZoneInfo(self.zone)).astimezone(UTC)

    def _holds(self, moment: time) -> bool:
        if self.start < self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M} {self.zone}"
