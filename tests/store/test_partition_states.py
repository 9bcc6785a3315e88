"""How partitions stand: against a simple account of random histories, and step by step."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from flowstone import client, history, reading
from flowstone.asset import Asset, Dep, asset
from flowstone.dynamic import add_partitions, remove_partitions
from flowstone.errors import BadPartition, BadQuery, UnknownAsset
from flowstone.facts import LeftOver
from flowstone.left_over import left_over
from flowstone.partition import (
    UNPARTITIONED,
    DailyPartitions,
    DynamicPartitions,
    HourlyPartitions,
    MonthlyPartitions,
    ProductPartitions,
    StaticPartitions,
)
from flowstone.partition_key import encode_key
from flowstone.partition_status import partition_states
from flowstone.registry import build_registry
from flowstone.rollup import AtLeast
from flowstone.runtime import Runtime
from flowstone.states import FINAL_STEP_STATES, PartitionState
from flowstone.store import partition_states as store
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker
from tests.store.many_partitions import made, steps
from tests.strategies import NOW

OPEN = {
    "pending": "queued",
    "queued": "queued",
    "running": "running",
    "retrying": "running",
    "waiting_approval": "waiting",
    "waiting_signal": "waiting",
}
ENDS = ["failed", "upstream_failed", "cancelled", "skipped"]
OUTPUTS = ["made", "made otherwise", "made of other code", "made of nothing known", "invalidated"]
ACTIVE = OPEN.keys() - {"pending"}
DEEDS = [*OUTPUTS, *ENDS, *ENDS, *OPEN, *["nothing"] * 10]


def told(history: list[str]) -> str:
    """What a partition with this history is, told the slow way."""
    if going_on := [OPEN[deed] for deed in history if deed in OPEN]:
        return next(state for state in ("running", "waiting", "queued") if state in going_on)
    outputs = [place for place, deed in enumerate(history) if deed in OUTPUTS]
    failures = [place for place, deed in enumerate(history) if deed.endswith("failed")]
    if failures and failures[-1] > (outputs or [-1])[-1]:
        return "failed"
    if outputs:
        return "ok" if history[outputs[-1]] == "made" else "stale"
    ended = [deed for deed in history if deed in ENDS]
    return "skipped" if ended and ended[-1] == "skipped" else "missing"


def do(ledger: Ledger, deed: str, keys: list[str]) -> None:
    with ledger.begin() as conn:
        if deed in FINAL_STEP_STATES or deed in OPEN:
            steps(conn, "a", keys, deed)
        elif deed in OUTPUTS:
            code = {"made of other code": "d", "made of nothing known": None}.get(deed, "c")
            made(conn, "a", keys, code=code, cut="weekly" if deed == "made otherwise" else "daily")
        if deed == "invalidated":
            conn.execute(
                text(
                    "UPDATE flowstone.outputs o SET stale_at = now(), stale_reason = 'bad' "
                    "FROM flowstone.latest l WHERE l.output_id = o.id AND l.partition = ANY(:keys)"
                ),
                {"keys": keys},
            )


@pytest.mark.parametrize("seed", range(3))
def test_each_partition_stands_as_its_history_says(ledger: Ledger, seed: int) -> None:
    draw = random.Random(seed)
    keys = [encode_key((f"k%{n}", n)) for n in range(400)]
    histories: dict[str, list[str]] = {key: [] for key in keys}
    for _ in range(4):
        deeds = defaultdict[str, list[str]](list)
        for key, past in histories.items():
            deed = draw.choice(DEEDS)
            # One step of a partition is active at once, and it is open until the end.
            past.append("nothing" if deed in OPEN and set(past) & OPEN.keys() else deed)
            deeds[past[-1]].append(key)
        for deed, those in deeds.items():
            do(ledger, deed, those)
    with ledger.begin() as conn:
        made(conn, "b", keys)
        asked = draw.sample(keys, 100)
        found = store.standing(conn, "a", asked, "c", "daily")
        every = store.standing(conn, "a", keys, "c", "daily")
        assert store.standing(conn, "a", [], "c", "daily") == {}
    assert list(found) == asked
    assert found == {key: told(histories[key]) for key in asked}
    assert every == {key: told(histories[key]) for key in keys}
    assert set(every.values()) == set(PartitionState)


STATIC = StaticPartitions(["ok", "bad", "new", "asked"])


def upstream(value: int, bad: str = "bad") -> Asset:
    @asset(partitions=STATIC, name="up", version=str(value))
    def up(context: Any) -> int:
        if str(context.partition) == bad:
            raise ValueError("no")
        return value

    return up


def downstream(version: str = "1") -> Asset:
    @asset(partitions=STATIC, deps={"up": Dep("up", optional=True)}, version=version)
    def down(up: int | None) -> int:
        return 1 + (up or 0)

    return down


def states(name: str, partitions: Any = "all") -> dict[str, str]:
    found = partition_states(name, partitions)
    return {str(key): state.value for key, state in found.states.items()}


def test_from_nothing_to_stale(make_runtime: RuntimeFactory) -> None:
    local = LocalWorker(make_runtime(build_registry([upstream(1), downstream()])))
    assert states("up") == dict.fromkeys(["ok", "bad", "new", "asked"], "missing")
    local.submit("down", partition="ok")
    local.submit("up", partition="bad")
    local.submit("down", partition="new", upstream=False)
    local.begin("up", partition="asked")
    # What a run goes on without, as it is optional, is skipped there.
    assert states("up") == {"ok": "ok", "bad": "failed", "new": "skipped", "asked": "queued"}
    assert states("down") == {"ok": "ok", "bad": "missing", "new": "ok", "asked": "missing"}
    found = partition_states("up")
    once = {"ok", "failed", "skipped", "queued"}
    assert found.counts == {state: int(state in once) for state in PartitionState}
    assert found.keys_with("failed", "queued") == ["bad", "asked"]
    assert states("up", ["asked", "ok"]) == {"ok": "ok", "asked": "queued"}

    # The same value anew is no other input; another value is one.
    client.materialize_sync("up", partition="ok")
    assert states("down", "ok") == {"ok": "ok"}
    make_runtime(build_registry([upstream(2, bad="asked"), downstream()]))
    assert partition_states("up", "ok").reasons == {"ok": "code changed"}
    client.materialize_sync("up", partition="ok")
    assert partition_states("down", "ok").reasons == {"ok": "input changed"}
    client.materialize_sync("up", partition="bad")
    assert states("up", "bad") == {"bad": "ok"}
    make_runtime(build_registry([upstream(2), downstream("2")]))
    assert partition_states("down").reasons == dict.fromkeys(["ok", "new"], "code changed")
    history.invalidate("up", "bad", reason="wrong")
    assert set(partition_states("up").reasons) == {"bad"}


def daily(**options: Any) -> Asset:
    @asset(name="a", version="1", **options)
    def a() -> int:
        return 1

    return a


def test_what_becomes_of_partitions_whose_set_has_changed(make_runtime: RuntimeFactory) -> None:
    def define(partitions: Any) -> Runtime:
        return make_runtime(build_registry([daily(partitions=partitions)]))

    letters = [chr(ord("a") + place) for place in range(10)]
    define(StaticPartitions(letters))
    for key in letters:
        client.materialize_sync("a", partition=key)
    here = define(StaticPartitions(letters[::2]))
    found = partition_states("a")
    assert found.states == dict.fromkeys(letters[::2], "ok")
    assert list(found.left_over) == letters[1::2]
    assert left_over(here) == [LeftOver("a", 5, ("a[b]", "a[d]", "a[f]"), is_part=False)]
    assert reading.get("a", "j") == 1
    assert partition_states("a", "c").left_over == ()

    here = define(DailyPartitions("2026-01-01", "2026-01-03"))
    for day in (1, 2):
        client.materialize_sync("a", partition=f"2026-01-0{day}")
    assert left_over(here)[0].count == 10
    here = define(DailyPartitions("2026-01-01", "2026-01-03", tz="Asia/Tokyo"))
    found = partition_states("a")
    assert [state.value for state in found.states.values()] == ["stale", "stale", "missing"]
    assert set(found.reasons.values()) == {"the partition is cut otherwise now"}
    (planned,) = client.preview("a", partition="2026-01-01", force=False).steps
    assert planned.reason == found.reasons[date(2026, 1, 1)]
    assert left_over(here)[0].count == 10
    here = define(HourlyPartitions("2026-01-01", "2026-01-02"))
    found = partition_states("a")
    assert set(found.states.values()) == {"missing"}
    assert set(found.left_over) == {*letters, date(2026, 1, 1), date(2026, 1, 2)}
    assert left_over(here)[0].count == 12
    assert reading.get("a", date(2026, 1, 2)) == 1
    with here.ledger.begin() as conn:
        assert conn.scalar(text("SELECT count(*) FROM flowstone.runs")) == 12


def test_many_that_are_left_over_are_looked_at_from_both_ends(
    make_runtime: RuntimeFactory,
) -> None:
    every = DailyPartitions("2020-01-01", "2025-12-31")
    keys = [encode_key(key) for key in every.keys(NOW)]
    here = make_runtime(build_registry([daily(partitions=every)]))
    with here.ledger.begin() as conn:
        made(conn, "a", keys)
        made(conn, "b", keys)
    assert left_over(here) == []
    later = make_runtime(build_registry([daily(partitions=DailyPartitions("2020-01-03"))]))
    assert left_over(later) == [LeftOver("a", 2, ("a[2020-01-01]", "a[2020-01-02]"), is_part=True)]
    other = make_runtime(build_registry([daily(partitions=MonthlyPartitions("2020-01"))]))
    assert left_over(other)[0].count == 1000


def test_products_and_dynamic_keys(make_runtime: RuntimeFactory) -> None:
    tenants = DynamicPartitions("tenants")
    days = DailyPartitions("2026-01-01", "2026-01-02")
    product = ProductPartitions(day=days, tenant=tenants)
    here = make_runtime(build_registry([daily(partitions=product)]))
    assert partition_states("a").states == {}
    add_partitions("tenants", ["ann", "bob"])
    first = date(2026, 1, 1)
    client.materialize_sync("a", partition=(first, "bob"))
    client.materialize_sync("a", partition=(first, "ann"))
    assert states("a", "2026-01-01|*") == {str((first, one)): "ok" for one in ("ann", "bob")}
    assert partition_states("a").counts["missing"] == 2  # type: ignore[index]
    remove_partitions("tenants", ["bob"])
    assert list(partition_states("a").left_over) == [(first, "bob")]
    assert left_over(here)[0].examples == ("a[2026-01-01|bob]",)


def test_sets_of_all_kinds_and_what_is_refused(make_runtime: RuntimeFactory) -> None:
    @asset
    def whole() -> int:
        return 1

    @asset(partitions=DailyPartitions("2013-01-01", "2013-12-31"))
    def day() -> int:
        return 1

    make_runtime(build_registry([whole, day]))
    assert partition_states(whole).states == {UNPARTITIONED: "missing"}
    client.materialize_sync(whole)
    assert partition_states("whole").counts["ok"] == 1  # type: ignore[index]
    assert len(partition_states("day").states) == 365
    assert list(partition_states("day", "2013-01-30..2013-02-01").states) == [
        date(2013, 1, 30),
        date(2013, 1, 31),
        date(2013, 2, 1),
    ]
    with pytest.raises(UnknownAsset, match="did you mean 'day'"):
        partition_states("dya")
    with pytest.raises(BadPartition, match=r"asset 'day': .*2014"):
        partition_states("day", "2014-01-01")
    with pytest.raises(BadQuery, match="no state 'faild' of partitions; did you mean 'failed'"):
        partition_states("day", "2013-01-30").keys_with("faild")


def test_no_history_makes_it_slower(ledger: Ledger) -> None:
    """Each partition costs a few looks into indexes; neither its past nor others' lineage does."""
    keys = [encode_key(date(2026, 1, day)) for day in range(1, 29)]

    def pages(conn: Any) -> int:
        values = {"asset": "a", "keys": keys, "code": "c", "cut": None}
        explain = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {store.STATEMENT}")
        (plan,) = conn.scalar(explain, values)
        return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])

    with ledger.begin() as conn:
        made(conn, "b", keys)
        made(conn, "a", keys, reads="b")
        few = pages(conn)
        for number in range(30):
            others = [encode_key((number, day)) for day in range(28)]
            made(conn, "b", others)
            made(conn, "a", others, reads="b")
            steps(conn, "a", keys, "cancelled")
        made(conn, "a", keys, reads="b")
        assert pages(conn) < 2 * few


