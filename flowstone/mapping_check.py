"""What can be told of a mapping before anything is planned: where it leads, and that it leads back.

All keys of static sets are tried, of sets of time the first few, and the last few of those that
have an end. What depends on dynamic keys shows when a run is planned.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from flowstone.errors import BadMapping, BadPartition, FlowStoneError
from flowstone.mapping import (
    AllKeys,
    Keys,
    LastKeys,
    PartitionMapping,
    SameKey,
    TimeWindow,
    WholeAsset,
)
from flowstone.partition import (
    Key,
    Moment,
    PartitionSet,
    ProductPartitions,
    StaticPartitions,
    TimePartitions,
    UnpartitionedSet,
)
from flowstone.partition_key import encode_key, label
from flowstone.product_mapping import DimensionWise, sets_of

_FEW: Final = 3
"""How many keys are tried at each end of a set of time."""

_SOME: Final = 100
"""How many combinations of the keys of several dimensions are tried."""

_MANY: Final = 10_000
"""Among how many keys a way back is looked for."""

_AFTER: Final = timedelta(days=400)
"""How long after the keys that are tried a growing set is looked at."""


class _DynamicKeysError(Exception):
    """Tells that a mapping asks for what is in the ledger."""


class MappingChecks:
    """Tries mappings between pairs of sets, each once: most assets of a graph share their sets."""

    def __init__(self) -> None:
        self._done: set[object] = set()

    def __call__(
        self,
        mapping: PartitionMapping,
        downstream: PartitionSet,
        upstream: PartitionSet,
        *,
        optional: bool,
    ) -> None:
        """Raise BadMapping for keys that are not in the sets, and for directions that disagree.

        An `optional` dependency may lead outside of the upstream set. The sets have to live as
        long as this does.
        """
        if _cannot_err(mapping, downstream, upstream) or (optional and _is_known(mapping)):
            return
        case = mapping, id(downstream), id(upstream), optional
        # One of a user's own may be compared by values that have no hash.
        with contextlib.suppress(TypeError):
            if case in self._done:
                return
            self._done.add(case)
        _try(mapping, downstream, upstream, optional=optional)


def _cannot_err(
    mapping: PartitionMapping, downstream: PartitionSet, upstream: PartitionSet
) -> bool:
    """Return whether a mapping takes its keys from the sets, and no others."""
    match mapping, downstream, upstream:
        case DimensionWise(), _, _:
            downs = sets_of(downstream)
            return all(
                _cannot_err(
                    axis.mapping, UnpartitionedSet() if axis.down is None else downs[axis.down], up
                )
                for axis, up in zip(mapping.axes, sets_of(upstream), strict=True)
            )
        case TimeWindow(), _, _:
            return bool(mapping.fan_in) or not mapping.reads_itself
        case SameKey(), StaticPartitions(), StaticPartitions():
            return type(mapping) is SameKey and downstream.is_within(upstream)
    return type(mapping) in {AllKeys, LastKeys, WholeAsset}


def _is_known(mapping: PartitionMapping) -> bool:
    """Return whether it is one of FlowStone's, whose two directions agree whatever the sets."""
    if isinstance(mapping, DimensionWise):
        return all(_is_known(axis.mapping) for axis in mapping.axes)
    return type(mapping) in {AllKeys, Keys, LastKeys, SameKey, TimeWindow, WholeAsset}


def _try(
    mapping: PartitionMapping, downstream: PartitionSet, upstream: PartitionSet, *, optional: bool
) -> None:
    check = _Check(mapping, downstream, upstream)
    try:
        for key in _tried(downstream):
            check.forwards(key, optional=optional)
            if type(mapping) is Keys:
                # All read the same.
                return
        for key in () if _is_known(mapping) else _tried(upstream):
            check.backwards(key)
    except _DynamicKeysError:
        return


@dataclass(frozen=True)
class _Readers:
    """Who reads one partition, by a mapping's way back."""

    first: Sequence[Key]
    encoded: frozenset[str]
    are_all: bool
    """Whether they were told to their end; of very many, only the first ones are."""

    def lack(self, key: Key) -> bool:
        """Return whether it is certain that a key is none of them."""
        return self.are_all and encode_key(key) not in self.encoded


