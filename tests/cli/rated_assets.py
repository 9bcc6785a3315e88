"""Assets that share a rate."""

from __future__ import annotations

from flowstone import Rate, StaticPartitions, asset


@asset(rate=Rate(10, per="hour", key="api"), partitions=StaticPartitions(["a", "b", "c"]))
def call() -> int:
    return 1


@asset(deps=["call"])
def calls() -> None: ...
