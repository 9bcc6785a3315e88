"""What a partition set is; the set without partitions, and that which is a list of keys."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
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


Labels = Mapping[str, Sequence[Key]]
"""The keys of a list by what people write for them; several may be written alike."""


def _no_keys(name: str) -> Mapping[str, Key]:
    raise BadPartition(f"the keys of the dynamic partitions {name!r} are in the ledger")


@dataclass(frozen=True)
class Moment:
    """When a set is looked at, and what had been added to dynamic sets by then."""

    now: datetime
    """With a zone."""
    keys_of: Callable[[str], Mapping[str, Key]] = field(default=_no_keys, compare=False)
    """The keys of a dynamic set by their encoded forms, in the order in which they were added."""
    _labels: dict[str, Labels] = field(default_factory=dict, init=False, compare=False, repr=False)

    def labels_of(self, name: str) -> Labels:
        """Return the keys of a dynamic set by what people write for them."""
        if name not in self._labels:
            self._labels[name] = by_label(self.keys_of(name))
        return self._labels[name]


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

    def has(self, value: Key, at: Moment) -> bool:
        """Return whether there is a key that `value` means, where nobody reads why there is not."""
        try:
            self.coerce(value, at)
        except BadPartition:
            return False
        return True

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
        return in_list(value, self._by_encoded, lambda: self._labels, "")

    def has(self, value: Key, at: Moment) -> bool:  # noqa: ARG002 - the set does not grow
        """Return whether it is a key, or its text where only one key is written so."""
        return is_in_list(value, self._by_encoded, lambda: self._labels)

    @cached_property
    def _labels(self) -> Labels:
        return by_label(self._by_encoded)

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


def by_label(keys: Mapping[str, Key]) -> Labels:
    """Return the keys of a list, which has them by their encoded forms, by their labels."""
    labels: dict[str, list[Key]] = {}
    for encoded, key in keys.items():
        labels.setdefault(label(encoded), []).append(key)
    return labels


def is_in_list(value: Key, keys: Mapping[str, Key], labels: Callable[[], Labels]) -> bool:
    """Return whether a value is a key of a list, or the only text of one."""
    try:
        is_key = encode_key(value) in keys
    except BadPartition:
        return False
    return is_key or (isinstance(value, str) and len(labels().get(value, ())) == 1)


def in_list(value: Key, keys: Mapping[str, Key], labels: Callable[[], Labels], remedy: str) -> Key:
    """Return the key of a list that a value is, or is the only text of; raise BadPartition.

    `keys` are those of the list by their encoded forms, `labels` by their texts, which are asked
    for where the value is none of them; an error ends with `remedy`.
    """
    if (encoded := encode_key(value)) in keys:
        return keys[encoded]
    texts = labels()
    if isinstance(value, str) and len(found := texts.get(value, ())) == 1:
        return found[0]
    some = [one for one, them in itertools.islice(texts.items(), _SHOWN + 1) for _ in them]
    shown = ", ".join(some[:_SHOWN]) + (", ..." if len(some) > _SHOWN else "")
    raise BadPartition(
        f"partition {say(value)} is not one of {shown}" + did_you_mean(str(value), texts) + remedy
    )


def say(value: Key) -> str:
    """Return a key as errors show it: texts in quotes."""
    try:
        return repr(value) if isinstance(value, str | Unpartitioned) else f"{value!s}"
    except ValueError:
        # Python writes no number of more than some thousand digits.
        return "of so many digits"
