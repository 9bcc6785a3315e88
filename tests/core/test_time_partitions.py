"""Sets of time: their windows tile time, whatever the clocks of a zone do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flowstone.choice import chosen, parse_choice
from flowstone.errors import BadPartition, DefinitionError
from flowstone.partition import (
    CronPartitions,
    DailyPartitions,
    HourlyPartitions,
    Moment,
    Month,
    MonthlyPartitions,
    TimePartitions,
    WeeklyPartitions,
)
from flowstone.partition_key import Key, decode_key, encode_key, label
from tests.strategies import NOW, ZONES

MICROSECOND = timedelta.resolution
CRONS = (
    "0 6 * * *",
    "30 2 * * *",
    "*/15 2 * * *",
    "*/20 * * * *",
    "0 0 * * *",
    "0,30 0-3 * * *",
    "15 23,0,1 * * *",
    "* 0 5 11 *",
    "0 */6 * * 1",
    "45 1 1,15 * *",
    "0 12 29 2 *",
)
ODD = (
    "America/St_Johns",  # set its clocks back at one minute past midnight
    "Africa/Casablanca",
    "Antarctica/Troll",  # by two hours
    "America/Toronto",  # skipped from half past eleven until half past midnight
    "Africa/Monrovia",  # by 44 minutes and a half
    "Pacific/Kwajalein",  # lacks the day 1993-08-21, and set its clocks back by 23 hours
)

offsets = st.integers(0, 3599).map(lambda s: timedelta(seconds=s)) | st.sampled_from(
    [timedelta(), timedelta(minutes=15), timedelta(minutes=45)]
)


@st.composite
def time_sets(draw: st.DrawFn) -> TimePartitions:
    tz = draw(st.sampled_from(ZONES + ODD))
    less = draw(offsets)
    match draw(st.sampled_from(["hourly", "daily", "weekly", "monthly", "cron", "cron"])):
        case "hourly":
            return HourlyPartitions("1910", tz=tz, offset=less)
        case "daily":
            return DailyPartitions("1910-01-01", tz=tz, offset=less * 23)
        case "weekly":
            return WeeklyPartitions("1909-12-27", tz=tz, offset=less * 23 * 7)
        case "monthly":
            return MonthlyPartitions("1910-01", tz=tz, offset=less * 23 * 28)
    return CronPartitions(draw(st.sampled_from(CRONS)), "1910", tz=tz)


def changes(tz: str) -> list[datetime]:
    """The hours before the clocks of a zone were changed."""
    zone, hour = ZoneInfo(tz), timedelta(hours=1)
    days = [
        datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=n) for year in YEARS for n in range(366)
    ]
    nights = [
        d
        for d in days
        if d.astimezone(zone).utcoffset() != (d + 24 * hour).astimezone(zone).utcoffset()
    ]
    return [n + hour * h for n in nights for h in range(-3, 27)] or days[:1]


YEARS = (1919, 1969, 1972, 1993, 2011, 2013, 2018, 2024)
CHANGES = {tz: changes(tz) for tz in ZONES + ODD}


@st.composite
def sets_and_moments(draw: st.DrawFn) -> tuple[TimePartitions, datetime]:
    partitions = draw(time_sets())
    near = draw(st.sampled_from(CHANGES[partitions.tz]))
    far = draw(st.datetimes(datetime(1920, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
    moment = draw(st.sampled_from([near, near, far]))
    return partitions, moment + timedelta(seconds=draw(st.integers(0, 3600)))


@settings(deadline=None, max_examples=200)
@given(sets_and_moments())
def test_windows_tile_time_whatever_the_clocks_do(given_: tuple[TimePartitions, datetime]) -> None:
    partitions, moment = given_
    key = partitions.key_at(moment)
    for _ in range(4):
        following = partitions.next_key(key)
        window, next_window = partitions.window(key), partitions.window(following)
        start, end = window.start.astimezone(UTC), window.end.astimezone(UTC)
        assert end == next_window.start.astimezone(UTC)
        assert partitions.previous_key(following) == key
        assert partitions.next_key(partitions.previous_key(key)) == key
        assert partitions.shifted(partitions.shifted(key, 2), -2) == key
        assert partitions.is_before(key, following)
        assert decode_key(encode_key(key)) == key
        assert encode_key(decode_key(encode_key(key))) == encode_key(key)
        if start == end:
            assert isinstance(key, date)  # a day that the zone has left out
        else:
            assert start < end
            assert encode_key(partitions.key_at(start)) == encode_key(key)
            assert encode_key(partitions.key_at(end - MICROSECOND)) == encode_key(key)
            assert partitions.key_at(start + (end - start) / 2) == key
        key = following
    first = partitions.window(partitions.key_at(moment))
    assert first.start <= moment < first.end


@settings(deadline=None, max_examples=200)
@given(sets_and_moments(), st.integers(0, 40))
def test_keys_are_found_again_by_what_people_write_for_them(
    given_: tuple[TimePartitions, datetime], count: int
) -> None:
    partitions, moment = given_
    at = Moment(moment)
    start = partitions.key_at(moment - timedelta(days=1))
    found = list(partitions.between(start, partitions.key_at(moment)))
    assert len(set(found)) == len(found)
    assert found == sorted(found, key=partitions.rank)
    for key in found[:40]:
        assert partitions.coerce(key, at) == key
        assert encode_key(partitions.coerce(label(encode_key(key)), at)) == encode_key(key)
    key = found[count % len(found)]
    choice = parse_choice(f"{label(encode_key(key))}..")
    assert list(chosen(partitions, choice, at)) == found[count % len(found) :]


@settings(deadline=None, max_examples=100)
@given(sets_and_moments())
def test_a_day_of_the_clock_holds_the_keys_that_begin_in_it(
    given_: tuple[TimePartitions, datetime],
) -> None:
    partitions, moment = given_
    assume(isinstance(partitions, HourlyPartitions | CronPartitions) and not partitions.offset)
    day = moment.astimezone(ZoneInfo(partitions.tz)).date()
    around = list(
        partitions.between(
            partitions.key_at(moment - timedelta(days=3)),
            partitions.key_at(moment + timedelta(days=3)),
        )
    )
    within = [n for n, key in enumerate(around) if isinstance(key, datetime) and key.date() == day]
    # In St. John's, midnight has come twice: a minute of the next day lies within such a day.
    wanted = around[within[0] : within[-1] + 1] if within else []
    try:
        found = list(chosen(partitions, parse_choice(str(day)), Moment(moment + timedelta(days=9))))
    except BadPartition:
        found = []
    assert found == wanted


def shown(partitions: TimePartitions, given_: str) -> list[str]:
    """Return the labels of the keys that are chosen."""
    return [label(encode_key(key)) for key in chosen(partitions, parse_choice(given_), NOW)]


def hours(tz: str, day: str, offset: int = 0) -> list[str]:
    partitions = HourlyPartitions(day, day, tz=tz, offset=timedelta(minutes=offset))
    return [key[11:] for key in shown(partitions, "all")]


def test_an_hour_that_comes_twice_has_two_keys_and_one_that_is_skipped_has_none() -> None:
    winter, summer = [f"{h:02}:00:00+01:00" for h in range(24)], range(24)
    spring = hours("Europe/Berlin", "2013-03-31")
    assert spring == [*winter[:2], *(f"{h:02}:00:00+02:00" for h in summer if h > 2)]
    autumn = hours("Europe/Berlin", "2013-10-27")
    assert autumn == [*(f"{h:02}:00:00+02:00" for h in summer if h < 3), *winter[2:]]
    assert len(hours("America/New_York", "2013-03-10")) == 23
    assert hours("America/New_York", "2013-11-03")[1:3] == ["01:00:00-04:00", "01:00:00-05:00"]
    assert hours("America/Havana", "2013-11-03")[:2] == ["00:00:00-04:00", "00:00:00-05:00"]
    assert hours("America/Havana", "2013-03-10")[0] == "01:00:00-04:00"
    assert hours("Europe/Berlin", "2013-10-27", 15)[2:4] == ["02:15:00+02:00", "02:15:00+01:00"]


def lengths(partitions: TimePartitions) -> list[int]:
    windows = [partitions.window(key) for key in partitions.keys(NOW)]
    return [
        int((w.end.astimezone(UTC) - w.start.astimezone(UTC)).total_seconds()) // 60
        for w in windows
    ]


def test_where_clocks_are_set_by_half_an_hour_one_hour_is_longer_or_shorter() -> None:
    howe = "Australia/Lord_Howe"
    assert lengths(HourlyPartitions("2013-04-07", "2013-04-07", tz=howe))[:3] == [60, 90, 60]
    assert lengths(HourlyPartitions("2013-10-06", "2013-10-06", tz=howe))[:3] == [60, 90, 60]
    late = HourlyPartitions("2013-04-07", "2013-04-07", tz=howe, offset=timedelta(minutes=45))
    assert lengths(late)[:3] == [60, 30, 60]
    assert shown(late, "2013-04-07T01") == [
        "2013-04-07T01:45:00+11:00",
        "2013-04-07T01:45:00+10:30",
    ]
    assert sum(lengths(HourlyPartitions("2013-04-07", "2013-04-07", tz=howe))) == 24 * 60 + 30


def test_a_day_that_a_zone_has_left_out_has_no_time() -> None:
    apia = "Pacific/Apia"
    assert lengths(DailyPartitions("2011-12-29", "2011-12-31", tz=apia)) == [1440, 0, 1440]
    assert lengths(WeeklyPartitions("2011-12-26", "2011-12-26", tz=apia)) == [6 * 1440]
    assert hours(apia, "2011-12-29")[-1] == "23:00:00-10:00"
    with pytest.raises(DefinitionError, match="is before"):
        HourlyPartitions("2011-12-30", "2011-12-30", tz=apia)
    # The whole week is there all the same.
    assert len(shown(HourlyPartitions("2011", tz=apia), "2011-12-29..2011-12-31")) == 48


@pytest.mark.parametrize(
    ("partitions", "key", "start", "end"),
    [
        (
            DailyPartitions("2013-01-01", tz="Europe/Berlin", offset=timedelta(hours=6)),
            date(2013, 3, 30),
            "2013-03-30T06:00:00+01:00",
            "2013-03-31T06:00:00+02:00",
        ),
        (
            DailyPartitions(
                "2013-01-01", tz="Europe/Berlin", offset=timedelta(hours=2, minutes=30)
            ),
            date(2013, 3, 31),
            "2013-03-31T03:00:00+02:00",
            "2013-04-01T02:30:00+02:00",
        ),
        (
            DailyPartitions(
                "2013-01-01", tz="Europe/Berlin", offset=timedelta(hours=2, minutes=30)
            ),
            date(2013, 10, 27),
            "2013-10-27T02:30:00+02:00",
            "2013-10-28T02:30:00+01:00",
        ),
        (
            WeeklyPartitions("2013-W01", tz="America/New_York", offset=timedelta(days=2)),
            date(2013, 3, 4),
            "2013-03-06T00:00:00-05:00",
            "2013-03-13T00:00:00-04:00",
        ),
        (
            MonthlyPartitions("2013-01", tz="UTC", offset=timedelta(days=4)),
            Month(2013, 12),
            "2013-12-05T00:00:00+00:00",
            "2014-01-05T00:00:00+00:00",
        ),
        (
            CronPartitions("0 6 * * 1-5", "2013", tz="Europe/Berlin"),
            datetime(2013, 3, 29, 6, tzinfo=timezone(timedelta(hours=1))),
            "2013-03-29T06:00:00+01:00",
            "2013-04-01T06:00:00+02:00",
        ),
    ],
)
def test_a_window_begins_by_the_clock_and_as_late_as_the_offset_says(
    partitions: TimePartitions, key: Key, start: str, end: str
) -> None:
    window = partitions.window(partitions.coerce(key, NOW))
    assert (window.start.isoformat(), window.end.isoformat()) == (start, end)


@pytest.mark.parametrize(
    ("cron", "day", "ticks"),
    [
        # Times of day come once: the first time, or after what is skipped.
        ("30 2 * * *", "2013-03-31", ["03:00:00+02:00"]),
        ("30 2 * * *", "2013-10-27", ["02:30:00+02:00"]),
        ("0,30 2-3 * * *", "2013-03-31", ["03:00:00+02:00", "03:30:00+02:00"]),
        # Intervals come as often as the clocks show them.
        ("*/30 2 * * *", "2013-03-31", []),
        (
            "*/30 2 * * *",
            "2013-10-27",
            ["02:00:00+02:00", "02:30:00+02:00", "02:00:00+01:00", "02:30:00+01:00"],
        ),
        ("0 */2 * * *", "2013-10-27", ["00:00:00+02:00", "02:00:00+02:00", "02:00:00+01:00"]),
    ],
)
def test_cron_takes_clocks_that_are_changed_as_its_docstring_says(
    cron: str, day: str, ticks: list[str]
) -> None:
    partitions = CronPartitions(cron, "2013", tz="Europe/Berlin")
    try:
        found = shown(partitions, f"{day}T00..{day}T03")
    except BadPartition as error:
        assert "no partition lies in" in error.message  # noqa: PT017 - so it is
        found = []
    assert [tick[11:] for tick in found] == ticks


@pytest.mark.parametrize("tz", ["Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("cron", CRONS)
def test_cron_ticks_when_cronsim_does_with_a_zone(cron: str, tz: str) -> None:
    """It does so forwards, in zones that change their clocks by an hour, and not at midnight."""
    partitions = CronPartitions(cron, "2013", tz=tz)
    for start in (datetime(2013, 3, 9), datetime(2013, 3, 30), datetime(2013, 10, 26)):  # noqa: DTZ001
        begin = start.replace(tzinfo=ZoneInfo(tz))
        wanted = [tick.astimezone(UTC) for tick in islice(CronSim(cron, begin), 200)]
        key = partitions.key_at(wanted[0])
        found = []
        for _ in wanted:
            found.append(key)
            key = partitions.next_key(key)
        assert found == wanted


BERLIN = HourlyPartitions("2013-01-01", "2013-12-31", tz="Europe/Berlin")
LATE = HourlyPartitions("2013", tz="Europe/Berlin", offset=timedelta(minutes=15))
WORKDAYS = CronPartitions("0 6 * * 1-5", "2013", tz="Europe/Berlin")


@pytest.mark.parametrize(
    ("partitions", "given_", "meant"),
    [
        (BERLIN, "2013-01-15T07", "2013-01-15T07:00:00+01:00"),
        (BERLIN, "2013-01-15 07:00", "2013-01-15T07:00:00+01:00"),
        (BERLIN, "2013-01-15T06:00:00Z", "2013-01-15T07:00:00+01:00"),
        (BERLIN, datetime(2013, 1, 15, 6, tzinfo=UTC), "2013-01-15T07:00:00+01:00"),
        (BERLIN, datetime(2013, 1, 15, 7), "2013-01-15T07:00:00+01:00"),  # noqa: DTZ001
        (
            BERLIN,
            datetime(2013, 10, 27, 2, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
            "2013-10-27T02:00:00+01:00",
        ),
        (LATE, "2013-01-15T07", "2013-01-15T07:15:00+01:00"),
        (LATE, "2013-01-15T07:15", "2013-01-15T07:15:00+01:00"),
        (WORKDAYS, "2013-01-15T06:00", "2013-01-15T06:00:00+01:00"),
        (WeeklyPartitions("2013-W01"), "2013-W03", "2013-01-14"),
        (WeeklyPartitions("2013-W01"), "2013-01-14", "2013-01-14"),
    ],
)
def test_a_key_is_given_as_a_person_writes_it(
    partitions: TimePartitions, given_: Key, meant: str
) -> None:
    assert label(encode_key(partitions.coerce(given_, NOW))) == meant


@pytest.mark.parametrize(
    ("partitions", "given_", "said"),
    [
        (
            BERLIN,
            "2013-10-27T02",
            "the clocks of Europe/Berlin show this time twice; write 2013-10-27T02:00:00+02:00 or ",
        ),
        (BERLIN, "2013-03-31T02:00", "the clocks of Europe/Berlin skip this time"),
        (
            BERLIN,
            "2013-01-15T07:30",
            "no hour begins then; the nearest are 2013-01-15T07:00:00+01:00 and 2013-01-15T08",
        ),
        (BERLIN, "2013-01-15T25", "partition '2013-01-15T25' is not in the calendar"),
        (BERLIN, "2013-01-15", "is no time; give a datetime, or write 2013-01-15T07"),
        (BERLIN, date(2013, 1, 15), "is no time; give a datetime, or write 2013-01-15T07"),
        (BERLIN, "2014-01-01T00", "lies outside 2013-01-01T00:00:00+01:00 to 2013-12-31T23"),
        (
            WORKDAYS,
            "2013-01-19T06:00",
            "no window begins then; the nearest are 2013-01-18T06",
        ),
        (
            WeeklyPartitions("2013-W01"),
            "2013-01-15",
            "is not a Monday; its week is that of 2013-01-14",
        ),
        (WeeklyPartitions("2013-W01"), "2013-W60", "'2013-W60' is not in the calendar"),
        (DailyPartitions("2013-01-01"), "2013-02-30", "is not a day of the calendar"),
        (DailyPartitions("2013-01-01"), "2013-W03", "is not a day; write it as 2013-01-15"),
    ],
)
def test_what_is_no_key_is_refused_with_the_remedy(
    partitions: TimePartitions, given_: Key, said: str
) -> None:
    with pytest.raises(BadPartition) as caught:
        partitions.coerce(given_, NOW)
    assert said in caught.value.message


def test_a_choice_may_be_coarser_or_finer_than_the_keys() -> None:
    assert len(shown(BERLIN, "2013-03-31")) == 23
    assert len(shown(BERLIN, "2013-10")) == 31 * 24 + 1
    assert len(shown(BERLIN, "all")) == 365 * 24
    assert shown(BERLIN, "2013-10-27T02") == [
        "2013-10-27T02:00:00+02:00",
        "2013-10-27T02:00:00+01:00",
    ]
    assert shown(BERLIN, "2013-01-15T07:30..2013-01-15T08:10") == [
        "2013-01-15T07:00:00+01:00",
        "2013-01-15T08:00:00+01:00",
    ]
    assert shown(WORKDAYS, "2013-01-15") == ["2013-01-15T06:00:00+01:00"]
    assert shown(WORKDAYS, "2013-W03")[-1] == "2013-01-18T06:00:00+01:00"
    weeks = WeeklyPartitions("2013-W01", "2013-W52")
    assert shown(weeks, "2013-01-15..2013-01-21") == ["2013-01-14", "2013-01-21"]
    assert len(shown(weeks, "2013")) == 52
    with pytest.raises(BadPartition, match="no window begins then"):
        shown(WORKDAYS, "2013-01-15T07:30")
    with pytest.raises(BadPartition, match="is not a Monday"):
        shown(weeks, "2013-01-15")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: HourlyPartitions("2013", offset=timedelta(hours=1)), "less than 1:00:00"),
        (lambda: DailyPartitions("2013-01-01", offset=timedelta(days=1)), "less than 1 day"),
        (lambda: DailyPartitions("2013-01-01", offset=-timedelta(hours=1)), "not negative"),
        (lambda: WeeklyPartitions("2013-W01", offset=timedelta(days=7)), "less than 7 days"),
        (lambda: MonthlyPartitions("2013-01", offset=timedelta(days=28)), "less than 28 days"),
        (lambda: CronPartitions("0 0 6 * * *", "2013"), "'0 0 6 * * *' has 6 fields"),
        (lambda: CronPartitions("@daily", "2013"), "'@daily' has 1 fields"),
        (lambda: CronPartitions("0 25 * * *", "2013"), "'0 25 * * *' is not a cron expression"),
        (lambda: CronPartitions("0 0 30 2 *", "2013"), "'0 0 30 2 *'"),
        (lambda: CronPartitions("0 6 * * *", "2014", "2013"), "no window of '0 6 * * *'"),
        (lambda: HourlyPartitions("2013", tz="Europe/Atlantis"), "is not an IANA time zone"),
        (lambda: HourlyPartitions("2013-01-02", "2013-01-01"), "is before"),
    ],
)
def test_a_set_of_time_that_makes_no_sense_is_refused_where_it_is_defined(
    make: Callable[[], TimePartitions], said: str
) -> None:
    with pytest.raises(DefinitionError) as caught:
        make()
    assert said in caught.value.message


def test_a_set_says_how_it_cuts_time() -> None:
    berlin: Any = {"tz": "Europe/Berlin"}
    assert HourlyPartitions("2013", **berlin).cut == "hourly, Europe/Berlin"
    assert LATE.cut == "hourly +0:15:00, Europe/Berlin"
    assert DailyPartitions("2013-01-01").cut == "daily, UTC"
    assert DailyPartitions("2013-01-01", offset=timedelta(hours=6)).cut == "daily +6:00:00, UTC"
    assert WeeklyPartitions("2013-W01", **berlin).cut == "weekly, Europe/Berlin"
    assert MonthlyPartitions("2013-01").cut == "monthly, UTC"
    assert CronPartitions(" 0  6 * * 1 ", "2013").cut == "cron 0 6 * * 1, UTC"
    assert str(CronPartitions("0 6,7 * * 1", "2013-01-07", **berlin)) == (
        "cron 0 6,7 * * 1, 2013-01-07T06:00:00+01:00 to now, Europe/Berlin"
    )
    assert str(WeeklyPartitions("2013-W01", "2013-W02")) == "weekly, 2012-12-31 to 2013-01-07, UTC"


def test_sets_are_values() -> None:
    assert HourlyPartitions("2013") == HourlyPartitions("2013-01-01")
    assert HourlyPartitions("2013") != HourlyPartitions("2013", offset=timedelta(minutes=1))
    assert CronPartitions("0 6 * * *", "2013") != CronPartitions("0 7 * * *", "2013")
    assert len({WORKDAYS, CronPartitions("0 6 * * 1-5", "2013", tz="Europe/Berlin")}) == 1


def test_many_hours_are_made_one_after_the_other() -> None:
    found = HourlyPartitions("0002", tz="Europe/Berlin").keys(NOW)
    assert [key.year for key in islice(found, 3) if isinstance(key, datetime)] == [2, 2, 2]


def test_time_has_an_end() -> None:
    with pytest.raises(BadPartition, match="no day 1 days after 9999-12-31"):
        DailyPartitions("9999-12-31").next_key(date(9999, 12, 31))
    with pytest.raises(BadPartition, match="10000-1 is not a month"):
        MonthlyPartitions("9999-12").next_key(Month(9999, 12))
    last = HourlyPartitions("2013").key_at(datetime(9999, 12, 31, 23, 5, tzinfo=UTC))
    with pytest.raises(BadPartition, match="no hour begins after"):
        HourlyPartitions("2013").next_key(last)
