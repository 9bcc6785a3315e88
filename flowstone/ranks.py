"""Where keys stand in their partition set: what has no window of time is put in order by that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flowstone.partition import Key, Moment, PartitionSet, ProductPartitions, TimePartitions
from flowstone.partition_key import encode_key

LARGEST: Final = 2**62
"""PostgreSQL stores no integer that is much larger; of several dimensions of time one could be."""


class Ranks:
    """Tells the positions of keys; each list of keys is gone through once."""

    def __init__(self, at: Moment) -> None:
        self._at = at
        self._lists: dict[int, tuple[PartitionSet, Mapping[str, int]]] = {}

    def of(self, partitions: PartitionSet, key: Key) -> int:
        """Return a number by which the keys of a set are in its order, 0 for the first.

        In sets of equal keys, and in each that is a list, it is the same for the same position.
        """
        return min(self._rank(partitions, key), LARGEST)

    def _rank(self, partitions: PartitionSet, key: Key) -> int:
        if isinstance(partitions, ProductPartitions):
            assert isinstance(key, tuple)
            rank = 0
            for side, part in zip(partitions.sets, key, strict=True):
                rank = rank * self._length(side) + self._rank(side, part)
            return rank
        if isinstance(partitions, TimePartitions):
            # Without going through its keys, of which there may be millions.
            return _end(partitions, key) - _end(partitions, partitions.first)
        positions = self._positions(partitions)
        return positions.get(encode_key(key), len(positions))

    def _length(self, side: PartitionSet) -> int:
        if isinstance(side, TimePartitions):
            return self._rank(side, side.end_key(self._at)) + 1
        return len(self._positions(side))

    def _positions(self, partitions: PartitionSet) -> Mapping[str, int]:
        # By identity, as it takes long to compare long lists; the set is kept, so that no other
        # comes to lie in its place.
        found = self._lists.get(id(partitions))
        if found is None:
            keys = partitions.keys(self._at)
            found = partitions, {encode_key(key): place for place, key in enumerate(keys)}
            self._lists[id(partitions)] = found
        return found[1]


def _end(partitions: TimePartitions, key: Key) -> int:
    return int(partitions.window(key).end.timestamp())
