"""The way to the ledger: a database that is away, empty or of another version is explained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from flowstone.alarm import Alarm
from flowstone.errors import (
    FlowStoneError,
    LedgerUnavailable,
    StepTimeout,
    UnknownRun,
    WrongMigration,
)
from flowstone.store import audit, migrate, runs
from flowstone.store.ledger import HEAD, Ledger, revision
from tests.store.runs_by_hand import HandRun, query


def opened(url: str) -> str:
    ledger = Ledger(url)
    try:
        with pytest.raises(FlowStoneError) as caught, ledger.begin():
            pytest.fail("the transaction must not begin")
    finally:
        ledger.close()
    assert "\n" not in caught.value.message
    return f"{caught.value.type}: {caught.value.message}"


def test_a_database_that_is_away_is_named_with_the_remedy_and_without_the_password(
    tmp_path: Path,
) -> None:
    for url in (
        "postgresql+psycopg://user:s3cret@127.0.0.1:1/ledger",
        f"postgresql+psycopg://user:s3cret@/ledger?host={tmp_path}",
    ):
        message = opened(url)
        assert message.startswith("ledger_unavailable: PostgreSQL at ")
        assert "/ledger cannot be used" in message
        assert "start `flowstone dev`, or set FLOWSTONE_DATABASE_URL" in message
        assert "s3cret" not in message


def test_a_database_that_does_not_exist_is_named(database: str) -> None:
    message = opened(database.replace("/test_", "/no_such_"))
    assert "no_such_" in message
    assert "does not exist" in message


def test_a_database_that_goes_away_in_the_middle_is_reported_as_away(ledger: Ledger) -> None:
    with pytest.raises(LedgerUnavailable) as caught, ledger.begin() as conn:
        conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert caught.value.retryable
    assert "terminating connection" in caught.value.message
    assert query(ledger, "SELECT 1") == [(1,)]


def test_connections_that_the_server_has_dropped_are_replaced(
    ledger: Ledger, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstone.store.ledger.IDLE_SECONDS", 0)
    query(ledger, "SELECT 1")
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'flowstone' AND datname = current_database()"
        )
    assert query(ledger, "SELECT 1") == [(1,)]


def test_an_empty_database_says_how_to_fill_it(empty_database: str) -> None:
    assert opened(empty_database) == (
        "wrong_migration: the database holds no ledger yet; run `flowstone db upgrade`"
    )


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("0000", f"at revision 0000, this version needs {HEAD}; run `flowstone db upgrade`"),
        ("9999", f"at revision 9999, newer than {HEAD} of this version; upgrade the package"),
    ],
)
def test_another_version_of_the_schema_is_refused_with_the_remedy(
    ledger: Ledger, database: str, version: str, said: str
) -> None:
    with ledger.engine.begin() as conn:
        conn.execute(text("UPDATE flowstone.alembic_version SET version_num = :v"), {"v": version})
    message = opened(database)
    assert message.startswith("wrong_migration")
    assert said in message


def test_a_newer_ledger_is_not_downgraded_by_an_upgrade(ledger: Ledger) -> None:
    with ledger.engine.begin() as conn:
        conn.execute(text("UPDATE flowstone.alembic_version SET version_num = '9999'"))
    with pytest.raises(WrongMigration, match="newer than"):
        migrate.upgrade(ledger)
    with ledger.engine.begin() as conn:
        assert revision(conn) == "9999"


def test_the_schema_is_checked_once_a_process(ledger: Ledger) -> None:
    query(ledger, "SELECT 1")
    with ledger.engine.begin() as conn:
        conn.execute(text("UPDATE flowstone.alembic_version SET version_num = '9999'"))
    assert query(ledger, "SELECT 1") == [(1,)]


def test_an_error_in_the_block_rolls_everything_back(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})

    def record_and_break() -> None:
        with ledger.begin() as conn:
            audit.record(conn, actor="a", action="b", run_id=run.id)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        record_and_break()
    assert query(ledger, "SELECT count(*) FROM flowstone.audit WHERE action = 'b'") == [(0,)]


def test_a_run_is_found_by_how_its_id_begins(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    HandRun(ledger, {1: ()})
    with ledger.begin() as conn:
        assert runs.find(conn, str(run.id)) == run.id
        assert runs.find(conn, str(run.id)[:20]) == run.id
        for prefix, said in [("", "no run is named"), ("%", "no run begins"), ("x", "no run")]:
            with pytest.raises(UnknownRun, match=said):
                runs.find(conn, prefix)


def test_a_run_ends_once(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    with ledger.begin() as conn:
        assert runs.close_if_done(conn, run.id, actor="test") is None
    run.do(1)
    with ledger.begin() as conn:
        assert runs.close_if_done(conn, run.id, actor="test") == "succeeded"
        assert runs.close_if_done(conn, run.id, actor="test") is None
        assert runs.fail(conn, run.id, {}, actor="test") is False


def test_a_password_appears_in_no_log(caplog: Any, tmp_path: Path) -> None:
    with caplog.at_level(logging.DEBUG):
        opened(f"postgresql+psycopg://user:s3cret@/ledger?host={tmp_path}")
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("way", ["begin", "autocommit"])
def test_a_statement_that_is_interrupted_breaks_its_connection_and_no_other(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    def late() -> StepTimeout:
        return StepTimeout("late")

    def interrupted() -> None:
        with getattr(ledger, way)() as conn, alarm.ringing(0.1, late):
            conn.execute(text("SELECT pg_sleep(20)"))

    with Alarm() as alarm, pytest.raises(StepTimeout) as caught:
        interrupted()
    assert caught.value.__context__ is None
    with getattr(ledger, way)() as conn:
        assert conn.scalar(text("SELECT 1")) == 1
    assert caplog.text == ""


def test_a_new_connection_that_is_interrupted_is_closed(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def interrupted(connection: Any, _query: str) -> None:
        made.append(connection)
        raise StepTimeout("late")

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "execute", interrupted)
        ledger = Ledger(database)
        with pytest.raises(StepTimeout), ledger.begin():
            pytest.fail("the transaction must not begin")
        ledger.close()
    assert [connection.closed for connection in made] == [True]


def test_a_connection_that_is_given_back_late_is_closed_all_the_same(database: str) -> None:
    made = Ledger(database)
    with made.begin() as conn:
        driver = conn.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        made.close()
        assert not driver.closed
    assert driver.closed
