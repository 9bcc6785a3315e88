"""A picture of how many partitions stand: a character a partition, arranged as its keys suggest.

Days are a calendar with a line a month, hours have a line a day, months a line a year; what has
several dimensions is a matrix, and all else a grid in the order of the set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, cast

from flowstone.partition import DailyPartitions, HourlyPartitions, MonthlyPartitions, PartitionSet
from flowstone.partition_key import Key, Month, encode_key, label
from flowstone.states import PartitionState

CELLS: Final[Mapping[PartitionState, tuple[str, str]]] = {
    PartitionState.OK: ("#", "green"),
    PartitionState.STALE: ("~", "yellow"),
    PartitionState.FAILED: ("X", "bold red"),
    PartitionState.RUNNING: (">", "bold blue"),
    PartitionState.QUEUED: ("q", "blue"),
    PartitionState.WAITING: ("?", "magenta"),
    PartitionState.SKIPPED: ("-", "cyan"),
    PartitionState.MISSING: (".", "dim"),
}
"""The character and the style of each state; the characters alone tell the states apart."""

_NARROWEST: Final = 20
_LONGEST_HEADING: Final = 8
_TENS: Final = 10

Piece = tuple[str, str]
"""A text and its style."""


@dataclass(frozen=True)
class Line:
    """One line of the picture."""

    pieces: Sequence[Piece]
    partitions: int = 0
    """How many partitions it shows."""


@dataclass(frozen=True)
class Picture:
    """The lines of a picture, in the order of the set, and those above that say what is where."""

    lines: Sequence[Line]
    heading: Sequence[Line] = ()

    def newest(self, count: int) -> Picture:
        """Return the picture of the last so many lines."""
        return Picture(self.lines[-max(1, count) :], self.heading)

    @property
    def partitions(self) -> int:
        """How many partitions it shows."""
        return sum(line.partitions for line in self.lines)


def draw(
    partitions: PartitionSet, states: Mapping[Key, PartitionState], width: int, height: int
) -> Picture:
    """Return the picture of partitions, `width` characters wide.

    What is a list has the names of its keys where they fit into `height` lines.
    """
    width = max(width, _NARROWEST)
    match partitions:
        case DailyPartitions():
            rows = _placed(states, lambda day: (f"{day:%Y-%m}", day.day - 1))
            return Picture(_rows(rows), [_ruler(7, 31, first=1, step=5)])
        case HourlyPartitions():
            rows = _placed(states, lambda hour: (f"{hour:%Y-%m-%d}", hour.hour))
            return Picture(_rows(rows), [_ruler(10, 24, first=0, step=6)])
        case MonthlyPartitions():
            rows = _placed(states, lambda month: (f"{month.year:04d}", month.month - 1))
            return Picture(_rows(rows), [_plain(" " * 5 + "JFMAMJJASOND")])
    if states and all(isinstance(key, tuple) and len(key) > 1 for key in states):
        return _matrix(cast("Mapping[tuple[Key, ...], PartitionState]", states), width)
    named = _named(states, width)
    return named if len(named.lines) <= height else _grid(states, width)


Row = dict[int, PartitionState]


def _placed(
    states: Mapping[Any, PartitionState], place: Callable[..., tuple[str, int]]
) -> dict[str, Row]:
    """Return the cells of each row. The second of two that have one place moves on, with all after.

    That is an hour that the clocks show twice.
    """
    rows: dict[str, Row] = {}
    for key, state in states.items():
        name, column = place(key)
        row = rows.setdefault(name, {})
        row[max(column, 1 + max(row, default=-1))] = state
    return rows


def _rows(rows: Mapping[str, Row]) -> list[Line]:
    widest = max((len(name) for name in rows), default=0)
    return [_row(name.ljust(widest), row) for name, row in rows.items()]


def _row(name: str, row: Row, places: Iterable[int] | None = None, gap: str = "") -> Line:
    """Return a line of cells, with blanks where there is no partition."""
    shown = range(max(row) + 1) if places is None else places
    pieces = [(f"{name} ", "")]
    for place in shown:
        pieces.append(CELLS[row[place]] if place in row else (" ", ""))
        if gap:
            pieces.append((gap, ""))
    return Line(pieces, len(row))


def _ruler(indent: int, cells: int, *, first: int, step: int) -> Line:
    marks = [" "] * (indent + 1 + cells + 1)
    for number in range(0, cells + first, step):
        named = max(number, first)
        at = indent + 1 + named - first
        marks[at : at + len(str(named))] = str(named)
    return _plain("".join(marks).rstrip())


def _plain(text: str) -> Line:
    return Line([(text, "dim")])


def _matrix(states: Mapping[tuple[Key, ...], PartitionState], width: int) -> Picture:
    """Return a matrix: one dimension across, the last that is no time, and all others down.

    Where the columns do not fit side by side, there is one matrix below the other.
    """
    across = _across(next(iter(states)))
    columns: dict[str, int] = {}
    rows: dict[str, Row] = {}
    for key, state in states.items():
        name = _label(key[:across] + key[across + 1 :])
        column = columns.setdefault(_label((key[across],)), len(columns))
        rows.setdefault(name, {})[column] = state
    longest = max(map(len, columns))
    cell = min(longest, _LONGEST_HEADING)
    names = max(map(len, rows))
    fit = max(1, (width - names - 1) // (cell + 1))
    headings = list(columns)
    lines: list[Line] = []
    for start in range(0, len(headings), fit):
        part = headings[start : start + fit]
        if len(headings) > fit:
            lines.append(_plain(" " * (names + 1) + " ".join(h[:cell].ljust(cell) for h in part)))
        places = range(start, start + len(part))
        for name, row in rows.items():
            here = {place: row[place] for place in places if place in row}
            if here or len(headings) <= fit:
                lines.append(_row(name.ljust(names), here, places, " " * cell))
    if len(headings) > fit:
        return Picture(lines)
    return Picture(
        lines, [_plain(" " * (names + 1) + " ".join(h[:cell].ljust(cell) for h in headings))]
    )


def _across(key: tuple[Key, ...]) -> int:
    others = [place for place, part in enumerate(key) if not isinstance(part, date | Month)]
    return others[-1] if others else len(key) - 1


def _named(states: Mapping[Key, PartitionState], width: int) -> Picture:
    """Return the partitions with their names, side by side as far as they fit."""
    named = [(_label_of(key), state) for key, state in states.items()]
    column = max((len(name) for name, _ in named), default=0) + 4
    side_by_side = max(1, width // column)
    lines = []
    for start in range(0, len(named), side_by_side):
        part = named[start : start + side_by_side]
        pieces: list[Piece] = []
        for name, state in part:
            pieces += [CELLS[state], (f" {name}".ljust(column - 1), "")]
        lines.append(Line(pieces, len(part)))
    return Picture(lines)


def _grid(states: Mapping[Key, PartitionState], width: int) -> Picture:
    """Return one character after the other; each line begins with the name of its first."""
    keys = list(states)
    names = min(max(len(_label_of(key)) for key in keys), width // 3)
    cells = max(1, width - names - 1)
    cells -= cells % _TENS if cells > _TENS else 0
    lines = []
    for start in range(0, len(keys), cells):
        part = keys[start : start + cells]
        name = _label_of(part[0])[:names].ljust(names)
        lines.append(Line([(f"{name} ", ""), *(CELLS[states[key]] for key in part)], len(part)))
    return Picture(lines)


def _label_of(key: Key) -> str:
    return label(encode_key(key)) or "(unpartitioned)"


def _label(parts: Sequence[Key]) -> str:
    return "|".join(_label_of(part) for part in parts)


def legend(counts: Mapping[PartitionState, int]) -> Iterator[tuple[Piece, str]]:
    """Yield the character of each state that there is, and what it says."""
    for state, cell in CELLS.items():
        if counts.get(state):
            yield cell, f"{state.value} {counts[state]:,}"