class _Check:
    def __init__(
        self, mapping: PartitionMapping, downstream: PartitionSet, upstream: PartitionSet
    ) -> None:
        self._mapping = mapping
        self._downstream = downstream
        self._upstream = upstream
        self._at = _moment(downstream, upstream)
        self._known = _is_known(mapping)
        self._read_by: dict[str, _Readers] = {}

    def forwards(self, key: Key, *, optional: bool) -> None:
        said = f"by {self._mapping}, partition {_say(key)}"
        try:
            found = self._read(key)
        except BadPartition as error:
            if optional:
                return
            raise BadMapping(
                f"{said} leads outside of ({self._upstream}): {error.message}"
            ) from error
        _refuse_outside(f"{said} reads", found, self._upstream, self._at)
        if self._known:
            return
        for up in {*found[:_FEW], *found[-_FEW:]}:
            readers = self._all_readers(up)
            if readers.lack(key):
                raise BadMapping(
                    f"{said} reads {_say(up)}, but its reverse does not lead back: it says that "
                    f"{_say(up)} is read by {_few(readers.first)}"
                )

    def backwards(self, key: Key) -> None:
        readers = self._readers(key, _FEW)
        said = f"by {self._mapping}, backwards, partition {_say(key)} is read by"
        _refuse_outside(said, readers, self._downstream, self._at)
        for reader in readers:
            try:
                found = self._read(reader)
            except BadPartition:
                found = ()
            if not _holds(found, key):
                raise BadMapping(
                    f"{said} {_say(reader)}, but forwards that one reads {_few(found)}"
                )

    def _read(self, key: Key) -> Sequence[Key]:
        try:
            return tuple(
                self._mapping.upstream_keys(key, self._downstream, self._upstream, self._at)
            )
        except (FlowStoneError, _DynamicKeysError):
            raise
        except Exception as error:
            raise self._failed("upstream_keys", key, error) from error

    def _all_readers(self, up: Key) -> _Readers:
        """Return who reads a partition; all that read it ask for them, so they are kept."""
        encoded = encode_key(up)
        if encoded not in self._read_by:
            found = self._readers(up, _MANY + 1)
            self._read_by[encoded] = _Readers(
                found[: _FEW + 1],
                frozenset(map(encode_key, found[:_MANY])),
                are_all=len(found) <= _MANY,
            )
        return self._read_by[encoded]

    def _readers(self, key: Key, count: int) -> Sequence[Key]:
        try:
            found = self._mapping.downstream_keys(key, self._downstream, self._upstream, self._at)
            return tuple(itertools.islice(found, count))
        except (FlowStoneError, _DynamicKeysError):
            raise
        except Exception as error:
            raise self._failed("downstream_keys", key, error) from error

    def _failed(self, function: str, key: Key, error: Exception) -> BadMapping:
        return BadMapping(
            f"{function}({_say(key)}) of the mapping ({self._mapping}) failed: "
            f"{type(error).__name__}: {error}"
        )


def _refuse_outside(said: str, keys: Iterable[Key], partitions: PartitionSet, at: Moment) -> None:
    outside = [key for key in keys if not _is_in(key, partitions, at)]
    if outside:
        raise BadMapping(f"{said} {_few(outside)}, which is outside of ({partitions})")


def _is_in(key: Key, partitions: PartitionSet, at: Moment) -> bool:
    if not partitions.has(key, at):
        return False
    return encode_key(partitions.coerce(key, at)) == encode_key(key)


def _tried(partitions: PartitionSet) -> Iterator[Key]:
    match partitions:
        case UnpartitionedSet() | StaticPartitions():
            yield from partitions.keys(_moment())
        case ProductPartitions():
            along = (itertools.islice(_tried(one), 2 * _FEW) for one in partitions.sets)
            yield from itertools.islice(itertools.product(*along), _SOME)
        case TimePartitions():
            yield from itertools.islice(partitions.keys(_moment(partitions)), _FEW)
            key = partitions.last
            for _ in range(_FEW if key is not None else 0):
                if key is None or partitions.is_before(key, partitions.first):
                    return
                yield key
                key = partitions.previous_key(key)


def _moment(*sets: PartitionSet) -> Moment:
    """Return a moment at which the keys that are tried exist, the same whenever it is asked."""
    ends = [
        partitions.window(key).end
        for given in sets
        for partitions in sets_of(given)
        if isinstance(partitions, TimePartitions)
        for key in (partitions.first, partitions.last)
        if key is not None
    ]
    try:
        now = max(end.astimezone(UTC) for end in ends) + _AFTER if ends else datetime.now(UTC)
    except OverflowError:
        now = datetime.max.replace(tzinfo=UTC)
    return Moment(now, _unknown)


def _unknown(name: str) -> Mapping[str, Key]:
    raise _DynamicKeysError(name)


def _holds(keys: Iterable[Key], key: Key) -> bool:
    wanted = encode_key(key)
    return any(encode_key(one) == wanted for one in keys)


def _few(keys: Sequence[Key]) -> str:
    shown = ", ".join(_say(key) for key in keys[:_FEW])
    return (shown or "none") + (", ..." if len(keys) > _FEW else "")


def _say(key: Key) -> str:
    return label(encode_key(key)) or repr(key)
