"""How the partitions of an asset stand: what is missing, computed, failed, stale, left over."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from flowstone import runtime
from flowstone.asset import Asset
from flowstone.choice import Choice, chosen, parse_choice
from flowstone.errors import BadPartition, BadQuery, did_you_mean
from flowstone.left_over import moment
from flowstone.partition import Key, Moment
from flowstone.partition_key import decode_key, encode_key
from flowstone.states import PartitionState
from flowstone.store import partition_states as store
from flowstone.store.ledger import Connection

__all__ = ["PartitionState", "PartitionStates", "partition_states"]

_ALL = "all"


@dataclass(frozen=True)
class PartitionStates:
    """How partitions of an asset stand, at one moment."""

    asset: str
    states: Mapping[Key, PartitionState]
    """That of each partition that was asked about, in the order of the set."""
    reasons: Mapping[Key, str] = field(default_factory=dict)
    """Why the stale ones are."""
    left_over: Sequence[Key] = ()
    """Partitions that have an output, and that the set of the asset does not have any more.

    Nothing computes them again, and `get` still reads them. They are told where all partitions
    were asked about.
    """

    @cached_property
    def counts(self) -> Mapping[PartitionState, int]:
        """How many partitions are in each state; 0 for those in which none is."""
        found = Counter(self.states.values())
        return {state: found[state] for state in PartitionState}

    def keys_with(self, *states: PartitionState | str) -> list[Key]:
        """Return the partitions in these states, in the order of the set; raise BadQuery."""
        wanted = {state_of(state) for state in states}
        return [key for key, state in self.states.items() if state in wanted]


def partition_states(
    asset: str | Asset, partitions: Choice | Key | Iterable[Key] = _ALL
) -> PartitionStates:
    """Return how partitions of an asset stand: all, or those of a choice.

    The choice is "all", a key or its text, a range such as "2013-01..2013-06", or a list of any
    of these. It is asked about in pieces of some thousands, each at one moment. This process
    needs the definitions. Raises UnknownAsset or BadPartition.
    """
    here = runtime.current()
    made = here.registry.graph[str(asset)]
    with here.ledger.begin() as conn:
        keys = _keys(made, partitions, moment(conn))
        found = _look(conn, made, list(keys))
        is_all = partitions == _ALL
        left_over = store.others(conn, made.name, found) if is_all else ()
        return PartitionStates(
            asset=made.name,
            states={keys[key]: stand.state for key, stand in found.items()},
            reasons={keys[key]: stand.why for key, stand in found.items() if stand.why},
            left_over=tuple(decode_key(key) for key in left_over),
        )


def state_of(name: str) -> PartitionState:
    """Return the state of this name; raise BadQuery."""
    known = [state.value for state in PartitionState]
    try:
        return PartitionState(name)
    except ValueError:
        raise BadQuery(
            f"there is no state {name!r} of partitions{did_you_mean(name, known)}; "
            f"there are {', '.join(known)}"
        ) from None


def _keys(asset: Asset, partitions: Choice | Key | Iterable[Key], at: Moment) -> dict[str, Key]:
    try:
        choice = parse_choice(partitions)
        return {encode_key(key): key for key in chosen(asset.partitions, choice, at)}
    except BadPartition as error:
        raise BadPartition(f"asset {asset.name!r}: {error.message}") from error


def _look(conn: Connection, asset: Asset, keys: Sequence[str]) -> dict[str, store.Stand]:
    # Those that are near to each other in the index are asked about together.
    cut = asset.partitions.cut
    found: dict[str, store.Stand] = dict.fromkeys(keys, store.MISSING)
    for batch in _batches(sorted(keys)):
        found.update(store.look(conn, asset.name, batch, asset.code_hash, cut))
    return found


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    rest = iter(keys)
    while batch := list(itertools.islice(rest, store.BATCH)):
        yield batch
