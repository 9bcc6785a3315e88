"""Which outputs are of partitions that the sets of their assets do not have any more.

A definition may change: a set is cut otherwise, begins later, or loses a key. What was made before
stays, and this tells of it. It looks at a bounded part of each asset.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache, partial
from typing import Final, Protocol

from flowstone.errors import BadPartition
from flowstone.facts import LeftOver
from flowstone.partition import (
    Key,
    Moment,
    PartitionSet,
    ProductPartitions,
    TimePartitions,
)
from flowstone.partition_key import decode_key, encode_key, step_name
from flowstone.runtime import Runtime
from flowstone.store import dynamic_keys, partition_states
from flowstone.store.ledger import Connection

LOOKED_AT: Final = 500
"""How many partitions of an asset are looked at from the first on, and from the last back."""

_EXAMPLES: Final = 3


class _Has(Protocol):
    def __call__(self, key: Key, /) -> bool: ...


def left_over(here: Runtime) -> list[LeftOver]:
    """Return the assets that have outputs of partitions which their sets do not have any more.

    Where an asset has more than twice `LOOKED_AT`, those at both ends are looked at: a set that is
    cut otherwise shows there, and so does one that begins later.
    """
    graph = here.registry.graph
    with here.ledger.begin() as conn:
        at = moment(conn)
        found = [_of_asset(conn, name, graph[name].partitions, at) for name in graph.order]
    return [one for one in found if one.count]


def moment(conn: Connection) -> Moment:
    """Return this moment, with the keys that dynamic partitions have."""
    return Moment(datetime.now(UTC), cache(partial(dynamic_keys.keys, conn)))


def _of_asset(conn: Connection, name: str, partitions: PartitionSet, at: Moment) -> LeftOver:
    made = partition_states.at_the_ends(conn, name, LOOKED_AT)
    has = _membership(partitions, at) if made else None
    gone = [key for key in made if has is not None and not has(decode_key(key))]
    return LeftOver(
        asset=name,
        count=len(gone),
        examples=tuple(step_name(name, key) for key in gone[:_EXAMPLES]),
        is_part=len(made) >= 2 * LOOKED_AT,
    )


def _membership(partitions: PartitionSet, at: Moment) -> _Has:
    """Return what tells whether a key is one of a set, without going through it for each."""
    match partitions:
        case TimePartitions():
            return lambda key: _is_one_of(partitions, key, at)
        case ProductPartitions():
            each = [_membership(one, at) for one in partitions.dimensions.values()]
            return lambda key: (
                isinstance(key, tuple)
                and len(key) == len(each)
                and all(has(part) for has, part in zip(each, key, strict=True))
            )
    known = {encode_key(key) for key in partitions.keys(at)}
    return lambda key: encode_key(key) in known


def _is_one_of(partitions: PartitionSet, key: Key, at: Moment) -> bool:
    try:
        # The text of a day is no day.
        return encode_key(partitions.coerce(key, at)) == encode_key(key)
    except BadPartition:
        return False
