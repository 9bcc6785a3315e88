"""The choice of partitions that a caller writes: all, some keys, or a stretch of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

from flowstone.errors import BadPartition
from flowstone.partition import (
    Key,
    Moment,
    PartitionSet,
    ProductPartitions,
    TimePartitions,
)
from flowstone.partition_key import decode_key, encode_key, label
from flowstone.time_partitions import written

ALL: Final = ("all", "*")
"""The texts for all keys of a set, unless one of its keys is written so."""

TO: Final = ".."
"""Stands between the ends of a range, both included; an end that is left out is that of the set."""


@dataclass(frozen=True)
class Choice:
    """What a caller says of partitions. What it means, a set says when a run is planned."""

    parts: tuple[str, ...]
    """Encoded keys. One that is a text is a key as people write it, or a range, or "all"."""

    def as_json(self) -> list[str]:
        """Return it as JSON, for `from_json`."""
        return list(self.parts)

    @classmethod
    def from_json(cls, parts: Iterable[str]) -> Choice:
        """Return the choice that `as_json` has returned this of; raise BadPartition."""
        found = tuple(parts)
        for part in found:
            decode_key(part)
        return cls(found)

    def __str__(self) -> str:
        return ", ".join(label(part) for part in self.parts)


def parse_choice(given: Choice | Key | Iterable[Key]) -> Choice:
    """Return what a caller says as a choice.

    That is "all", a key or its text, a range of two texts such as "2013-01..2013-06", "2013-01.."
    or "..2013-06", or a list of any of these. For a product it is one of these for each dimension:
    a text with bars, "2013-01..|eu" or "*|eu", a tuple, or a mapping of names. Raises BadPartition
    for what can be none, and for an empty list.
    """
    if isinstance(given, Choice):
        return given
    several = given if isinstance(given, list | Iterator | range) else [cast("Key", given)]
    parts = dict.fromkeys(encode_key(one) for one in several)
    if not parts:
        raise BadPartition("no partitions are chosen; give at least one key, or 'all'")
    return Choice(tuple(parts))


def chosen(partitions: PartitionSet, choice: Choice, at: Moment) -> Iterator[Key]:
    """Return the keys of a set that are chosen, each once, in the order of the set, lazily.

    Raises BadPartition at once for what is no key of it, and for a range in which none lies.
    """
    parts = [_part(partitions, decode_key(part), at) for part in choice.parts]
    return _in_order(partitions, parts, at)


def _in_order(partitions: PartitionSet, parts: Sequence[_Part], at: Moment) -> Iterator[Key]:
    """Yield the keys of the set that are in any of the parts, in its order."""
    if isinstance(partitions, ProductPartitions):
        boxes = [part for part in parts if isinstance(part, _Box)]
        return _combined(partitions.sets, boxes, at)
    if isinstance(partitions, TimePartitions):
        return _of_time(partitions, [part for part in parts if isinstance(part, _From)])
    return _of_list(partitions, [part for part in parts if isinstance(part, _Some)], at)


@dataclass(frozen=True)
class _From:
    """The keys of a set of time from one to another, both included."""

    low: Key
    high: Key


@dataclass(frozen=True)
class _Some:
    """Encoded keys of a set that is a list."""

    keys: frozenset[str]


@dataclass(frozen=True)
class _Box:
    """A part of each dimension of a product: all combinations of their keys."""

    sides: tuple[_Part, ...]


_Part = _From | _Some | _Box


def _part(partitions: PartitionSet, given: Key, at: Moment) -> _Part:
    """Return what one part of a choice means in a set."""
    if isinstance(partitions, ProductPartitions):
        given = (ALL[0],) * len(partitions.sets) if given in ALL else given
        return _Box(partitions.each(given, lambda side, part: _part(side, part, at)))
    try:
        key = partitions.coerce(given, at)
    except BadPartition:
        if not isinstance(given, str):
            raise
        if (found := _written(partitions, given, at)) is None:
            raise
        return found
    return _From(key, key) if isinstance(partitions, TimePartitions) else _some([key])


def _written(partitions: PartitionSet, text: str, at: Moment) -> _Part | None:
    """Return what a text means that is no key of the set; None if it means nothing."""
    if text in ALL:
        return _range(partitions, "", "", at)
    low, to, high = text.partition(TO)
    if to:
        return _range(partitions, low.strip(), high.strip(), at)
    if isinstance(partitions, TimePartitions) and partitions.holds_many(text):
        return _range(partitions, text, text, at)
    return None


def _range(partitions: PartitionSet, low: str, high: str, at: Moment) -> _Part:
    if isinstance(partitions, TimePartitions):
        return _range_of_time(partitions, low, high, at)
    keys = list(partitions.keys(at))
    first = keys.index(partitions.coerce(low, at)) if low else 0
    last = keys.index(partitions.coerce(high, at)) if high else len(keys) - 1
    if first > last and low and high:
        raise BadPartition(f"the range {low}{TO}{high} ends before it begins; {high} comes first")
    return _some(keys[first : last + 1])


def _range_of_time(partitions: TimePartitions, low: str, high: str, at: Moment) -> _From:
    first, end = partitions.first, partitions.end_key(at)
    begins = partitions.span(low) if low else (first, first)
    ends = partitions.span(high) if high else (end, end)
    if low and high and partitions.is_before(ends[0], begins[0]):
        raise BadPartition(f"the range {low}{TO}{high} ends before it begins")
    start = first if partitions.is_before(begins[0], first) else begins[0]
    stop = end if partitions.is_before(end, ends[1]) else ends[1]
    if (low or high) and partitions.is_before(stop, start):
        said = low if low == high else f"{low}{TO}{high}"
        raise BadPartition(
            f"no partition lies in {said!r}; there are those from {written(first)} to "
            f"{written(end)}"
        )
    return _From(start, stop)


def _some(keys: Iterable[Key]) -> _Some:
    return _Some(frozenset(map(encode_key, keys)))


def _of_time(partitions: TimePartitions, parts: Iterable[_From]) -> Iterator[Key]:
    reached: Key | None = None
    for part in sorted(parts, key=lambda one: partitions.rank(one.low)):
        low = part.low
        if reached is not None and not partitions.is_before(reached, part.high):
            continue
        # Where one stretch reaches into the next, its keys come once.
        if reached is not None and not partitions.is_before(reached, low):
            low = partitions.next_key(reached)
        yield from partitions.between(low, part.high)
        reached = part.high


def _of_list(partitions: PartitionSet, parts: Iterable[_Some], at: Moment) -> Iterator[Key]:
    wanted = frozenset[str]().union(*(part.keys for part in parts))
    return (key for key in partitions.keys(at) if encode_key(key) in wanted)


def _combined(
    sets: Sequence[PartitionSet], boxes: Sequence[_Box], at: Moment
) -> Iterator[tuple[Key, ...]]:
    """Yield the combinations that lie in any of the boxes, the first dimension slowest."""
    if not sets:
        yield ()
        return
    first, others = sets[0], sets[1:]
    holding = _Holding(first, boxes)
    before: list[int] | None = None
    rest: list[tuple[Key, ...]] = []
    for key in _in_order(first, [box.sides[0] for box in boxes], at):
        # Mostly the same boxes go on as for the key before, and so with the same combinations.
        here = holding.boxes_of(key)
        if (same := list(map(id, here))) != before:
            within = [_Box(box.sides[1:]) for box in here]
            before, rest = same, list(_combined(others, within, at))
        for combination in rest:
            yield (key, *combination)


class _Holding:
    """Tells which boxes hold a key on their first side."""

    def __init__(self, partitions: PartitionSet, boxes: Iterable[_Box]) -> None:
        self._set = partitions
        self._wide: list[_Box] = []
        self._narrow: dict[str, list[_Box]] = {}
        for box in boxes:
            # Thousands of keys may be chosen, each of which is one box.
            if (only := _only(box.sides[0])) is None:
                self._wide.append(box)
            else:
                self._narrow.setdefault(only, []).append(box)

    def boxes_of(self, key: Key) -> list[_Box]:
        encoded = encode_key(key)
        wide = [box for box in self._wide if self._holds(box.sides[0], key, encoded)]
        return wide + self._narrow.get(encoded, [])

    def _holds(self, side: _Part, key: Key, encoded: str) -> bool:
        if isinstance(side, _From) and isinstance(self._set, TimePartitions):
            is_before = self._set.is_before
            return not is_before(key, side.low) and not is_before(side.high, key)
        return isinstance(side, _Some) and encoded in side.keys


def _only(side: _Part) -> str | None:
    """Return the key of a side that has one alone."""
    match side:
        case _Some(keys) if len(keys) == 1:
            return next(iter(keys))
        case _From(low, high) if low == high:
            return encode_key(low)
    return None
