"""The statements that every step runs, straight through the driver and prepared by the server.

SQLAlchemy takes longer over one of them than PostgreSQL does. What is asked once a run goes
through SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql.psycopg import dialect
from sqlalchemy.exc import DBAPIError


class Prepared:
    """A statement whose values are bound by name, `:name`, as in SQLAlchemy's `text`."""

    def __init__(self, statement: str) -> None:
        # The dialect says how the driver writes the name of a value.
        self._sql = str(text(statement).compile(dialect=dialect()))  # type: ignore[no-untyped-call]

    def all(self, conn: Connection, values: Mapping[str, Any]) -> list[Any]:
        """Run it where `conn` is, in its transaction, and return the rows as named tuples."""
        return self._run(conn, values).fetchall()

    def first(self, conn: Connection, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as above
        """Run it, and return the first row as a named tuple, or None."""
        return self._run(conn, values).fetchone()

    def _run(self, conn: Connection, values: Mapping[str, Any]) -> psycopg.Cursor[Any]:
        driver = conn.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        try:
            return driver.cursor(row_factory=namedtuple_row).execute(
                self._sql, values, prepare=True
            )
        except psycopg.Error as error:
            if driver.closed:
                # SQLAlchemy has not seen it break, and would keep it in its pool.
                conn.invalidate()
            raise DBAPIError.instance(self._sql, None, error, psycopg.Error) from error
