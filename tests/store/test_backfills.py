"""Backfills: many partitions as one run, on a real ledger; the worker is in this process."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from flowstone import (
    BackfillHandle,
    Context,
    DailyPartitions,
    Dep,
    DynamicPartitions,
    Month,
    MonthlyPartitions,
    ProductPartitions,
    RunState,
    StaticPartitions,
    StepState,
    TimeWindow,
    add_partitions,
    asset,
    backfills,
    invalidate,
    runtime,
)
from flowstone.errors import BadConfig, CannotPause, CannotStart, KeyReused
from flowstone.hours import Hours
from flowstone.partition import Moment, PartitionSet
from flowstone.partition_key import encode_key, label
from flowstone.registry import build_registry
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker

DAYS = DailyPartitions("2013-01-01", "2013-03-31")
MONTHS = MonthlyPartitions("2013-01", "2013-03")
BROKEN: set[date] = set()
REGIONS = StaticPartitions(["b", "a", "c"])
CUSTOMERS = DynamicPartitions("customers")
BOTH = ProductPartitions(region=REGIONS, customer=CUSTOMERS)
KEYS = Moment(datetime.now(UTC), lambda _: {f"s:{key}": key for key in "zyx"})


@asset(partitions=DAYS)
def raw(context: Context) -> int:
    if context.partition in BROKEN:
        raise ValueError("no such day")
    return int(context.partition.day)


@asset(partitions=DAYS)
def clean(raw: int) -> int:
    return raw * 2


@asset(partitions=MONTHS)
def report(clean: dict[date, int]) -> int:
    return sum(clean.values())


@asset(
    partitions=DAYS,
    deps={"before": Dep("balance", mapping=TimeWindow(offset=-1)), "today": Dep("raw")},
)
def balance(before: int | None, today: int) -> int:
    return (before or 0) + today


@pytest.fixture(autouse=True)
def whole() -> None:
    BROKEN.clear()


@pytest.fixture
def local(make_runtime: RuntimeFactory) -> LocalWorker:
    return LocalWorker(make_runtime(build_registry([raw, clean, report, balance])))


def started(local: LocalWorker, handle: BackfillHandle, name: object) -> list[str]:
    """Return the partitions of an asset in the order in which they were dispatched."""
    return [m.partition for m in local.messages if m.asset == str(name)]


def states(handle: BackfillHandle) -> dict[str, dict[str, int]]:
    return {
        name: {str(s): n for s, n in by.items()} for name, by in handle.progress().steps.items()
    }


def edges(local: LocalWorker, handle: BackfillHandle) -> Any:
    query = text(
        "SELECT d.asset || d.partition AS down, u.asset || u.partition AS up, e.pinned "
        "FROM flowstone.edges e JOIN flowstone.steps d ON d.id = e.downstream "
        "JOIN flowstone.steps u ON u.id = e.upstream WHERE d.run_id = :run"
    )
    with local.runtime.ledger.begin() as conn:
        return conn.execute(query, {"run": handle.run.id}).all()


def test_a_backfill_is_one_run_in_which_dependencies_hold_across_assets(local: LocalWorker) -> None:
    handle = local.backfill("+report", partitions="2013-01..2013-02")
    planned = {name: sum(by.values()) for name, by in states(handle).items()}
    assert planned == {"raw": 59, "clean": 59, "report": 2}
    found = edges(local, handle)
    assert not any(edge.pinned for edge in found)
    assert sum(edge.down == "reportm:2013-02" for edge in found) == 28
    local.work()
    progress = handle.progress()
    assert (progress.state, progress.total, progress.ended) == (RunState.SUCCEEDED, 120, 120)
    assert handle.run.result("report") == {
        Month(2013, 1): 2 * sum(range(1, 32)),
        Month(2013, 2): 2 * sum(range(1, 29)),
    }
    assert (progress.left, progress.fresh) == (None, 0)
    assert progress.per_minute is not None


def test_what_has_succeeded_is_skipped_and_told(local: LocalWorker) -> None:
    local.backfill("+report", partitions="2013-01")
    local.work()
    handle = local.backfill("+report", partitions="2013-01..2013-02")
    assert handle.progress().fresh == 63
    local.work()
    assert states(handle)["report"] == {"skipped": 1, "succeeded": 1}
    forced = local.backfill("raw", partitions=["2013-01-01", date(2013, 1, 3)], force=True)
    assert states(forced) == {"raw": {"queued": 2}}


def test_downstream_partitions_follow_by_the_mappings_backwards(local: LocalWorker) -> None:
    local.backfill("+report", "+balance", partitions="2013-01-01..2013-03-31")
    local.work()
    handle = local.backfill("raw+", partitions="2013-02-05", force=True)
    with local.runtime.ledger.begin() as conn:
        query = text("SELECT asset, partition FROM flowstone.steps WHERE run_id = :run ORDER BY id")
        found = [tuple(row) for row in conn.execute(query, {"run": handle.run.id})]
    day = "d:2013-02-05"
    # What reads itself is to be made anew for each later day, too.
    later = [("balance", f"d:{day}") for day in DAYS.between(date(2013, 2, 5), date(2013, 3, 31))]
    assert sorted(found) == sorted([("raw", day), ("clean", day), ("report", "m:2013-02"), *later])


def test_what_another_run_computes_meanwhile_has_not_succeeded_already(local: LocalWorker) -> None:
    local.backfill("raw", partitions="2013-01")
    handle = local.backfill("raw", partitions="2013-01")
    assert states(handle) == {"raw": {"joined": 31}}
    local.work()
    assert states(handle) == {"raw": {"succeeded": 31}}
    assert handle.progress().fresh == 0
    assert local.backfill("raw", partitions="2013-01").progress().fresh == 31


def test_a_key_belongs_to_one_backfill_with_all_its_terms(local: LocalWorker) -> None:
    request = backfills.request_of(["raw"], "2013-01", force=False)
    night = Hours.parse("22:00-06:00", "Europe/Berlin")
    terms: dict[str, Any] = {"max_parallel": 4, "stop_ratio": 0.2, "hours": night}
    first = backfills.record(local.runtime, request, key="k", **terms)
    assert backfills.record(local.runtime, request, key="k", **terms).id == first.id
    others: list[dict[str, Any]] = [
        {"max_parallel": 5},
        {"max_parallel": None},
        {"stop_ratio": 0.3},
        {"hours": None},
        {"hours": Hours.parse("22:00-06:00", "UTC")},
    ]
    for other in others:
        with pytest.raises(KeyReused, match=f"key 'k' belongs to run {first.run.id}, whose"):
            backfills.record(local.runtime, request, key="k", **{**terms, **other})
    assert len(backfills.backfills_list()) == 1


def test_only_what_is_missing_is_computed(local: LocalWorker) -> None:
    local.backfill("raw", partitions="2013-01")
    local.work()
    handle = local.backfill("raw", partitions="2013-01-30..2013-02-02", only="missing")
    assert started(local, handle, raw) == ["d:2013-02-01", "d:2013-02-02"]
    local.work()
    nothing = local.backfill("raw", partitions="2013-01", only="missing")
    assert nothing.progress().total == 0
    assert nothing.progress().state == RunState.SUCCEEDED


@pytest.mark.parametrize("partitions", [REGIONS, CUSTOMERS, BOTH])
def test_keys_without_a_time_start_in_the_order_of_their_set(
    make_runtime: RuntimeFactory, partitions: PartitionSet
) -> None:
    @asset(partitions=partitions)
    def sraw() -> int:
        return 1

    @asset(partitions=partitions)
    def sclean(sraw: int) -> int:
        return sraw

    local = LocalWorker(make_runtime(build_registry([sraw, sclean])))
    runtime.use(local.runtime)
    add_partitions("customers", ["z", "y", "x"])

    def dispatched(order: str) -> list[str]:
        # The assets have not the same keys in the run.
        handle = local.backfill(
            "+sclean", "sraw", order=order, max_parallel=1, partitions="all", force=True
        )
        done: list[str] = []
        while local.messages:
            (message,) = local.messages
            done.append(f"{message.asset} {label(message.partition)}")
            local.work_on(message.asset)
        assert handle.progress().state == RunState.SUCCEEDED
        return done

    keys = [encode_key(key) for key in partitions.keys(KEYS)]
    steps = [[f"{name} {label(key)}" for name in ("sraw", "sclean")] for key in keys]
    assert dispatched("oldest") == [step for of_key in steps for step in of_key]
    assert dispatched("newest") == [step for of_key in reversed(steps) for step in of_key]


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_the_order_is_that_of_the_partitions_over_all_assets(
    local: LocalWorker, order: str
) -> None:
    handle = local.backfill("+clean", partitions="2013-01", order=order, max_parallel=1)
    done: list[str] = []
    while local.messages:
        assert len(local.messages) == 1
        done.append(f"{local.messages[0].asset} {local.messages[0].partition[-2:]}")
        local.work_on(local.messages[0].asset)
    days = range(1, 32) if order == "oldest" else range(31, 0, -1)
    assert done == [f"{name} {day:02}" for day in days for name in ("raw", "clean")]
    assert handle.progress().state == RunState.SUCCEEDED


def test_no_more_is_dispatched_than_may_run_at_once(local: LocalWorker) -> None:
    handle = local.backfill("+report", partitions="2013-01", max_parallel=4)
    most = 0
    while local.messages:
        most = max(most, len(local.messages))
        ready = handle.progress().count(StepState.QUEUED)
        assert ready == len(local.messages)
        local.work_on(local.messages[0].asset)
    assert most == 4


def test_steps_go_to_the_queue_of_backfills_and_behind_all_others(local: LocalWorker) -> None:
    local.backfill("raw", partitions="2013-01-01")
    assert {(m.queue, m.level > 3) for m in local.messages} == {("backfill", True)}


def test_an_asset_may_read_its_own_previous_partition(local: LocalWorker) -> None:
    handle = local.backfill("+balance", partitions="2013-01-03", order="newest")
    local.work()
    assert handle.run.result("balance") == {
        date(2013, 1, 1): 1,
        date(2013, 1, 2): 3,
        date(2013, 1, 3): 6,
    }


def test_a_paused_backfill_starts_nothing_until_it_goes_on(local: LocalWorker) -> None:
    handle = local.backfill("+clean", partitions="2013-01-01..2013-01-05")
    local.work_on(raw)
    late = list(local.messages)
    paused = handle.pause("the source is moved")
    assert paused.taken_back == len(late) > 0
    # Old messages begin nothing, and the end of a step wakes nobody.
    local.work()
    progress = handle.progress()
    assert (progress.state, progress.pause_reason) == (RunState.PAUSED, "the source is moved")
    assert progress.ended == 1
    with pytest.raises(CannotPause, match="paused"):
        handle.pause()
    handle.resume()
    local.coordinate(handle.run.id)
    local.work()
    assert handle.progress().state == RunState.SUCCEEDED
    with pytest.raises(CannotStart):
        handle.resume()


def test_a_cancelled_backfill_drains(local: LocalWorker) -> None:
    handle = local.backfill("+clean", partitions="2013-01-01..2013-01-05")
    local.work_on(raw)
    done = handle.cancel(reason="enough")
    assert done.state == RunState.CANCELLED
    local.work()
    assert handle.progress().count(StepState.SUCCEEDED) == 1
    again = handle.retry()
    assert again.id == handle.id
    local.coordinate(handle.run.id)
    local.work()
    assert handle.progress().state == RunState.SUCCEEDED


def test_what_has_failed_or_is_stale_is_found_among_all(local: LocalWorker) -> None:
    BROKEN.add(date(2013, 1, 3))
    local.backfill("raw", partitions="2013-01")
    local.work()
    BROKEN.clear()
    failed = local.backfill("raw", only="failed")
    assert started(local, failed, raw) == ["d:2013-01-03"]
    local.work()
    assert local.backfill("raw", only="failed").progress().total == 0
    runtime.use(local.runtime)
    invalidate("raw", "2013-01-07", reason="a typo in the source", cascade=False)
    assert started(local, local.backfill("raw", only="stale"), raw) == ["d:2013-01-07"]


def test_only_what_has_failed_is_done_again(local: LocalWorker) -> None:
    BROKEN.update({date(2013, 1, 3), date(2013, 1, 5)})
    handle = local.backfill("+report", partitions="2013-01")
    local.work()
    progress = handle.progress()
    assert progress.state == RunState.FAILED
    assert states(handle)["clean"] == {"succeeded": 29, "upstream_failed": 2}
    BROKEN.clear()
    handle.retry()
    local.coordinate(handle.run.id)
    planned = {name: sum(by.values()) for name, by in states(handle).items()}
    assert planned == {"raw": 2, "clean": 2, "report": 1}
    local.work()
    assert handle.run.result("report") == 2 * sum(range(1, 32))


def test_it_pauses_when_too_many_steps_have_failed(local: LocalWorker) -> None:
    BROKEN.update(date(2013, 1, day) for day in range(5, 10))
    handle = local.backfill("raw", partitions="2013-01", max_parallel=1, stop_ratio=0.3)
    local.work()
    progress = handle.progress()
    assert progress.state == RunState.PAUSED
    assert progress.ended == 10
    assert progress.pause_reason is not None
    assert "5 steps have failed, 30% or more" in progress.pause_reason
    # What failed before does not count again.
    handle.resume()
    local.coordinate(handle.run.id)
    local.work()
    assert handle.progress().count(StepState.SUCCEEDED) == 26


def test_outside_of_its_hours_nothing_of_it_starts(local: LocalWorker) -> None:
    now = datetime.now(UTC)
    closed = Hours.parse(
        f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}", "UTC"
    )
    handle = local.backfill("raw", partitions="2013-01", hours=closed)
    assert not local.messages
    opens_at = handle.progress().opens_at
    assert opens_at is not None
    assert opens_at > now


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stop_ratio": 2.0}, "stop_ratio is 2.0"),
        ({"stop_ratio": "0.2"}, "stop_ratio is '0.2'"),
        ({"stop_ratio": float("nan")}, "stop_ratio is nan"),
        ({"stop_ratio": True}, "stop_ratio is True"),
        ({"max_parallel": 0}, "max_parallel is 0; it must be a whole number from 1 to 1000000"),
        ({"max_parallel": "4"}, "max_parallel is '4'"),
        ({"max_parallel": 2.5}, "max_parallel is 2.5"),
        ({"only": "new"}, "only is 'new'; it must be one of 'missing', 'failed', 'stale'"),
        ({"order": "random"}, "order is 'random'; it must be one of 'oldest', 'newest'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    local: LocalWorker, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadConfig, match=said):
        local.backfill("raw", **options)


@pytest.mark.parametrize(
    ("zone", "said"),
    [("Mars", "'Mars' is not an IANA time zone"), ("Europe/Berlin", "give both, or neither")],
)
def test_a_zone_without_hours_is_refused(zone: str, said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        backfills.backfill("raw", zone=zone)


def test_a_mapping_is_a_key(local: LocalWorker) -> None:
    handle = local.backfill("raw", partitions={"a": 1})
    assert "partition {'a': 1} is not a day" in handle.run.explain()


def test_a_partition_that_there_is_not_ends_the_run_with_a_message(local: LocalWorker) -> None:
    handle = local.backfill("raw", partitions=["2013-01-01", "2013-13-01"])
    assert handle.progress().state == RunState.FAILED
    assert "asset 'raw': partition '2013-13-01'" in handle.run.explain()
    assert handle.progress().total == 0
