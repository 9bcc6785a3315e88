"""Statements straight through the driver: bound, prepared, in the caller's transaction."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import text

from flowstone.errors import LedgerRefused, LedgerUnavailable
from flowstone.store import dispatch
from flowstone.store.ledger import Ledger
from flowstone.store.prepared import Prepared
from tests.store.runs_by_hand import HandRun, query


def test_values_are_bound_by_name_and_rows_have_names(ledger: Ledger) -> None:
    statement = Prepared("SELECT CAST(:one AS text) AS one, '100%' AS two WHERE :one <> ''")
    with ledger.begin() as conn:
        row = statement.first(conn, {"one": "'; DROP TABLE x"})
        assert (row.one, row.two) == ("'; DROP TABLE x", "100%")
        assert statement.first(conn, {"one": ""}) is None
        assert statement.all(conn, {"one": ""}) == []


def test_a_statement_is_part_of_the_transaction_around_it(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    rename = Prepared("UPDATE flowstone.runs SET actor = 'x' WHERE id = :id RETURNING id")

    def rename_and_break() -> None:
        with ledger.begin() as conn:
            assert rename.first(conn, {"id": run.id}).id == run.id
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rename_and_break()
    assert query(ledger, "SELECT actor FROM flowstone.runs") == [("test",)]


def test_the_server_has_it_prepared_from_the_first_time_on(ledger: Ledger) -> None:
    with ledger.autocommit() as conn:
        dispatch.ready(conn, uuid4())
        prepared = conn.scalars(text("SELECT statement FROM pg_prepared_statements")).all()
    assert any("window_left" in statement for statement in prepared)


def test_what_the_database_refuses_is_said_in_its_words(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    broken = Prepared("UPDATE flowstone.runs SET state = 'nonsense' WHERE id = :id RETURNING id")
    with pytest.raises(LedgerRefused, match="ck_runs_state"), ledger.begin() as conn:
        broken.first(conn, {"id": run.id})


def test_a_connection_that_breaks_is_reported_as_away_and_not_used_again(ledger: Ledger) -> None:
    die = Prepared("SELECT pg_terminate_backend(pg_backend_pid())")
    for opened in (ledger.begin, ledger.autocommit):
        with pytest.raises(LedgerUnavailable) as caught, opened() as conn:
            die.first(conn, {})
        assert "terminating connection" in caught.value.message
        assert query(ledger, "SELECT 1") == [(1,)]
