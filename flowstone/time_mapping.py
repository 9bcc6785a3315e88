"""The mapping between two sets of time: which windows of one belong to a window of the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from functools import lru_cache

from flowstone.errors import BadMapping, BadPartition, DefinitionError
from flowstone.partition import (
    CronPartitions,
    Key,
    Moment,
    PartitionSet,
    TimePartitions,
)

_TICK = timedelta(microseconds=1)


@dataclass(frozen=True)
class TimeWindow:
    """Reads the upstream windows that belong to one of time: a month its days, a day its month.

    `offset` moves that window by so many windows of the downstream set, so that -1 is the one
    before. With `end_offset` there are several, from `offset` to it, both included: the last seven
    days are `TimeWindow(-6, 0)`.

    With a fan-in the function gets a dict of all upstream windows that overlap; without one, the
    value of that in which the window begins. By default there is none where the window always lies
    in one upstream window, which those of cron are not taken to. `fan_in` says it otherwise.

    A window that an offset leads to outside of the upstream set is left out, so that the first
    partition of `TimeWindow(-1)` reads nothing: it gets None.
    """

    offset: int = 0
    end_offset: int | None = None
    fan_in: bool | None = None

    def __post_init__(self) -> None:
        """Raise DefinitionError for what is no number, or ends before it starts."""
        for offset in (self.offset, self._last):
            if not isinstance(offset, int):
                raise DefinitionError(
                    f"the offset {offset!r} of TimeWindow is no whole number, such as -1"
                )
        if self._last < self.offset:
            raise DefinitionError(
                f"TimeWindow(offset={self.offset}, end_offset={self.end_offset}) ends before it "
                "starts; the offsets go from earlier to later, such as -6 to 0"
            )
        if self.fan_in is False and self._last != self.offset:
            raise DefinitionError(
                "TimeWindow: fan_in=False reads one window, so it takes no end_offset="
            )

    @property
    def _last(self) -> int:
        return self.offset if self.end_offset is None else self.end_offset

    @property
    def reads_itself(self) -> bool:
        """Whether a partition would read itself where the two sets are one."""
        return self.offset <= 0 <= self._last

    def fitted(self, downstream: PartitionSet, upstream: PartitionSet) -> TimeWindow:
        """Return it with the `fan_in` that the sets suggest; raise BadMapping unless of time."""
        down, up = _both_time(downstream, upstream)
        if self.fan_in is not None:
            return self
        return replace(self, fan_in=self._last != self.offset or not lie_in_one(down, up))

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return the upstream keys of the window of `key`, or of the one that it is moved to.

        Raises BadPartition where the upstream set lacks the one that is not moved.
        """
        down, up = _both_time(downstream, upstream)
        mapping = self.fitted(down, up)
        start = down.shifted(key, self.offset)
        end = start if self._last == self.offset else down.shifted(key, self._last)
        first, last = mapping._overlapped(down, up, start, end)  # noqa: SLF001 - its own class
        if self.offset == self._last == 0 and not mapping.fan_in:
            return (up.coerce(first, at),)
        return tuple(_clipped(up, first, last, at))

    def downstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Iterator[Key]:
        """Return the downstream keys that read `key`."""
        down, up = _both_time(downstream, upstream)
        found = self.fitted(down, up)._over(down, up, key)  # noqa: SLF001 - its own class
        if found is None:
            return iter(())
        first, last = found
        return _clipped(
            down, down.shifted(first, -self._last), down.shifted(last, -self.offset), at
        )

    def _overlapped(
        self, down: TimePartitions, up: TimePartitions, start: Key, end: Key
    ) -> tuple[Key, Key]:
        """Return the first and last upstream key of the windows from `start` to `end`."""
        if are_cut_alike(down, up):
            return start, end
        begin = up.key_at(down.window(start).start)
        if not self.fan_in:
            return begin, begin
        return begin, last_inside(down, up, end)

    def _over(self, down: TimePartitions, up: TimePartitions, key: Key) -> tuple[Key, Key] | None:
        """Return the first and last downstream window to which an upstream one belongs."""
        if are_cut_alike(down, up):
            return key, key
        window, place = up.window(key), up.rank(key)

        def belongs(to: Key) -> bool:
            first, last = self._overlapped(down, up, to, to)
            return bool(up.rank(first) <= place <= up.rank(last))

        # One more at both ends than can be: a day that a zone has skipped is an empty window.
        first = down.key_at(window.start.astimezone(UTC) - _TICK)
        last = down.key_at(window.end)
        while not belongs(first):
            if down.rank(first) >= down.rank(last):
                return None
            first = down.next_key(first)
        while not belongs(last):
            last = down.previous_key(last)
        return first, last

    def __str__(self) -> str:
        if self.offset == self._last:
            which = {True: "the windows inside", False: "the window around", None: "its window"}
            said = which[self.fan_in]
            return f"{said}, offset {self.offset:+d}" if self.offset else said
        return f"the windows from offset {self.offset:+d} to {self._last:+d}"


def are_cut_alike(one: TimePartitions, other: TimePartitions) -> bool:
    """Return whether a key stands for the same window in both sets."""
    return one.cut == other.cut


def lie_in_one(inner: TimePartitions, outer: TimePartitions) -> bool:
    """Return whether each window of `inner` lies in one window of `outer`.

    Of those of cron it is not known, as it may take years for one of them not to; so none does.
    Where a zone skips the time at which a window would begin, one of `inner` may yet reach over a
    border: it belongs to the window in which it begins.
    """
    if are_cut_alike(inner, outer):
        return True
    if isinstance(inner, CronPartitions) or isinstance(outer, CronPartitions):
        return False
    return seem_to_lie_in_one(inner, outer)


# A graph asks for each dependency when it is built, and most are of a few sets.
@lru_cache(maxsize=1024)
def seem_to_lie_in_one(inner: TimePartitions, outer: TimePartitions) -> bool:
    """Return whether a window of `inner` begins wherever one of the first of `outer` does.

    What the calendar cuts is the same again after these. Of cron's windows, it says no more than
    that reading those of the one that overlap one of the other is what was meant.
    """
    if are_cut_alike(inner, outer):
        return True
    start = max(inner.window(inner.first).start, outer.window(outer.first).start)
    key = outer.next_key(outer.key_at(start))
    for _ in range(24):
        border = outer.window(key).start
        if inner.window(inner.key_at(border)).start != border:
            return False
        try:
            key = outer.next_key(key)
        except (BadPartition, OverflowError):
            break
    return True


def last_inside(down: TimePartitions, up: TimePartitions, key: Key) -> Key:
    """Return the last upstream key that overlaps the window of `key`."""
    if are_cut_alike(down, up):
        return key
    # In UTC, as a zone's own arithmetic goes by the wall clock: where a month begins at 1:00,
    # because midnight is skipped, the moment before would lie in the hour that is missing.
    return up.key_at(down.window(key).end.astimezone(UTC) - _TICK)


def _clipped(partitions: TimePartitions, first: Key, last: Key, at: Moment) -> Iterator[Key]:
    """Yield the keys from `first` to `last` that are in the set."""
    first = max(partitions.first, first, key=partitions.rank)
    last = min(partitions.end_key(at), last, key=partitions.rank)
    return partitions.between(first, last)


def _both_time(one: PartitionSet, other: PartitionSet) -> tuple[TimePartitions, TimePartitions]:
    if isinstance(one, TimePartitions) and isinstance(other, TimePartitions):
        return one, other
    wrong = other if isinstance(one, TimePartitions) else one
    raise BadMapping(f"a time window mapping needs time partitions on both sides, not ({wrong})")
