"""Positions of keys: those of a set are in its order, in products too."""

from __future__ import annotations

from itertools import pairwise

import pytest

from flowstone.partition import (
    DailyPartitions,
    HourlyPartitions,
    MonthlyPartitions,
    PartitionSet,
    ProductPartitions,
    StaticPartitions,
    UnpartitionedSet,
)
from flowstone.ranks import LARGEST, Ranks
from tests.strategies import NOW

DAYS = DailyPartitions("2024-02-27", "2024-03-02", tz="Europe/Berlin")
MONTHS = MonthlyPartitions("2024-01", "2024-03")
LETTERS = StaticPartitions(["b", "a", "c"])


@pytest.mark.parametrize(
    "partitions",
    [
        UnpartitionedSet(),
        LETTERS,
        ProductPartitions(letter=LETTERS, number=StaticPartitions([2, 1])),
        ProductPartitions(letter=LETTERS, day=DAYS),
        ProductPartitions(day=DAYS, month=MONTHS, letter=LETTERS),
    ],
)
def test_keys_are_ranked_in_the_order_of_their_set(partitions: PartitionSet) -> None:
    ranks = Ranks(NOW)
    found = [ranks.of(partitions, key) for key in partitions.keys(NOW)]
    assert found[0] == 0
    assert all(before < after for before, after in pairwise(found))


def test_lists_of_keys_are_counted() -> None:
    both = ProductPartitions(letter=LETTERS, number=StaticPartitions([2, 1]))
    assert [Ranks(NOW).of(both, key) for key in both.keys(NOW)] == [0, 1, 2, 3, 4, 5]


def test_no_rank_is_too_large_for_the_ledger() -> None:
    hours = HourlyPartitions("1990-01-01T00", "2020-01-01T00")
    many = ProductPartitions({f"h{n}": hours for n in range(5)})
    assert Ranks(NOW).of(many, (hours.last,) * 5) == LARGEST
