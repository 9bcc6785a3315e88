"""Statements straight through the driver: bound, prepared, in the caller's transaction."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from flowstone.errors import LedgerUnavailable
from flowstone.store import dispatch
from flowstone.store.ledger import Ledger
from flowstone.store.prepared import Prepared, together
from tests.store.runs_by_hand import HandRun, query, run_sql
from tests.store.test_concurrency import until_somebody_waits_for_a_lock


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


def test_an_error_of_the_database_is_sqlalchemys(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    broken = Prepared("UPDATE flowstone.runs SET state = 'nonsense' WHERE id = :id RETURNING id")
    with pytest.raises(IntegrityError, match="ck_runs_state"), ledger.begin() as conn:
        broken.first(conn, {"id": run.id})


def test_a_connection_that_breaks_is_reported_as_away_and_not_used_again(ledger: Ledger) -> None:
    die = Prepared("SELECT pg_terminate_backend(pg_backend_pid())")
    for opened in (ledger.begin, ledger.autocommit):
        with pytest.raises(LedgerUnavailable) as caught, opened() as conn:
            die.first(conn, {})
        assert "terminating connection" in caught.value.message
        assert query(ledger, "SELECT 1") == [(1,)]


def test_statements_that_are_sent_together_see_what_the_one_before_has_waited_for(
    ledger: Ledger,
) -> None:
    run = HandRun(ledger, {1: (), 2: ()})
    lock = Prepared("SELECT id FROM flowstone.runs WHERE id = :id FOR UPDATE")
    count = Prepared("SELECT count(*) AS n FROM flowstone.steps WHERE state = 'queued'")
    with ThreadPoolExecutor(1) as pool, ledger.begin() as conn:
        lock.first(conn, {"id": run.id})

        def look() -> list[list[Any]]:
            with ledger.begin() as other:
                return together(other, (lock, {"id": run.id}), (count, {}))

        looking = pool.submit(look)
        until_somebody_waits_for_a_lock(ledger)
        run_sql(conn, "UPDATE flowstone.steps SET state = 'queued'")
        # Ending the transaction lets the other go on.
        conn.commit()
        locked, counted = looking.result(20)
    assert [row.id for row in locked] == [run.id]
    assert [row.n for row in counted] == [2]


def test_an_error_in_one_of_several_statements_is_sqlalchemys_and_the_connection_lives(
    ledger: Ledger,
) -> None:
    run = HandRun(ledger, {1: ()})
    good = Prepared("SELECT 1 AS one")
    broken = Prepared("UPDATE flowstone.runs SET state = 'nonsense' WHERE id = :id RETURNING id")
    with pytest.raises(IntegrityError, match="ck_runs_state"), ledger.begin() as conn:
        together(conn, (good, {}), (broken, {"id": run.id}), (good, {}))
    with ledger.begin() as conn:
        assert together(conn, (good, {}))[0][0].one == 1
