"""What a partition set is; the set without partitions, and that which is a list of keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from flowstone.errors import BadPartition, DefinitionError, did_you_mean
from flowstone.key_map import frozen
from flowstone.partition_key import (
    UNPARTITIONED,
    Key,
    Unpartitioned,
    encode_key,
    label,
)

_SHOWN: Final = 8
"""Keys that an error shows."""


@dataclass(frozen=True)
class Window:
    """A half-open stretch of time, `start <= t < end`, both with a zone."""

    start: datetime
    end: datetime


def _no_keys(name: str) -> Mapping[str, Key]:
    raise BadPartition(f"the keys of the dynamic partitions {name!r} are in the ledger")


@dataclass(frozen=True)
class Moment:
    """When a set is looked at, and what had been added to dynamic sets by then."""

    now: datetime
    """With a zone."""
    keys_of: Callable[[str], Mapping[str, Key]] = field(default=_no_keys, compare=False)
    """The keys of a dynamic set by their encoded forms, in the order in which they were added."""


class PartitionSet(ABC):
    """The keys of one asset. A set may grow with time, so the moment is an argument."""

    @abstractmethod
    def keys(self, at: Moment) -> Iterator[Key]:
        """Yield the keys that exist at that moment, in their natural order."""

    def window_of(self, key: Key) -> Window | None:  # noqa: ARG002 - most keys are no time
        """Return the stretch of time that a key stands for, or None if it is not of time."""
        return None

    @abstractmethod
    def coerce(self, value: Key, at: Moment) -> Key:
        """Return the key of this set that `value` means; raise BadPartition if there is none.

        A caller may give the key itself or the text that a person would write
        for it, as the command line does.
        """

    @property
    def cut(self) -> str | None:
        """How time is cut into partitions, such as "daily, Europe/Berlin"; None if it is not."""
        return None


@dataclass(frozen=True)
class UnpartitionedSet(PartitionSet):
    """The set with the single key UNPARTITIONED."""

    def keys(self, at: Moment) -> Iterator[Key]:  # noqa: ARG002 - the set does not grow
        """Yield UNPARTITIONED."""
        yield UNPARTITIONED

    def coerce(self, value: Key, at: Moment) -> Key:  # noqa: ARG002 - the set does not grow
        """Accept only UNPARTITIONED."""
        if isinstance(value, Unpartitioned):
            return value
        raise BadPartition(f"it has no partitions, so partition {say(value)} cannot be given")

    def __str__(self) -> str:
        return "unpartitioned"


@dataclass(frozen=True)
class StaticPartitions(PartitionSet):
    """A fixed list of keys, in the given order."""

    values: tuple[Key, ...]
    _by_encoded: Mapping[str, Key] = field(repr=False, compare=False)

    def __init__(self, values: Iterable[Key]) -> None:
        """Raise DefinitionError for what is no list of keys, each only once, or BadPartition."""
        keys = key_list(values)
        for key in keys:
            check_listed(key)
        by_encoded = {encode_key(key): key for key in keys}
        # A fan-in is a dict of key -> value, in which 1 and True would be one key.
        if not keys or len(set(keys)) != len(keys):
            raise DefinitionError("StaticPartitions takes at least one key, each only once")
        object.__setattr__(self, "values", keys)
        object.__setattr__(self, "_by_encoded", by_encoded)

    def is_within(self, other: StaticPartitions) -> bool:
        """Return whether each key is one of `other`, too, and of the same type there."""
        return self._by_encoded.keys() <= other._by_encoded.keys()

    def keys(self, at: Moment) -> Iterator[Key]:  # noqa: ARG002 - the set does not grow
        """Yield the keys in the order in which they were given."""
        return iter(self.values)

    def coerce(self, value: Key, at: Moment) -> Key:  # noqa: ARG002 - the set does not grow
        """Accept a key, or its text where only one key is written so."""
        return in_list(value, self._by_encoded, "")

    def __str__(self) -> str:
        return f"{len(self.values)} static keys"


def key_list(given: Iterable[Key]) -> tuple[Key, ...]:
    """Return the keys of a list, as they are kept; raise BadPartition for what is no list."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise BadPartition(f"give a list of keys, as in [{given!r}], and not one key")
    return tuple(map(frozen, given))


def check_listed(key: Key) -> None:
    """Raise BadPartition for a key that nobody could see or write: UNPARTITIONED, an empty text."""
    if not label(encode_key(key)):
        raise BadPartition(
            f"{key!r} cannot be one of several partitions, as it is written as nothing; use a text "
            "that is not empty"
        )


def in_list(value: Key, keys: Mapping[str, Key], remedy: str) -> Key:
    """Return the key of a list that a value is, or is the only text of; raise BadPartition.

    `keys` are those of the list by their encoded forms; an error ends with `remedy`.
    """
    if (encoded := encode_key(value)) in keys:
        return keys[encoded]
    labels: dict[str, list[Key]] = {}
    for one, key in keys.items():
        labels.setdefault(label(one), []).append(key)
    if isinstance(value, str) and len(found := labels.get(value, [])) == 1:
        return found[0]
    some = [one for one, them in labels.items() for _ in them][: _SHOWN + 1]
    shown = ", ".join(some[:_SHOWN]) + (", ..." if len(some) > _SHOWN else "")
    raise BadPartition(
        f"partition {say(value)} is not one of {shown}" + did_you_mean(str(value), labels) + remedy
    )


def say(value: Key) -> str:
    """Return a key as errors show it: texts in quotes."""
    try:
        return repr(value) if isinstance(value, str | Unpartitioned) else f"{value!s}"
    except ValueError:
        # Python writes no number of more than some thousand digits.
        return "of so many digits"
