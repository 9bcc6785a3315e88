"""Partition sets: which keys an asset has, and which stretch of time a key stands for."""

from __future__ import annotations

import itertools

from flowstone.calendar_partitions import DailyPartitions, MonthlyPartitions, WeeklyPartitions
from flowstone.dynamic_set import DynamicPartitions
from flowstone.partition_key import UNPARTITIONED, Key, Month, Unpartitioned, decode_key
from flowstone.partition_set import (
    Moment,
    PartitionSet,
    StaticPartitions,
    UnpartitionedSet,
    Window,
)
from flowstone.product_partitions import ProductPartitions
from flowstone.tick_partitions import CronPartitions, HourlyPartitions
from flowstone.time_partitions import TimePartitions

__all__ = [
    "UNPARTITIONED",
    "CronPartitions",
    "DailyPartitions",
    "DynamicPartitions",
    "HourlyPartitions",
    "Key",
    "Moment",
    "Month",
    "MonthlyPartitions",
    "PartitionSet",
    "ProductPartitions",
    "StaticPartitions",
    "TimePartitions",
    "Unpartitioned",
    "UnpartitionedSet",
    "WeeklyPartitions",
    "Window",
    "first_keys",
    "parse_key",
]


def first_keys(partitions: PartitionSet, count: int, at: Moment) -> list[Key]:
    """Return up to `count` keys, to show a person what keys look like."""
    return list(itertools.islice(partitions.keys(at), count))


def parse_key(partitions: PartitionSet, encoded: str, at: Moment) -> Key:
    """Return the key of `partitions` that an encoded request key means, or raise BadPartition."""
    return partitions.coerce(decode_key(encoded), at)
