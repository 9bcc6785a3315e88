"""The collector deletes what nobody needs, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flowstone
from flowstone import collect, invalidate, materialize_sync, rollback, versions
from flowstone.asset import asset
from flowstone.check import check
from flowstone.errors import BadConfig, DefinitionError, RunFailed, UnknownVersion
from flowstone.registry import build_registry
from tests.store.runs_by_hand import query


class Source:
    def __init__(self) -> None:
        self.value = 0


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def here(make_runtime: Any, source: Source) -> Any:
    @asset(keep=2)
    def number() -> int:
        source.value += 1
        return source.value

    @asset(keep=1)
    def double(number: int) -> int:
        return 2 * number

    @asset
    def all_kept() -> int:
        return source.value

    return make_runtime(build_registry([number, double, all_kept]))


def age(here: Any, hours: int = 2) -> None:
    for table in ("outputs", "quarantine"):
        query(
            here.ledger,
            f"UPDATE flowstone.{table} SET created_at = created_at - make_interval(hours => :h) "
            "RETURNING id",
            h=hours,
        )


def stored(here: Any) -> set[str]:
    root = Path(here.settings.outputs)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_versions_beyond_those_to_keep_go_and_their_records_stay(here: Any) -> None:
    for _ in range(4):
        materialize_sync("number")
        materialize_sync("all_kept")
    age(here)
    third, second = versions("number")[2:]
    before = stored(here)
    would = collect(dry_run=True)
    assert stored(here) == before
    assert {one.location for one in would} == {third.output.location, second.output.location}
    assert collect() == would
    assert stored(here) == before - {one.location for one in would}
    assert [v.deleted_at is None for v in versions("number")] == [True, True, False, False]
    assert len(versions("all_kept")) == 4
    assert flowstone.get("number") == 4
    with pytest.raises(UnknownVersion, match=f"the value of version {third.id} of number was giv"):
        flowstone.get("number", version=third.id)
    with pytest.raises(UnknownVersion, match="was given up"):
        rollback("number", to=third.id)
    audited = query(
        here.ledger,
        "SELECT before, after, reason FROM flowstone.audit WHERE action = 'output.deleted'",
    )
    assert audited == [({"deleted": False}, {"deleted": True}, "garbage collection")] * 2
    assert collect() == []


def test_what_a_kept_version_was_made_of_stays(here: Any) -> None:
    materialize_sync("double", upstream=True)
    for _ in range(4):
        materialize_sync("number")
    age(here)
    oldest = versions("number")[-1]
    gone = {one.location for one in collect()}
    # Four newer ones, of which two are kept; but the latest `double` is made of the oldest.
    assert len(gone) == 2
    assert oldest.output.location not in gone
    materialize_sync("double")
    age(here)
    assert [one.location for one in collect()] == [
        oldest.output.location,
        versions("double")[1].output.location,
    ]


def test_what_was_rolled_back_to_is_the_latest_and_stays(here: Any) -> None:
    for _ in range(4):
        materialize_sync("number")
    first = versions("number")[-1]
    rollback("number", to=first.id)
    age(here)
    assert first.output.location not in {one.location for one in collect()}
    assert flowstone.get("number") == 1


def test_what_is_young_stays_for_whoever_plans_just_now(here: Any) -> None:
    for _ in range(4):
        materialize_sync("number")
    assert collect() == []
    age(here)
    materialize_sync("number")
    # The newest replaces nothing yet: two older ones are kept with it.
    assert len(collect()) == 2


def test_what_an_open_run_reads_stays(here: Any, source: Source) -> None:
    materialize_sync("number")
    handle = flowstone.save_plan("double")
    for _ in range(3):
        materialize_sync("number")
    age(here)
    pinned = versions("number")[-1]
    assert pinned.output.location not in {one.location for one in collect()}
    handle.cancel()
    assert [one.location for one in collect()] == [pinned.output.location]


def test_what_an_attempt_has_left_behind_goes_and_what_it_may_still_commit_stays(
    here: Any,
) -> None:
    materialize_sync("number")
    (version,) = versions("number")
    root = Path(here.settings.outputs)
    mine = root / version.output.location
    part = mine.with_name(mine.name + ".part")
    part.write_text("1")
    foreign = mine.with_name("1-1-00000000.json")
    foreign.write_text("of another ledger, which keeps its outputs here, too")
    (root / "notes.txt").write_text("of a person")
    query(
        here.ledger, "UPDATE flowstone.attempts SET outcome = NULL, finished_at = NULL RETURNING 1"
    )
    assert collect() == []
    query(
        here.ledger,
        "UPDATE flowstone.attempts SET outcome = 'lost', finished_at = now() RETURNING 1",
    )
    (left,) = collect()
    assert (left.kind, root / left.location) == ("staged", part)
    assert not part.exists()
    assert mine.exists()
    assert foreign.exists()
    assert flowstone.get("number") == 1


def test_what_could_not_be_deleted_is_found_the_next_time(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        materialize_sync("number")
    age(here)

    def away(*_: object) -> None:
        raise flowstone.errors.StorageUnavailable("away")

    with monkeypatch.context() as broken:
        broken.setattr(here.outputs.manager("default"), "delete", away)
        (first, *_) = collect()
    (again,) = collect()
    assert (first.kind, again.kind) == ("version", "staged")
    assert first.location == again.location
    assert again.location not in stored(here)


def test_the_quarantine_is_emptied_after_a_while(make_runtime: Any) -> None:
    @asset
    def bad() -> int:
        return -1

    @check(asset=bad, blocking=True)
    def positive(value: int) -> bool:
        return value > 0

    here = make_runtime(build_registry([bad], checks=[positive]))
    with pytest.raises(RunFailed):
        materialize_sync("bad")
    age(here, hours=24 * 29)
    assert collect() == []
    age(here, hours=24 * 2)
    (one,) = collect()
    assert (one.kind, one.name) == ("quarantine", "bad")
    assert stored(here) == set()
    assert query(here.ledger, "SELECT count(*) FROM flowstone.check_results") == [(1,)]


def test_a_policy_that_makes_no_sense_is_refused(here: Any) -> None:
    with pytest.raises(BadConfig, match="keep is 0"):
        collect(keep=0)
    with pytest.raises(BadConfig, match="quarantine_days is -1"):
        collect(quarantine_days=-1)
    with pytest.raises(DefinitionError, match="keep=0, but the latest version is always kept"):
        asset(keep=0, name="kept")(lambda: 1)


def test_an_asset_is_invalidated_with_all_that_was_made_of_it(here: Any) -> None:
    materialize_sync(["double", "all_kept"], upstream=True)
    shown = invalidate("number", dry_run=True)
    assert [one.asset for one in shown] == ["number", "double"]
    assert flowstone.status("number").state == "materialized"
    assert invalidate("number", reason="late data") == shown
    assert invalidate("number") == []
    states = {name: flowstone.status(name).state for name in ("number", "double", "all_kept")}
    assert states == {"number": "stale", "double": "stale", "all_kept": "materialized"}
    assert flowstone.get("double") == 2
    audited = query(
        here.ledger,
        "SELECT details->>'asset' AS asset, reason, before, after FROM flowstone.audit "
        "WHERE action = 'output.invalidated' ORDER BY id",
    )
    assert [(row.asset, row.reason) for row in audited] == [
        ("number", "late data"),
        ("double", "late data"),
    ]
    again = materialize_sync(["double", "all_kept"], upstream=True)
    reasons = "SELECT asset, reason FROM flowstone.steps WHERE run_id = :r ORDER BY asset"
    assert query(here.ledger, reasons, r=again.id) == [
        ("all_kept", "fresh"),
        ("double", "invalidated"),
        ("number", "invalidated"),
    ]
    assert flowstone.status("double").state == "materialized"


def test_without_cascade_only_the_asset_itself_is_invalidated(here: Any) -> None:
    materialize_sync("double", upstream=True)
    assert [one.asset for one in invalidate("number", cascade=False)] == ["number"]
    assert flowstone.status("double").state == "materialized"
