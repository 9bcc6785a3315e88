"""The audit log is sealed after it is written, and whatever is done to it by force is found."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from flowstone import audit
from flowstone.errors import BadConfig
from flowstone.reconcile import reconcile
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.store import audit as log
from flowstone.store import seals
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun, count, query
from tests.store.test_linear import rows_read

GENESIS = "0" * 64


@pytest.fixture
def here(make_runtime: Any) -> Runtime:
    made: Runtime = make_runtime(build_registry([]))
    return made


def write(ledger: Ledger, number: int, **values: Any) -> None:
    with ledger.begin() as conn:
        for n in range(number):
            log.record(conn, **{"actor": "me", "action": "test.done", "details": {"n": n}} | values)


def by_force(ledger: Ledger, *statements: str) -> None:
    """Do what only a superuser can, with all triggers off."""
    with ledger.engine.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in statements:
            conn.execute(text(statement))


def findings(expect: str | None = None) -> list[str]:
    found = audit.verify(expect)
    assert found.count == len(found.findings)
    return [str(finding) for finding in found.findings]


def test_an_empty_log_is_whole(here: Runtime) -> None:
    assert audit.verify() == audit.Verified(0, GENESIS, 0, (), 0)
    assert audit.verify(GENESIS).count == 0


def test_rows_are_chained_in_order_and_the_head_stands_for_all_of_them(
    here: Runtime, ledger: Ledger
) -> None:
    write(ledger, 3)
    assert count(ledger, "audit_unsealed") == 3
    first = audit.verify()
    assert (first.rows, first.awaiting, first.count) == (3, 0, 0)
    assert count(ledger, "audit_unsealed") == 0
    write(ledger, 2)
    second = audit.verify(first.head)
    assert (second.rows, second.count) == (5, 0)
    assert second.head != first.head
    placed = query(ledger, "SELECT position, audit_id FROM flowstone.audit_seals ORDER BY 1")
    ids = [row.id for row in query(ledger, "SELECT id FROM flowstone.audit ORDER BY id")]
    assert placed == list(enumerate(ids, start=1))


ODD = {
    "number": 1.1,
    "large": 10**30,
    "text": 'a "quoted" text\n\twith ☃ and \u2028',
    "nested": [{"b": 1, "a": None}, [], {}],
}


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_sealing_and_verifying_see_the_same_whatever_the_session_is_set_to(
    here: Runtime, ledger: Ledger, zone: str
) -> None:
    write(ledger, 2, details=ODD, reason="because\nof 'this'", before=ODD, after={})
    precise = (
        "INSERT INTO flowstone.audit (actor, action, details) VALUES "
        "('a', 'b', '{\"n\": 1.10, \"m\": 1e400, \"o\": 0.1000000000000000000001}')"
    )
    with ledger.engine.begin() as conn:
        conn.execute(text(precise))
    audit.verify()
    with ledger.engine.begin() as conn:
        name = conn.scalar(text("SELECT current_database()"))
        for setting in (f"TimeZone = '{zone}'", "DateStyle = 'German'", "extra_float_digits = 0"):
            conn.execute(text(f"ALTER DATABASE {name} SET {setting}"))
    ledger.close()
    here.ledger.close()
    assert query(ledger, "SHOW TimeZone") == [(zone,)]
    assert findings() == []
    # A float would not tell the two apart.
    change = """UPDATE flowstone.audit SET details = '{"n": 1.10, "m": 1e400, "o": 0.1}'"""
    by_force(ledger, f"{change} WHERE id = 3")
    assert findings() == [
        "the chain breaks at seal 3: row 3, its seal or the order of the seals was changed"
    ]


PAST = (
    "row {} has no seal and awaits none: it was inserted past the trigger, or its seal was removed"
)
SWAP = (
    "UPDATE flowstone.audit_seals SET position = position - 5 WHERE position IN (2, 3); "
    "UPDATE flowstone.audit_seals SET position = -position WHERE position < 0"
)
TAMPERED: dict[str, tuple[str, list[str]]] = {
    "changed": (
        "UPDATE flowstone.audit SET actor = 'somebody else' WHERE id = 3",
        ["row 3 was changed after it was sealed"],
    ),
    "time": (
        "UPDATE flowstone.audit SET at = at + interval '1 microsecond' WHERE id = 3",
        ["row 3 was changed after it was sealed"],
    ),
    "centuries": (
        "UPDATE flowstone.audit SET at = '-infinity' WHERE id = 3",
        ["row 3 was changed after it was sealed"],
    ),
    "reason": (
        "UPDATE flowstone.audit SET reason = 'for good cause' WHERE id = 3",
        ["row 3 was changed after it was sealed"],
    ),
    "deleted": (
        "DELETE FROM flowstone.audit WHERE id = 3",
        ["row 3 was deleted; seal 3 is left of it"],
    ),
    "inserted": (
        "INSERT INTO flowstone.audit (actor, action) VALUES ('a', 'b')",
        [PAST.format(6)],
    ),
    "seal changed": (
        "UPDATE flowstone.audit_seals SET hash = sha256('x') WHERE position = 3",
        ["seal 3 of row 3 was changed"],
    ),
    "seal removed": (
        "DELETE FROM flowstone.audit_seals WHERE position = 3",
        ["seal 3 is missing", PAST.format(3)],
    ),
    "last seal removed": (
        "DELETE FROM flowstone.audit_seals WHERE position = 5",
        [PAST.format(5)],
    ),
    "seal for another row": (
        "UPDATE flowstone.audit_seals SET audit_id = 30 WHERE position = 3",
        ["row 30 was deleted; seal 3 is left of it", PAST.format(3)],
    ),
    "reordered": (
        SWAP,
        ["the chain breaks at seal 2: row 3, its seal or the order of the seals was changed",
         "the chain breaks at seal 3: row 2, its seal or the order of the seals was changed",
         "the chain breaks at seal 4: row 4, its seal or the order of the seals was changed"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TAMPERED)
def test_whatever_is_tampered_with_is_found_and_named(
    here: Runtime, ledger: Ledger, case: str
) -> None:
    write(ledger, 5)
    head = audit.verify().head
    statements, expected = TAMPERED[case]
    by_force(ledger, *statements.split("; "))
    assert findings() == expected
    assert audit.verify().rows in (4, 5)
    if case not in ("last seal removed", "seal changed"):
        assert audit.verify(head).count == len(expected)


def test_what_is_deleted_before_it_is_sealed_is_found_and_stops_nothing(
    here: Runtime, ledger: Ledger
) -> None:
    write(ledger, 3)
    by_force(ledger, "DELETE FROM flowstone.audit WHERE id = 2")
    assert findings() == ["row 2 was deleted before it was sealed"]
    assert audit.verify().rows == 2


def test_what_is_to_be_sealed_twice_is_sealed_once(here: Runtime, ledger: Ledger) -> None:
    write(ledger, 3)
    audit.verify()
    with ledger.engine.begin() as conn:
        conn.execute(text("INSERT INTO flowstone.audit_unsealed VALUES (2)"))
    write(ledger, 1)
    assert audit.verify() == audit.verify()
    assert (audit.verify().rows, audit.verify().count) == (4, 0)
    assert count(ledger, "audit_unsealed") == 0


def test_a_log_that_was_cut_off_or_rewritten_is_known_by_the_head_that_was_kept(
    here: Runtime, ledger: Ledger
) -> None:
    write(ledger, 5)
    head = audit.verify().head
    by_force(
        ledger,
        "DELETE FROM flowstone.audit WHERE id > 3",
        "DELETE FROM flowstone.audit_seals WHERE audit_id > 3",
    )
    # A chain does not know how long it was.
    assert findings() == []
    gone = (
        f"the expected head {head} is not in the chain: what it stood for was rewritten or cut off"
    )
    assert findings(head) == [gone]
    # Who may do everything can seal it all anew.
    by_force(
        ledger,
        "UPDATE flowstone.audit SET actor = 'nobody'",
        "DELETE FROM flowstone.audit_seals",
        "INSERT INTO flowstone.audit_unsealed SELECT id FROM flowstone.audit",
    )
    assert findings() == []
    assert findings(head) == [gone]


@pytest.mark.parametrize("bad", ["", "abc", "xyz" * 20, "0" * 63, "0" * 66])
def test_a_head_that_is_none_is_refused(here: Runtime, bad: str) -> None:
    with pytest.raises(BadConfig, match="is no head: one is a hash of 64 hexadecimal digits"):
        audit.verify(bad)


def test_only_the_first_findings_are_kept_and_all_are_counted(
    here: Runtime, ledger: Ledger
) -> None:
    write(ledger, 30)
    audit.verify()
    by_force(ledger, "DELETE FROM flowstone.audit")
    found = audit.verify()
    assert (found.count, len(found.findings)) == (30, audit.MAX_FINDINGS)


def test_a_row_that_is_committed_late_is_sealed_later(here: Runtime, ledger: Ledger) -> None:
    with ledger.begin() as slow:
        log.record(slow, actor="slow", action="test.done")
        write(ledger, 2)
        # It neither waits for the slow one nor misses it afterwards.
        assert (audit.verify().rows, audit.verify().count) == (2, 0)
    assert (audit.verify().rows, audit.verify().count) == (3, 0)
    placed = query(ledger, "SELECT audit_id FROM flowstone.audit_seals ORDER BY position")
    assert placed == [(2,), (3,), (1,)]


def test_one_seals_at_a_time_and_the_others_leave_it_to_that(here: Runtime, ledger: Ledger) -> None:
    write(ledger, 2)
    with ledger.begin() as first:
        assert seals.seal(first) == 2
        assert audit.seal(here) == 0
    assert audit.seal(here) == 0
    assert count(ledger, "audit_seals") == 2


def test_many_write_and_seal_at_once_and_the_chain_holds(
    here: Runtime, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstone.store.seals.BATCH", 7)

    def write_and_seal(n: int) -> None:
        for _ in range(20):
            write(ledger, 3, actor=f"w{n}")
            audit.seal(here, wait=n % 2 == 0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_and_seal, range(4)))
    found = audit.verify()
    assert (found.rows, found.awaiting, found.count) == (240, 0, 0)


def test_a_pass_of_the_reconciler_seals_no_more_than_its_share(
    here: Runtime, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstone.store.seals.BATCH", 2)
    monkeypatch.setattr("flowstone.audit.PASS", 3)
    write(ledger, 10)
    reconcile(here, lambda *_: None)
    assert count(ledger, "audit_seals") == 6
    reconcile(here, lambda *_: None)
    assert count(ledger, "audit_seals") == 10


def test_to_seal_does_not_cost_more_in_a_longer_log(here: Runtime, ledger: Ledger) -> None:
    def cost() -> int:
        write(ledger, 100)
        before = rows_read(ledger)
        with ledger.begin() as conn:
            assert seals.seal(conn) == 100
        return rows_read(ledger) - before

    small = cost()
    for _ in range(3):
        write(ledger, 1000)
        audit.seal(here)
    large = cost()
    assert small > 0
    assert large < 1.25 * small, (small, large)


def test_runs_with_all_their_steps_are_sealed(here: Runtime, ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    run.do(1, 2)
    rows = count(ledger, "audit")
    assert rows > 4
    assert (audit.verify().rows, audit.verify().count) == (rows, 0)


def test_the_export_has_every_row_with_its_place_in_the_chain(
    here: Runtime, ledger: Ledger
) -> None:
    run = HandRun(ledger, {1: ()})
    run.do(1)
    write(ledger, 1, reason="ö", before={"state": "a"}, after={"state": "b"})
    head = audit.verify().head
    exported = list(audit.export())
    assert [row["position"] for row in exported] == [1, 2, 3, 4, 5]
    assert exported[-1]["hash"] == head
    assert list(exported[-1]) == [
        "id", "at", "actor", "action", "run_id", "step_id", "reason", "before", "after", "details",
        "position", "hash",
    ]  # fmt: skip
    assert exported[-1]["reason"] == "ö"
    assert exported[-1]["before"] == {"state": "a"}
    assert exported[0]["at"].endswith("Z")
    succeeded = exported[3]
    assert (succeeded["run_id"], succeeded["step_id"]) == (str(run.id), run.ids[1])
    assert (succeeded["before"], succeeded["after"]) == (
        {"state": "running"},
        {"state": "succeeded"},
    )


def test_an_export_can_be_verified_without_the_database(here: Runtime, ledger: Ledger) -> None:
    import hashlib  # noqa: PLC0415

    write(ledger, 3, details=ODD)
    head = bytes(32)
    for line in audit.export_lines():
        said = line.rpartition(',"position":')[0] + "}"
        head = hashlib.sha256(head + said.encode()).digest()
        assert json.loads(line)["hash"] == head.hex()
    assert audit.verify().head == head.hex()


def test_the_export_is_cut_by_time_run_and_asset(here: Runtime, ledger: Ledger) -> None:
    one, two = HandRun(ledger, {1: ()}), HandRun(ledger, {2: ()})
    one.do(1)
    two.do(2)
    assert {row["run_id"] for row in audit.export(run=str(one.id))} == {str(one.id)}
    assert [row["action"] for row in audit.export(asset="a2")] == ["step.succeeded"]
    rows = list(audit.export())
    later = rows[3]["at"]
    assert [row["id"] for row in audit.export(since=later)] == [row["id"] for row in rows[3:]]
    assert [row["id"] for row in audit.latest(2)] == [row["id"] for row in rows[:-3:-1]]


def test_rows_that_do_not_name_their_asset_are_found_through_their_step(
    here: Runtime, ledger: Ledger
) -> None:
    run = HandRun(ledger, {1: ()})
    write(ledger, 1, step_id=run.ids[1], details={"step": "a1"})
    assert [row["details"] for row in audit.export(asset="a1")] == [{"step": "a1"}]


def test_what_awaits_a_seal_is_exported_without_one(here: Runtime, ledger: Ledger) -> None:
    write(ledger, 2)
    audit.seal(here)
    write(ledger, 1)
    assert [row["position"] for row in audit.latest(3)] == [None, 2, 1]
    assert audit.latest(1)[0]["hash"] is None


@pytest.mark.parametrize("table", ["audit", "audit_seals"])
def test_log_and_chain_only_grow(here: Runtime, ledger: Ledger, table: str) -> None:
    write(ledger, 2)
    audit.seal(here)
    column = {"audit": "actor", "audit_seals": "hash"}[table]
    for statement in (
        f"UPDATE flowstone.{table} SET {column} = {column}",
        f"UPDATE flowstone.{table} SET {column} = {column} WHERE false",
        f"DELETE FROM flowstone.{table}",
        f"TRUNCATE flowstone.{table}",
        f"TRUNCATE flowstone.{table} CASCADE",
    ):
        with (
            pytest.raises(DBAPIError, match=f"the table flowstone.{table} is append-only"),
            ledger.engine.begin() as conn,
        ):
            conn.execute(text(statement))
    assert count(ledger, table) == 2
