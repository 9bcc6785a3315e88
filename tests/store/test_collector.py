"""The collector deletes what nobody needs, and nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import flowstone
from flowstone import (
    collect,
    collector,
    invalidate,
    materialize_sync,
    planning,
    reconcile,
    rollback,
    submission,
    versions,
)
from flowstone.asset import asset
from flowstone.check import check
from flowstone.collector import sweep
from flowstone.errors import (
    BadConfig,
    CannotResume,
    DefinitionError,
    RunFailed,
    UnknownVersion,
)
from flowstone.registry import build_registry
from flowstone.store import collection, resumption
from flowstone.store import versions as store
from tests.store.runs_by_hand import query
from tests.store.test_concurrency import until_somebody_waits_for_a_lock
from tests.store.test_linear import rows_read


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


def test_a_sweep_deletes_what_was_left_behind_and_counts_it(
    make_runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asset
    def number() -> int:
        return 1

    here = make_runtime(build_registry([number]), io={"lake": str(tmp_path / "lake")})
    for _ in range(2):
        materialize_sync("number", force=True)
    age(here, hours=100)
    latest, older = versions("number")
    parts = [
        Path(here.settings.outputs, version.output.location + ".part")
        for version in (latest, older)
    ]
    for part in parts:
        part.write_text("1")
    # One attempt still writes; the other one has ended.
    query(
        here.ledger,
        "UPDATE flowstone.attempts SET outcome = NULL, finished_at = NULL "
        "WHERE step_id = :step RETURNING 1",
        step=latest.step_id,
    )

    def away(*_: object) -> None:
        raise flowstone.errors.StorageUnavailable("away")

    monkeypatch.setattr(here.outputs.manager("lake"), "stored", away)
    assert sweep(here) == 1
    assert [part.exists() for part in parts] == [True, False]
    # No version goes, however old it is.
    assert [flowstone.get("number", version=one.id) for one in (latest, older)] == [1, 1]
    assert sweep(here) == 0
    assert reconcile.repaired(here)["staged_file"].repaired == 1


def test_a_sweep_goes_on_where_the_last_one_has_stopped_and_round_all_storages(
    make_runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make_runtime(
        build_registry([]), io={name: str(tmp_path / name) for name in ("lake", "pond")}
    )
    listed = {"lake": ["a", "b", "c", "d", "e"], "pond": ["x"]}
    looked: list[str] = []

    def unreferenced(_: object, batch: list[str]) -> list[str]:
        looked.extend(batch)
        return [one for one in batch if one == "b"]

    for name in here.outputs.names:
        manager = here.outputs.manager(name)
        monkeypatch.setattr(manager, "stored", lambda name=name: iter(list(listed.get(name, []))))
        monkeypatch.setattr(manager, "delete", listed.get(name, []).remove)
    monkeypatch.setattr(collector, "_BATCH", 2)
    monkeypatch.setattr(collection, "unreferenced", unreferenced)
    for _ in range(6):
        # Time for one batch.
        sweep(here, seconds=0)
    assert set(looked) == {"a", "b", "c", "d", "e", "x"}
    assert listed["lake"] == ["a", "c", "d", "e"]
    looked.clear()
    for _ in range(6):
        sweep(here, seconds=0)
    assert {"a", "c", "d", "e"} <= set(looked)


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
    assert first.kind == "version"
    assert first.location in stored(here)
    assert collect() == []
    assert first.location not in stored(here)
    erased = "SELECT erased_at FROM flowstone.outputs WHERE deleted_at IS NOT NULL"
    (row,) = query(here.ledger, erased)
    assert row.erased_at is not None


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


@pytest.mark.parametrize("there", ["outputs", "outputs/lake", "elsewhere"])
def test_a_value_is_safe_whatever_name_its_place_has_now(
    make_runtime: Any, tmp_path: Path, there: str
) -> None:
    @asset(io="lake")
    def number() -> int:
        return 1

    @asset
    def double(number: int) -> int:
        return 2 * number

    place = str(tmp_path / "home" / there)
    registry = build_registry([number, double])
    make_runtime(registry, io={"lake": place})
    materialize_sync("double", upstream=True)
    # The same place by another name, and the old name at another place.
    make_runtime(registry, io={"lake": str(tmp_path / "new"), "old": place})
    assert collect() == []
    make_runtime(registry, io={"lake": place})
    assert (flowstone.get("number"), flowstone.get("double")) == (1, 2)


def test_what_lies_with_an_io_manager_that_is_not_known_here_is_kept(
    make_runtime: Any, tmp_path: Path
) -> None:
    @asset(io="lake", keep=1)
    def number() -> int:
        return 1

    registry = build_registry([number])
    here = make_runtime(registry, io={"lake": str(tmp_path / "lake")})
    for _ in range(3):
        materialize_sync("number")
    age(here)
    make_runtime(registry)
    assert collect() == []
    assert all(version.deleted_at is None for version in versions("number"))
    make_runtime(registry, io={"lake": str(tmp_path / "lake")})
    assert len(collect()) == 2


def test_a_rollback_and_a_collection_wait_for_each_other(here: Any) -> None:
    for _ in range(4):
        materialize_sync("number")
    age(here)
    oldest = versions("number")[-1]
    with ThreadPoolExecutor(1) as pool:
        with here.ledger.begin() as conn:
            store.roll_back(conn, ("number", "-"), oldest.id, actor="test", reason=None)
            collecting = pool.submit(collect)
            until_somebody_waits_for_a_lock(here.ledger)
        gone = {one.location for one in collecting.result(30)}
    assert oldest.output.location not in gone
    assert flowstone.get("number") == 1


def test_a_plan_and_a_collection_wait_for_each_other(here: Any) -> None:
    materialize_sync("number")
    (first,) = versions("number")
    for _ in range(3):
        materialize_sync("number")
    rollback("number", to=first.id)
    with ThreadPoolExecutor(1) as pool:
        with here.ledger.begin() as conn:
            wanted = "double", flowstone.UNPARTITIONED
            request = submission.request(*wanted, upstream=False, force=True)
            run_id = uuid4()
            submission.create(conn, run_id, request, {}, 10, driver="celery")
            planning.hold(conn, here, run_id)
            # By now the version that the plan reads is not the latest any more.
            rollback("number", to=versions("number")[0].id)
            age(here)
            collecting = pool.submit(collect)
            until_somebody_waits_for_a_lock(here.ledger)
        gone = {one.location for one in collecting.result(30)}
    assert first.output.location not in gone
    assert len(gone) == 1


def test_a_run_whose_inputs_are_given_up_cannot_be_resumed(here: Any) -> None:
    materialize_sync("number")
    handle = flowstone.save_plan("double")
    handle.cancel()
    for _ in range(3):
        materialize_sync("number")
    age(here)
    assert len(collect()) == 2
    with (
        pytest.raises(CannotResume, match="the value of number that this would read was given up"),
        here.ledger.begin() as conn,
    ):
        resumption.create(conn, uuid4(), handle.id, actor="test")


def test_the_cost_of_looking_for_old_versions_grows_with_their_number(ledger: Any) -> None:
    def rows_a_version(nodes: int) -> float:
        query(
            ledger,
            """
            WITH r AS (INSERT INTO flowstone.runs (id, state, driver, request, config,
                    max_in_flight, actor, finished_at)
                VALUES (gen_random_uuid(), 'succeeded', 'celery', '{}', '{}', 9, 'test', now())
                RETURNING id),
            s AS (INSERT INTO flowstone.steps (run_id, asset, partition, reason, queue, open_deps,
                    state, finished_at)
                SELECT r.id, 'a' || :nodes || '-' || n, '-', 'x', 'assets', 0, 'succeeded', now()
                FROM r, generate_series(1, :nodes) n RETURNING id)
            INSERT INTO flowstone.outputs (step_id, location, format, size, sha256, created_at)
            SELECT id, 'l' || id, 'json', 1, repeat('a', 64), now() - interval '1 day' FROM s
            RETURNING id
            """,
            nodes=nodes,
        )
        query(
            ledger,
            "INSERT INTO flowstone.edges (downstream, upstream, position, pinned) "
            "SELECT max(id), min(id), 0, false FROM flowstone.steps GROUP BY run_id "
            "ON CONFLICT DO NOTHING RETURNING 1",
        )
        before = rows_read(ledger)
        with ledger.begin() as conn:
            assert collection.surplus(conn, {}, 1, grace=3600) == []
        return (rows_read(ledger) - before) / nodes

    small = rows_a_version(100)
    # What was there before is looked through as well.
    assert rows_a_version(1000) < 1.5 * small


def test_to_invalidate_is_to_taint_what_is_being_computed(make_runtime: Any) -> None:
    @asset
    def source() -> int:
        return 1

    @asset
    def reader(source: int) -> int:
        # Somebody declares it stale while this is computed.
        assert [one.asset for one in invalidate("source")] == ["source"]
        return source

    here = make_runtime(build_registry([source, reader]))
    materialize_sync("reader", upstream=True)
    stale = "SELECT stale_reason FROM flowstone.outputs ORDER BY id"
    assert query(here.ledger, stale) == [("invalidated",), ("invalidated",)]
