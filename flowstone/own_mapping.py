"""The mapping by two functions of a user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowstone.errors import BadMapping, BadPartition, DefinitionError, is_time_limit
from flowstone.partition import Key, Moment, PartitionSet
from flowstone.partition_key import encode_key

KeyOrKeys = Key | Iterable[Key]
"""One key, or a list of keys. A tuple is one key, that of a set with several dimensions."""


@dataclass(frozen=True, repr=False)
class Mapped:
    """Which partitions are read is told by two functions, one in each direction.

    `forward` gets the key of the reader, and returns the key that it reads, or a list of keys;
    `reverse` gets the key that is read, and returns the keys that read it. Keys may be returned as
    people write them. With `fan_in` the reader gets a dict of key -> value, also of one key.
    What `forward` returns has to be in the upstream set; what `reverse` returns is left out where
    the downstream set lacks it.
    """

    forward: Callable[[Any], KeyOrKeys]
    reverse: Callable[[Any], KeyOrKeys]
    fan_in: bool = False

    def __post_init__(self) -> None:
        """Raise DefinitionError for what is no function."""
        for function in (self.forward, self.reverse):
            if not callable(function):
                raise DefinitionError(
                    f"Mapped takes two functions, forward and reverse, and {function!r} is none"
                )

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return what `forward` says.

        Raises BadMapping where it fails, or names several keys without a fan-in, and BadPartition
        for what is not in the upstream set.
        """
        del downstream
        said = f"{_name(self.forward)}({key})"
        found: dict[str, Key] = {}
        for given in _called(self.forward, key, said):
            try:
                one = upstream.coerce(given, at)
            except BadPartition as error:
                raise BadPartition(f"{said} returned {given!r}: {error.message}") from error
            found[encode_key(one)] = one
        if len(found) > 1 and not self.fan_in:
            raise BadMapping(
                f"{said} returned {len(found)} keys, and the reader takes one; say "
                "Mapped(..., fan_in=True) for a dict of them"
            )
        return tuple(found.values())

    def downstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Iterator[Key]:
        """Return what `reverse` says, as far as it is in the downstream set."""
        del upstream
        found: dict[str, Key] = {}
        for given in _called(self.reverse, key, f"{_name(self.reverse)}({key})"):
            if downstream.has(given, at):
                one = downstream.coerce(given, at)
                found[encode_key(one)] = one
        return iter(found.values())

    def __str__(self) -> str:
        return f"mapped by {_name(self.forward)}"

    def __repr__(self) -> str:
        return f"Mapped({_name(self.forward)}, {_name(self.reverse)}, fan_in={self.fan_in})"


def _called(function: Callable[[Any], KeyOrKeys], key: Key, said: str) -> list[Key]:
    try:
        given = function(key)
        # A text, a tuple and a mapping of dimensions can be gone through, too, but are keys.
        if isinstance(given, str | tuple | Mapping) or not isinstance(given, Iterable):
            keys: list[Key] = [given]
        else:
            keys = list(given)
        for one in keys:
            if not isinstance(one, Mapping):
                encode_key(one)
    except BadPartition as error:
        raise BadMapping(f"{said} did not return keys: {error.message}") from error
    except Exception as error:  # the user's own function may raise anything
        if is_time_limit(error):
            raise
        raise BadMapping(f"{said} failed: {type(error).__name__}: {error}") from error
    return keys


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", None) or type(function).__name__
