"""Each success is a version of its own; the latest is that of the last commit, or rolled back."""

from __future__ import annotations

from typing import Any

import pytest

import flowstone
from flowstone import materialize_sync, rollback, versions
from flowstone.asset import asset
from flowstone.errors import BadPartition, RunFailed, UnknownAsset, UnknownVersion
from flowstone.partition import StaticPartitions
from flowstone.registry import build_registry
from flowstone.store import versions as store
from flowstone.store.versions import mark_stale
from tests.store.runs_by_hand import HandRun, query

REASONS = "SELECT asset, state, reason FROM flowstone.steps WHERE run_id = :run ORDER BY id"


class Source:
    def __init__(self) -> None:
        self.value: Any = 1


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def here(make_runtime: Any, source: Source) -> Any:
    @asset
    def number() -> Any:
        if isinstance(source.value, Exception):
            raise source.value
        return source.value

    @asset
    def double(number: int) -> int:
        return 2 * number

    return make_runtime(build_registry([number, double]))


def reasons(here: Any, handle: flowstone.RunHandle) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in query(here.ledger, REASONS, run=handle.id)]


def test_every_success_is_a_version_and_a_later_failure_hides_none(
    here: Any, source: Source
) -> None:
    first = materialize_sync("number")
    source.value = 2
    second = materialize_sync("number")
    source.value = ValueError("broken now")
    with pytest.raises(RunFailed):
        materialize_sync("number")
    found = versions("number")
    assert [(v.run_id, v.is_latest) for v in found] == [(second.id, True), (first.id, False)]
    assert flowstone.get("number") == 2
    assert flowstone.get("number", version=found[1].id) == 1
    assert flowstone.get("number", run=first.id) == 1
    assert flowstone.get("number", run=str(second.id)[:8]) == 2
    standing = flowstone.status("number")
    assert (standing.state, standing.latest) == ("materialized", found[0])
    assert standing.failure is not None
    assert standing.failure.message == "broken now"


def test_a_rollback_moves_the_pointer_and_says_who_did_it_and_why(
    here: Any, source: Source
) -> None:
    materialize_sync("double", upstream=True)
    source.value = 2
    materialize_sync("number")
    materialize_sync("double")
    bad, good = versions("number")
    gone_back = rollback("number", reason="the second was wrong")
    assert gone_back.id == good.id
    assert flowstone.get("number") == 1
    assert [v.is_latest for v in versions("number")] == [False, True]
    (row,) = query(here.ledger, "SELECT * FROM flowstone.audit WHERE action = 'output.rolled_back'")
    assert (row.before, row.after, row.reason) == (
        {"version": bad.id},
        {"version": good.id},
        "the second was wrong",
    )
    (kept,) = query(here.ledger, "SELECT output_id, replaced_id FROM flowstone.rollbacks")
    assert kept == (good.id, bad.id)
    # What was made of the other one is not fresh.
    again = materialize_sync("double", upstream=True)
    assert reasons(here, again) == [
        ("number", "skipped", "fresh"),
        ("double", "succeeded", "input changed"),
    ]
    assert again.result() == 2
    # Forward again is a rollback, too.
    rollback("number", to=bad.id)
    assert flowstone.get("number") == 2


def test_a_commit_after_a_rollback_is_the_latest_again(here: Any, source: Source) -> None:
    for source.value in (1, 2):
        materialize_sync("number")
    rollback("number")
    source.value = 3
    materialize_sync("number")
    assert flowstone.get("number") == 3
    rollback("number")
    assert flowstone.get("number") == 2


def test_there_is_no_rollback_to_what_there_is_not(here: Any, source: Source) -> None:
    materialize_sync("double", upstream=True)
    (only,) = versions("number")
    (other,) = versions("double")
    with pytest.raises(UnknownVersion, match="no version of number before the latest"):
        rollback("number")
    with pytest.raises(UnknownVersion, match=f"version {only.id} of number is the latest already"):
        rollback("number", to=only.id)
    with pytest.raises(UnknownVersion, match=f"number has no version {other.id}; `flowstone vers"):
        rollback("number", to=other.id)
    with pytest.raises(UnknownAsset, match="'numbr' was never materialized; did you mean 'number'"):
        rollback("numbr")
    assert query(here.ledger, "SELECT count(*) FROM flowstone.rollbacks") == [(0,)]


def test_latest_is_by_the_order_of_commits_not_of_runs_or_starts(ledger: Any) -> None:
    early, late = HandRun(ledger, {1: ()}), HandRun(ledger, {1: ()}, name="b")
    query(ledger, "UPDATE flowstone.steps SET asset = 'same' RETURNING id")
    early.dispatch()
    first = early.claim(1)
    early.retry(first, delay=3600)
    query(
        ledger,
        "UPDATE flowstone.steps SET state = 'pending', retry_at = NULL, canvas = NULL "
        "WHERE id = :id RETURNING id",
        id=early.ids[1],
    )
    late.do(1)
    early.do(1)
    (latest,) = query(
        ledger,
        "SELECT o.step_id FROM flowstone.latest l JOIN flowstone.outputs o ON o.id = l.output_id",
    )
    assert latest.step_id == early.ids[1]


