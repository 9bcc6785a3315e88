"""The mapping that reads the newest partitions of an upstream asset."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowstone.errors import DefinitionError
from flowstone.partition import Key, Moment, PartitionSet, TimePartitions
from flowstone.partition_key import encode_key
from flowstone.time_mapping import are_cut_alike, last_inside


@dataclass(frozen=True)
class LastKeys:
    """Reads the last `count` partitions of the upstream asset, as a dict, the oldest first.

    Between two sets of time these are the last until the end of the reader's window, so that each
    partition keeps what it reads; otherwise, they are the last that there are when the run is
    planned, and change as the set grows.
    """

    count: int

    fan_in = True
    reads_itself = True

    def __post_init__(self) -> None:
        """Raise DefinitionError unless it reads one or more."""
        count: object = self.count
        if not isinstance(count, int) or count < 1:
            raise DefinitionError(f"LastKeys({self.count!r}) reads nothing; say 1 or more")

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return the last keys of the upstream set, up to the window of `key`."""
        if not isinstance(upstream, TimePartitions):
            return tuple(deque(upstream.keys(at), maxlen=self.count))
        end = upstream.end_key(at)
        if isinstance(downstream, TimePartitions):
            own = last_inside(downstream, upstream, key)
            end = min(end, own, key=upstream.rank)
        return tuple(reversed(list(itertools.islice(_back(upstream, end), self.count))))

    def downstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Iterator[Key]:
        """Return the downstream keys that read `key`."""
        if isinstance(downstream, TimePartitions) and isinstance(upstream, TimePartitions):
            return self._readers(key, downstream, upstream, at)
        read = self.upstream_keys(key, downstream, upstream, at)
        wanted = encode_key(key)
        return downstream.keys(at) if wanted in map(encode_key, read) else iter(())

    def _readers(
        self, key: Key, down: TimePartitions, up: TimePartitions, at: Moment
    ) -> Iterator[Key]:
        start, end = up.rank(key), up.rank(up.end_key(at))
        newest = up.shifted(key, self.count - 1)
        # As long as there is nothing newer, all later partitions read it.
        is_among_last = up.rank(newest) >= end
        first = key if are_cut_alike(down, up) else down.key_at(up.window(key).start)
        while up.rank(last_inside(down, up, first)) < start:
            first = down.next_key(first)
        first = max(first, down.first, key=down.rank)
        for reader in down.between(first, down.end_key(at)):
            inside = up.rank(last_inside(down, up, reader))
            if inside > up.rank(newest) and not is_among_last:
                return
            yield reader

    def __str__(self) -> str:
        return f"the last {self.count}"


def _back(partitions: TimePartitions, end: Key) -> Iterator[Key]:
    """Yield the keys of the set from `end` back to the first."""
    first, key = partitions.rank(partitions.first), end
    while partitions.rank(key) >= first:
        yield key
        key = partitions.previous_key(key)
