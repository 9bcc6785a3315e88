"""Hypothesis strategies that several tests share: partition keys, graphs, requests."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from flowstone.key_map import KeyMap
from flowstone.partition import Moment
from flowstone.partition_key import Key, Month

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",  # skipped midnight in spring until 2018
    "Africa/Cairo",  # skips midnight in spring
    "America/Havana",  # has its first hour of the day twice in autumn
    "Australia/Lord_Howe",  # moves its clocks by half an hour
    "Asia/Kathmandu",
    "Pacific/Apia",  # lacks the day 2011-12-30
)

NOW = Moment(datetime(2024, 6, 15, 12, tzinfo=UTC))

# Where a separator, a tag or a percent sign inside a key could be mistaken for the grammar's.
TRAPS = (
    "",
    "-",
    "n:",
    "s:eu",
    "2013-01-15",
    "2013-01",
    "1",
    "true",
    "None",
    "a,b",
    "(a)",
    "()",
    "a|b",
    "%2C",
    "%",
    "\0",
    "..",
    "a/b",
    "[x]",
    "a=b",
    "{a=s:b}",
    "}",
    "!",
    "ü",
    "\U0001f600",
    "\n",
)


def texts() -> st.SearchStrategy[str]:
    """Text without surrogates, among it what looks like something else."""
    free = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    return st.sampled_from(TRAPS) | free


def months() -> st.SearchStrategy[Month]:
    return st.builds(Month, st.integers(1, 9999), st.integers(1, 12))


def zones() -> st.SearchStrategy[ZoneInfo]:
    return st.sampled_from(ZONES).map(ZoneInfo)


def fixed_offsets() -> st.SearchStrategy[timezone]:
    day = 24 * 60 * 60 - 1
    return st.integers(-day, day).map(lambda s: timezone(timedelta(seconds=s)))


@st.composite
def moments(draw: st.DrawFn) -> datetime:
    """Moments of every kind; those near a change of the clocks are frequent."""
    zone = draw(st.none() | fixed_offsets() | zones())
    near = draw(st.booleans())
    if near:
        night = draw(
            st.sampled_from(
                [
                    datetime(2018, 11, 4),  # noqa: DTZ001 - the zone is set below
                    datetime(2024, 3, 31, 2),  # noqa: DTZ001
                    datetime(2024, 10, 27, 2),  # noqa: DTZ001
                    datetime(2024, 11, 3, 1),  # noqa: DTZ001
                    datetime(2024, 4, 26),  # noqa: DTZ001
                ]
            )
        )
        local = night + timedelta(minutes=draw(st.integers(-90, 90)))
    else:
        local = draw(st.datetimes())
    return local.replace(tzinfo=zone, fold=draw(st.sampled_from([0, 1])))


def scalars() -> st.SearchStrategy[Key]:
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        texts(),
        st.dates(),
        months(),
        moments(),
    )


def keys() -> st.SearchStrategy[Key]:
    """Return every kind of partition key, tuples and mappings nested, and empty ones among them."""
    return st.recursive(
        scalars(), lambda k: st.lists(k, max_size=3).map(tuple) | mappings(k), max_leaves=4
    )


def mappings(parts: st.SearchStrategy[Key]) -> st.SearchStrategy[Key]:
    names = texts().filter(bool)
    return st.dictionaries(names, parts, max_size=3).map(KeyMap)


def days(start: date = date(1980, 1, 1), end: date = date(2037, 12, 31)) -> st.SearchStrategy[date]:
    return st.dates(start, end)


Dag = dict[int, tuple[int, ...]]
"""The upstream steps of each step; the ids 1, 2, ... are in topological order."""


_READERS = st.sampled_from([(1,), (1,), (2,), (2,), (3,), (4,), (1, 2), (1, 3), (2, 3), ()])


@st.composite
def dags(draw: st.DrawFn, max_steps: int = 14) -> Dag:
    """Graphs in which stretches, joins and forks are all frequent."""
    rows = draw(st.lists(_READERS, min_size=1, max_size=max_steps))
    dag: dict[int, list[int]] = {step: [] for step in range(1, len(rows) + 1)}
    for step, offsets in enumerate(rows, 1):
        for reader in (step + offset for offset in offsets):
            if reader in dag:
                dag[reader].append(step)
    return {step: tuple(ups) for step, ups in dag.items()}
