"""Assets that share a pool."""

from __future__ import annotations

from flowstone import StaticPartitions, asset


@asset(pool="warehouse", partitions=StaticPartitions(["a", "b", "c"]))
def load() -> int:
    return 1


@asset(deps=["load"])
def loads() -> None: ...