PAST = DailyPartitions("2024-02-26", "2024-02-29")
MONTH = MonthlyPartitions("2024-02", "2024-02")


@asset(partitions=PAST)
def day(context: Any) -> int:
    return int(context.partition.day)


def month(**options: Any) -> Asset:
    @asset(name="month", partitions=MONTH, deps={"day": Dep("day", **options)})
    def made(day: dict[date, int | None]) -> int:
        return sum(value or 0 for value in day.values())

    return made


def test_what_was_made_without_what_is_there_now_is_stale(make_runtime: RuntimeFactory) -> None:
    @asset(name="total", deps={"day": Dep("day", optional=True)})
    def total(day: dict[date, int | None]) -> int:
        return sum(value or 0 for value in day.values())

    make_runtime(build_registry([day, month(needs=AtLeast(1)), total]))
    client.materialize_sync("day", partition="2024-02-26")
    for name, key in (("month", "2024-02"), ("total", UNPARTITIONED)):
        client.materialize_sync(name, partition=key)
        assert set(states(name).values()) == {"ok"}
    client.materialize_sync("day", partition="2024-02-27")
    for name, key in (("month", "2024-02"), ("total", UNPARTITIONED)):
        assert set(partition_states(name).reasons.values()) == {"input changed"}
        planned = client.preview(name, partition=key, force=False).steps
        assert planned[-1].reason == "input changed"
        client.materialize_sync(name, partition=key, force=False)
        assert set(states(name).values()) == {"ok"}


