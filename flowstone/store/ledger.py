"""The way to the ledger: connections, and database errors in the words of FlowStone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError

from flowstone.errors import LedgerUnavailable, WrongMigration
from flowstone.store.tables import SCHEMA

__all__ = ["HEAD", "Connection", "Ledger", "check_revision", "first_line", "revision", "translated"]

HEAD: Final = "0001"
"""The revision that this version of FlowStone works with; a test holds it to the migrations."""

CONNECT_TIMEOUT: Final = 5
"""Seconds after which a database that does not answer counts as away."""


class Ledger:
    """A pool of connections to one database, at the right revision of the schema."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = create_engine(
            url,
            pool_size=2,
            max_overflow=8,
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_TIMEOUT, "application_name": "flowstone"},
        )
        self._checked = False

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Open a transaction that commits at the end of the block, or rolls back on an error.

        Raises LedgerUnavailable where PostgreSQL cannot be reached, and
        WrongMigration where its schema is not the one of this version.
        """
        with translated(self.engine), self.engine.begin() as conn:
            if not self._checked:
                check_revision(conn)
                self._checked = True
            yield conn

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Turn the errors of a database that is away or empty into FlowStone's."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise LedgerUnavailable(
            f"PostgreSQL at {_address(engine)} cannot be used: {first_line(error)}; start "
            "`flowstone dev`, or set FLOWSTONE_DATABASE_URL to a server that runs",
            original=error,
        ) from error


def revision(conn: Connection) -> str | None:
    """Return the revision of the schema, or None for a database without one."""
    exists = conn.scalar(text("SELECT to_regclass(:name)"), {"name": f"{SCHEMA}.alembic_version"})
    if exists is None:
        return None
    found: str | None = conn.scalar(text(f"SELECT version_num FROM {SCHEMA}.alembic_version"))
    return found


def check_revision(conn: Connection) -> None:
    """Raise WrongMigration unless the schema is at HEAD."""
    try:
        found = revision(conn)
    except ProgrammingError as error:
        raise WrongMigration(f"the ledger's version cannot be read: {first_line(error)}") from error
    if found is None:
        raise WrongMigration("the database holds no ledger yet; run `flowstone db upgrade`")
    if found < HEAD:
        raise WrongMigration(
            f"the ledger is at revision {found}, this version needs {HEAD}; "
            "run `flowstone db upgrade`"
        )
    if found > HEAD:
        raise WrongMigration(
            f"the ledger is at revision {found}, newer than {HEAD} of this version; "
            "upgrade the package flowstone"
        )


def first_line(error: DBAPIError) -> str:
    """Return what the driver said, without SQL and without a password."""
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else type(error.orig).__name__


def _address(engine: Engine) -> str:
    url = engine.url
    host = url.host or url.query.get("host") or "localhost"
    return f"{host}/{url.database}"
