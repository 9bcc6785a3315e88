"""Roll-ups: how many inputs are enough, and what a plan says where some are missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.asset import Asset, Dep, asset
from flowstone.errors import DefinitionError, MissingInput
from flowstone.graph import AssetGraph
from flowstone.partition import DailyPartitions, Moment, Month, MonthlyPartitions
from flowstone.partition_key import encode_key
from flowstone.plan import Made, Node, Plan, build_plan
from flowstone.request import Request
from flowstone.rollup import AtLeast, Needs, Ratio, too_few

DAYS = DailyPartitions("2024-02-26", "2024-02-29")
MONTHS = MonthlyPartitions("2024-02", "2024-02")
MONTH: Node = ("month", "m:2024-02")
SOON = datetime(2024, 3, 2, tzinfo=UTC)
"""A day after the end of the month."""


@given(st.integers(0, 1000), st.integers(1, 100))
def test_a_ratio_is_rounded_up_and_never_more_than_all(of: int, percent: int) -> None:
    needed = Ratio(percent / 100).needed(of)
    assert needed == -(-of * percent // 100)
    assert needed <= of


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in (0, -0.1, 1.1, 20, math.nan):
        with pytest.raises(DefinitionError, match="Ratio"):
            Ratio(wrong)
    with pytest.raises(DefinitionError, match="say 1 or more"):
        AtLeast(0)
    for dep, said in (
        (Dep("day", optional=True, needs=AtLeast(1)), "say one of both"),
        (Dep("day", grace=timedelta(0)), "it is a time to wait"),
    ):
        with pytest.raises(DefinitionError, match=said):
            make("month", [dep])


def test_too_few_are_told_with_the_first_that_are_missing() -> None:
    def missing(*numbers: int) -> list[Node]:
        return [("day", f"d:2024-02-{n:02d}") for n in numbers]

    assert too_few(MONTH, "day", AtLeast(20), 29, missing(1, 2, 3)) is None
    assert too_few(MONTH, "day", None, 29, []) is None
    assert too_few(MONTH, "day", Ratio(0.9), 29, missing(1, 2, 3, 4, 5)) == (
        "month[2024-02] needs 27 of the 29 partitions of 'day', and there are 24; "
        "missing: day[2024-02-01], day[2024-02-02], day[2024-02-03] and 2 more"
    )
    assert too_few(MONTH, "day", None, 29, missing(7)) == (
        "month[2024-02] needs 29 of 29 partitions of 'day', and there are 28; "
        "missing: day[2024-02-07]"
    )
    assert too_few(MONTH, "day", AtLeast(3), 2, []) is not None


def make(name: str, deps: Sequence[Dep] = (), *, daily: bool = False) -> Asset:
    return asset(name=name, deps=deps, partitions=DAYS if daily else MONTHS)(lambda: 1)


def plan(
    needs: Needs | None,
    grace: timedelta | None = None,
    *,
    there: int,
    now: datetime = SOON,
    others: Sequence[Asset] = (),
    upstream: bool = False,
) -> Plan:
    reader = make("month", [Dep("day", needs=needs, grace=grace)])
    graph = AssetGraph.build([make("day", daily=True), reader, *others])
    keys = [encode_key(key) for key in DAYS.keys(Moment(now))][:there]
    made = {("day", key): Made(i, f"sha{i}", None) for i, key in enumerate(keys)}

    def latest(nodes: Sequence[Node]) -> dict[Node, Made]:
        return {node: made[node] for node in nodes if node in made}

    names = ["month", *(one.name for one in others)]
    request = Request(tuple(names), encode_key(Month(2024, 2)), upstream)
    return build_plan(request, graph, latest, Moment(now))


def test_a_plan_goes_on_with_enough_and_is_refused_with_too_few() -> None:
    made = plan(AtLeast(3), there=3)
    *absent, month = made.steps
    assert [(s.node, s.skipped) for s in absent] == [(("day", "d:2024-02-29"), True)]
    assert month.upstream == tuple(("day", f"d:2024-02-{d}") for d in (26, 27, 28, 29))
    assert month.optional == set(month.upstream)
    assert set(made.pinned.values()) == {0, 1, 2}
    with pytest.raises(MissingInput, match="needs 3 of the 4 partitions of 'day', and there"):
        plan(AtLeast(3), there=2)
    with pytest.raises(MissingInput, match="has never been materialized"):
        plan(None, there=3)
    # What is in the run may still come.
    assert len(plan(AtLeast(4), there=0, upstream=True).steps) == 5


def test_what_is_missing_is_waited_for_until_the_grace_is_over() -> None:
    grace = timedelta(days=3)
    made = plan(None, grace, there=3)
    day, month = made.steps
    assert day.awaits_until == datetime(2024, 3, 4, tzinfo=UTC)
    assert not day.skipped
    assert day.reason == "never materialized, and waited for until 2024-03-04 00:00 UTC"
    assert month.reason == "missing"
    assert month.optional == frozenset()
    assert len(plan(AtLeast(4), grace, there=0).steps) == 5
    # Afterwards, it is as without.
    late = datetime(2024, 3, 4, tzinfo=UTC)
    with pytest.raises(MissingInput, match="has never been materialized"):
        plan(None, grace, there=3, now=late)
    with pytest.raises(MissingInput, match="needs 4"):
        plan(AtLeast(4), grace, there=3, now=late)
    assert [s.awaits_until for s in plan(AtLeast(3), grace, there=3, now=late).steps] == [None] * 2


def test_a_reader_that_cannot_do_without_is_refused_and_the_longest_grace_counts() -> None:
    grace = timedelta(days=3)
    longer = make("longer", [Dep("day", needs=AtLeast(1), grace=2 * grace)])
    made = plan(None, grace, there=3, others=[longer])
    assert made.steps[0].awaits_until == datetime(2024, 3, 7, tzinfo=UTC)
    assert len(made.steps) == 3