def test_who_reads_what_another_run_is_to_make_waits(make_runtime: RuntimeFactory) -> None:
    @asset(name="report", partitions=MONTH)
    def report(month: int) -> int:
        return month

    patient = month(needs=AtLeast(4), grace=timedelta(days=365 * 100))
    local = LocalWorker(make_runtime(build_registry([day, patient, report])))
    client.materialize_sync("day", partition="2024-02-26")
    local.begin("month", "report", partition="2024-02", upstream=False)
    # What is waited for, the run does not compute.
    assert states("day", ["2024-02-26", "2024-02-27"]) == {
        "2024-02-26": "ok",
        "2024-02-27": "missing",
    }
    assert states("month") == {"2024-02": "waiting"}
    assert states("report") == {"2024-02": "queued"}


def test_the_failure_that_came_last_counts(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        steps(conn, "a", ["s:k"], "failed")
        made(conn, "a", ["s:k"])
        steps(conn, "a", ["s:k"], "failed")
        # The step that was planned first has ended last.
        conn.execute(
            text(
                "UPDATE flowstone.steps SET finished_at = now() + CASE WHEN id = "
                "(SELECT min(id) FROM flowstone.steps) THEN interval '1h' ELSE interval '-1h' END"
            )
        )
        assert store.standing(conn, "a", ["s:k"], "c", None) == {"s:k": "failed"}
