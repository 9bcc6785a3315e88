"""Hours of the day: how they are read, and when they begin, whatever is done to the clock."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.errors import BadConfig
from flowstone.hours import Hours

MINUTE = timedelta(minutes=1)
NIGHT = Hours.parse("22:00-06:00", "UTC")
CHANGES = {
    "UTC": ["2024-01-01 00:00"],
    "Asia/Kathmandu": ["2024-01-01 00:00"],
    "Europe/Berlin": ["2013-03-31 01:00", "2013-10-27 01:00"],
    "America/New_York": ["2013-03-10 07:00", "2013-11-03 06:00"],
    # Half an hour, midnight itself, and a whole day that is left out.
    "Australia/Lord_Howe": ["2013-04-06 15:00", "2013-10-05 15:30"],
    "America/Santiago": ["2024-04-07 03:00", "2024-09-08 04:00"],
    "Pacific/Apia": ["2011-12-30 10:00"],
}
"""Zones, and moments in UTC at which their clocks are changed."""


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("22:00-06:00", Hours(time(22), time(6), "UTC")),
        (" 9:05-17:30 ", Hours(time(9, 5), time(17, 30), "UTC")),
        ("00:00-23:59", Hours(time(0), time(23, 59), "UTC")),
    ],
)
def test_what_is_written_is_read(text: str, made: Hours) -> None:
    assert Hours.parse(text, "UTC") == made
    form, zone = str(made).split()
    assert Hours.parse(form, zone) == made


@pytest.mark.parametrize(
    ("text", "zone", "says"),
    [
        ("22:00", "UTC", "hours are '22:00'; write them as 22:00-06:00"),
        ("22-06", "UTC", "hours are '22-06'"),
        ("22:00-24:00", "UTC", "hours are '22:00-24:00'"),
        ("22:60-23:00", "UTC", "hours are '22:60-23:00'"),
        ("", "UTC", "hours are ''"),
        ("٢٢:00-06:00", "UTC", "hours are"),
        ("22:00-22:00", "UTC", "hours '22:00-22:00' are empty; leave them out"),
        ("22:00-06:00", "Mars", "'Mars' is not an IANA time zone, as 'Europe/Berlin' is"),
        ("22:00-06:00", "", "'' is not an IANA time zone"),
        ("22:00-06:00", "../etc", "'../etc' is not an IANA time zone"),
        ("22:00-06:00", "/etc/passwd", "'/etc/passwd' is not an IANA time zone"),
        ("22:00-06:00", "Europe", "'Europe' is not an IANA time zone"),
        ("22:00-06:00", "a\0b", "is not an IANA time zone"),
        ("22:00-06:00", None, "None is not an IANA time zone"),
        (None, "UTC", "hours are None"),
    ],
)
def test_what_makes_no_sense_is_told(text: str, zone: str, says: str) -> None:
    with pytest.raises(BadConfig, match=says):
        Hours.parse(text, zone)


@pytest.mark.parametrize(
    ("hours", "now", "opens"),
    [
        (NIGHT, "2024-01-01 21:59", "2024-01-01 22:00"),
        (NIGHT, "2024-01-01 22:00", None),
        (NIGHT, "2024-01-01 23:59:59.999999", None),
        (NIGHT, "2024-01-02 00:00", None),
        (NIGHT, "2024-01-02 05:59:59.5", None),
        (NIGHT, "2024-01-02 06:00", "2024-01-02 22:00"),
        (Hours(time(0), time(6)), "2024-01-01 23:00", "2024-01-02 00:00"),
        (Hours(time(18), time(0)), "2024-01-01 00:00", "2024-01-01 18:00"),
        (Hours(time(9), time(17)), "2024-01-01 17:00:00.25", "2024-01-02 09:00"),
        (Hours(time(9), time(17)), "2024-01-01 12:00", None),
    ],
)
def test_hours_may_go_past_midnight(hours: Hours, now: str, opens: str | None) -> None:
    assert hours.opens_at(at(now)) == (None if opens is None else at(opens))


def test_they_begin_again_where_the_clock_is_put_back() -> None:
    hours = Hours(time(2, 30), time(5), "Europe/Berlin")
    first, again = at("2013-10-27 00:30"), at("2013-10-27 01:30")
    assert hours.opens_at(first - 10 * MINUTE) == first
    assert hours.opens_at(first + 29 * MINUTE) is None
    assert hours.opens_at(first + 30 * MINUTE) == again
    assert hours.opens_at(again) is None


def test_they_begin_behind_the_gap_where_their_beginning_is_left_out() -> None:
    gap = at("2013-03-31 01:00")
    before = gap - 10 * MINUTE
    assert Hours(time(2, 30), time(5), "Europe/Berlin").opens_at(before) == gap
    # Nothing of them is left that night.
    none = Hours(time(2, 10), time(2, 50), "Europe/Berlin")
    assert none.opens_at(before) == at("2013-04-01 02:10", "Europe/Berlin")


MINUTES = st.integers(0, 24 * 60 - 1).map(lambda m: time(m // 60, m % 60))
NEAR = st.integers(0, 5 * 60).map(lambda m: time(m // 60, m % 60))


@given(
    st.sampled_from(sorted(CHANGES)),
    st.data(),
    st.tuples(MINUTES | NEAR, MINUTES | NEAR).filter(lambda ends: ends[0] != ends[1]),
)
def test_the_first_minute_within_them_is_found(
    zone: str, data: st.DataObject, ends: tuple[time, time]
) -> None:
    hours = Hours(*ends, zone)
    change = at(data.draw(st.sampled_from(CHANGES[zone])))
    now = change + data.draw(st.integers(-30 * 60, 6 * 60) | st.integers(-70, 70)) * MINUTE
    begins = now
    while not within(hours, begins):
        begins += MINUTE
    expected = None if begins == now else begins
    assert hours.opens_at(now) == expected
    later = now + data.draw(st.timedeltas(timedelta(), MINUTE - timedelta.resolution))
    assert hours.opens_at(later.astimezone(ZoneInfo(zone))) == expected


def within(hours: Hours, moment: datetime) -> bool:
    clock = moment.astimezone(ZoneInfo(hours.zone)).time()
    if hours.start < hours.end:
        return hours.start <= clock < hours.end
    return not hours.end <= clock < hours.start


def test_the_clocks_are_changed_at_these_moments() -> None:
    for zone, moments in CHANGES.items():
        for moment in map(at, moments):
            before, after = (
                one.astimezone(ZoneInfo(zone)).utcoffset() for one in (moment - MINUTE, moment)
            )
            assert (before != after) == (zone not in ("UTC", "Asia/Kathmandu")), (zone, moment)