def test_what_is_marked_stale_is_computed_again_though_nothing_has_changed(
    here: Any, source: Source
) -> None:
    materialize_sync("double", upstream=True)
    (version,) = versions("number")
    with here.ledger.begin() as conn:
        assert mark_stale(conn, [version.id], "invalidated", actor="test") == [version.id]
        assert mark_stale(conn, [version.id], "invalidated", actor="test") == []
    assert flowstone.status("number").state == "stale"
    again = materialize_sync("double", upstream=True)
    # The value came out the same, so what reads it is skipped by the worker.
    assert reasons(here, again) == [
        ("number", "succeeded", "invalidated"),
        ("double", "skipped", "upstream runs: number"),
    ]
    assert flowstone.status("number").state == "materialized"


def test_a_partition_is_named_by_its_key_or_its_text(make_runtime: Any) -> None:
    @asset(partitions=StaticPartitions(["eu", "us"]))
    def sales(context: flowstone.Context) -> str:
        return f"sales of {context.partition}"

    make_runtime(build_registry([sales]))
    materialize_sync(sales, partition="eu")
    assert flowstone.get(sales, "eu") == "sales of eu"
    assert flowstone.exists("sales", "eu")
    assert not flowstone.exists("sales", "us")
    assert not flowstone.exists("sale", "eu")
    with pytest.raises(BadPartition, match="'us'"):
        flowstone.get("sales", "us")


def test_none_is_a_value_like_any_other(make_runtime: Any) -> None:
    @asset
    def nothing() -> None:
        return None

    make_runtime(build_registry([nothing]))
    assert not flowstone.exists("nothing")
    materialize_sync(nothing)
    assert flowstone.exists("nothing")
    assert flowstone.get("nothing") is None


def test_an_asset_that_has_only_failed_has_a_status(here: Any, source: Source) -> None:
    source.value = ValueError("never worked")
    with pytest.raises(RunFailed):
        materialize_sync("double", upstream=True)
    assert flowstone.status("number").state == "missing"
    failure = flowstone.status("double").failure
    assert failure is not None
    assert (failure.state, "never worked" in failure.message) == ("upstream_failed", True)
    with pytest.raises(UnknownAsset):
        flowstone.status("nuber")


def test_what_is_being_computed_when_it_is_invalidated_is_stale_when_it_is_there(
    ledger: Any,
) -> None:
    first = HandRun(ledger, {1: (), 2: (1,)})
    first.do(1, 2)
    second = HandRun(ledger, {1: (), 2: (1,)})
    second.dispatch()
    begun = second.claim(1)
    invalidate_by_hand(ledger, "a1")
    # It may have read what is not so any more.
    second.commit(begun)
    assert stale(ledger, second) == {1: "invalidated"}
    second.do(2)
    assert stale(ledger, second) == {1: "invalidated", 2: None}
    third = HandRun(ledger, {1: (), 2: (1,)})
    third.do(1)
    invalidate_by_hand(ledger, "a1")
    # It reads what is stale already.
    third.do(2)
    assert stale(ledger, third) == {1: "invalidated", 2: "invalidated"}


def invalidate_by_hand(ledger: Any, asset: str) -> None:
    with ledger.begin() as conn:
        latest = store.latest(conn, (asset, "-"))
        assert latest is not None
        mark_stale(conn, [latest.id], "invalidated", actor="test")
        store.taint(conn, [latest.id], "invalidated")


def stale(ledger: Any, run: HandRun) -> dict[int, str | None]:
    found = query(
        ledger,
        "SELECT s.id, o.stale_reason FROM flowstone.outputs o JOIN flowstone.steps s "
        "ON s.id = o.step_id WHERE s.run_id = :run",
        run=run.id,
    )
    by_id = {row.id: row.stale_reason for row in found}
    return {n: by_id[i] for n, i in run.ids.items() if i in by_id}


def test_an_older_version_that_was_made_of_what_is_invalidated_is_stale_too(here: Any) -> None:
    materialize_sync("double", upstream=True)
    materialize_sync("double")
    newer, older = flowstone.versions("double")
    rollback("double")
    flowstone.invalidate("number")
    assert {v.stale_reason for v in flowstone.versions("double")} == {"invalidated"}
    assert {newer.stale_reason, older.stale_reason} == {None}


def test_the_last_failure_is_the_one_that_came_last(here: Any, source: Source) -> None:
    saved = flowstone.save_plan("number")
    source.value = ValueError("broken")
    with pytest.raises(RunFailed):
        materialize_sync("number")
    assert flowstone.status("number").failure is not None
    query(
        here.ledger,
        "UPDATE flowstone.steps SET state = 'succeeded', finished_at = now() "
        "WHERE run_id = :run RETURNING 1",
        run=saved.id,
    )
    assert flowstone.status("number").failure is None


def test_a_rollback_finds_the_version_before_however_many_are_gone(here: Any) -> None:
    for _ in range(3):
        materialize_sync("number")
    newest, middle, oldest = flowstone.versions("number")
    query(
        here.ledger,
        "UPDATE flowstone.outputs SET deleted_at = now() WHERE id = :id RETURNING 1",
        id=middle.id,
    )
    assert rollback("number").id == oldest.id
    assert newest.is_latest
